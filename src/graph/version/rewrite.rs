//! Operators that became others, or whose outputs or attributes changed their meaning.

use super::{Step, set, take};
use crate::formats::onnx::proto::{AttributeProto, NodeProto};
use crate::formats::onnx::tensor::{BFLOAT16, DOUBLE, FLOAT, FLOAT16};

/// Softmax, LogSoftmax and Hardmax took all axes from `axis` on as one, and take `axis` alone since version 13. The two are
/// the same along the last axis. Otherwise the input is flattened to a matrix and the output gets its shape back.
pub(super) fn along_one_axis(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let axis = take(node, "axis")?.and_then(|attribute| attribute.i).unwrap_or(1);
    let input = node.input(0).ok_or("input: expected one, found none")?.to_owned();
    let is_last = |rank: usize| i64::try_from(rank).is_ok_and(|rank| axis == rank - 1);
    set(node, AttributeProto::int("axis", -1));
    if axis == -1 || step.facts.rank(&input).is_some_and(is_last) {
        return Ok(());
    }
    let shape = step.compute(node, "shape", "Shape", &[&input], Vec::new());
    let flat = step.compute(node, "flat_input", "Flatten", &[&input], vec![AttributeProto::int("axis", axis)]);
    let result = step.name(node, "flat");
    let name = step.name(node, "unflatten");
    let outputs = std::mem::replace(&mut node.output, vec![result.clone()]);
    node.input = vec![flat];
    step.after.push(NodeProto::new("Reshape", name, vec![result, shape], outputs));
    Ok(())
}

/// Version 9 has one mean and variance for each channel only.
pub(super) fn batch_normalization_without_spatial(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    match take(node, "spatial")?.and_then(|attribute| attribute.i) {
        None | Some(1) => Ok(()),
        Some(spatial) => Err(format!("spatial: expected 1, found {spatial}")),
    }
}

/// Version 14 says by an attribute whether it trains, which the number of outputs told before.
pub(super) fn batch_normalization_for_inference(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    if let Some(used) = node.output.iter().skip(1).find(|name| step.facts.is_used(name)) {
        return Err(format!("outputs: expected one, as in inference, found that {used:?} is used too"));
    }
    node.output.truncate(1);
    Ok(())
}

/// The mask became boolean in version 10, and all true instead of unspecified in 12, which takes the ratio as an input.
/// Without training neither mask nor ratio matters.
pub(super) fn dropout(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    if let Some(mask) = node.output.get(1).filter(|name| step.facts.is_used(name)) {
        return Err(format!("mask: expected an output that nothing uses, found that {mask:?} is used"));
    }
    node.output.truncate(1);
    if step.to >= 12 {
        take(node, "ratio")?;
    }
    Ok(())
}

/// Version 13 takes floats only.
pub(super) fn erf(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    match node.input(0).and_then(|input| step.facts.element(input)) {
        None | Some(FLOAT | FLOAT16 | BFLOAT16 | DOUBLE) => Ok(()),
        Some(code) => Err(format!("input: expected floats, found element type {code}")),
    }
}

/// Version 20 is for any number of axes.
pub(super) fn grid_sample(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    let mode = take(node, "mode")?.and_then(|attribute| attribute.s);
    let mode = match mode.as_deref() {
        None | Some(b"bilinear") => "linear",
        Some(b"bicubic") => "cubic",
        Some(b"nearest") => "nearest",
        Some(other) => return Err(format!("mode: expected bilinear, nearest or bicubic, found {:?}", String::from_utf8_lossy(other))),
    };
    set(node, AttributeProto::string("mode", mode));
    Ok(())
}

/// Version 21 has scale and bias for each channel: those of a group are repeated for each of its channels.
///
/// ```text
/// Reshape(Expand(Unsqueeze(scale, 1), Concat([1], channels / groups)), [-1])
/// ```
pub(super) fn group_normalization(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let groups = node.attribute("num_groups").and_then(|attribute| attribute.i).filter(|groups| *groups > 0);
    let groups = groups.ok_or("num_groups: expected a number, found none")?;
    let [x, scale, bias] = [0, 1, 2].map(|i| node.input(i).map(str::to_owned));
    let (Some(x), Some(scale), Some(bias)) = (x, scale, bias) else { return Err("inputs: expected three, found less".into()) };
    let bounds = vec![AttributeProto::int("start", 1), AttributeProto::int("end", 2)];
    let channels = step.compute(node, "channels", "Shape", &[&x], bounds);
    let groups = step.ints(node, "groups", &[1], &[groups]);
    let repeats = step.compute(node, "channels_per_group", "Div", &[&channels, &groups], Vec::new());
    let one = step.ints(node, "one", &[1], &[1]);
    let rows = step.compute(node, "repeats", "Concat", &[&one, &repeats], vec![AttributeProto::int("axis", 0)]);
    let flat = step.ints(node, "all", &[1], &[-1]);
    for (index, what, value) in [(1, "scale", scale), (2, "bias", bias)] {
        let column = step.compute(node, &format!("{what}_column"), "Unsqueeze", &[&value, &one], Vec::new());
        let matrix = step.compute(node, &format!("{what}_repeated"), "Expand", &[&column, &rows], Vec::new());
        node.input[index] = step.compute(node, what, "Reshape", &[&matrix, &flat], Vec::new());
    }
    Ok(())
}

/// Version 16 takes half a pixel off coordinates unless it is told not to.
pub(super) fn roi_align(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    set(node, AttributeProto::string("coordinate_transformation_mode", "output_half_pixel"));
    Ok(())
}

/// Version 9 has no batch axis and no lengths of sequences.
pub(super) fn scan(_node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    Err("expected a Scan of version 9 or newer, found one of version 8, which has a batch axis".into())
}

/// Version 11 calls it ScatterElements.
pub(super) fn scatter(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    node.op_type = "ScatterElements".into();
    Ok(())
}

/// Version 18 needs to be told into how many parts.
pub(super) fn split_evenly(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    if node.input(1).is_none() {
        set(node, AttributeProto::int("num_outputs", node.output.len() as i64));
    }
    Ok(())
}
