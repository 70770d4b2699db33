//! Attributes that became inputs.

use super::{Step, set_input, take};
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, element_type};
use crate::tensor::encode_f32;

/// Attributes of integers that become 1-D inputs: name and place. Absent ones stay absent.
fn ints(node: &mut NodeProto, step: &mut Step<'_>, moves: &[(&str, usize)]) -> Result<(), String> {
    for (name, index) in moves {
        if let Some(attribute) = take(node, name)? {
            let values = attribute.ints;
            let constant = step.ints(node, name, &[values.len() as i64], &values);
            set_input(node, *index, constant);
        }
    }
    Ok(())
}

/// `axes` is the second input. No axes at all, as an attribute, are all axes.
pub(super) fn axes(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    if node.attribute("axes").is_some_and(|axes| axes.ints.is_empty() && axes.ref_attr_name.is_empty()) && node.op_type != "Unsqueeze" {
        take(node, "axes")?;
    }
    ints(node, step, &[("axes", 1)])
}

/// `split` is the second input.
pub(super) fn split(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    ints(node, step, &[("split", 1)])
}

/// `starts`, `ends` and `axes` are inputs.
pub(super) fn slice(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    ints(node, step, &[("starts", 1), ("ends", 2), ("axes", 3)])
}

/// `k` is the second input, with one element.
pub(super) fn top_k(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let k = take(node, "k")?.and_then(|attribute| attribute.i).ok_or("k: expected a number, found none")?;
    let constant = step.ints(node, "k", &[1], &[k]);
    set_input(node, 1, constant);
    Ok(())
}

/// `axis` is the third input, a scalar. It was 1 by default.
pub(super) fn dft(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let axis = take(node, "axis")?.and_then(|attribute| attribute.i).unwrap_or(1);
    let constant = step.ints(node, "axis", &[], &[axis]);
    set_input(node, 2, constant);
    Ok(())
}

/// `scales` is the second input.
pub(super) fn upsample(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let scales = take(node, "scales")?.ok_or("scales: expected numbers, found none")?.floats;
    let name = step.name(node, "scales");
    step.constants.push(TensorProto::floats(name.clone(), &[scales.len() as i64], &scales));
    set_input(node, 1, name);
    Ok(())
}

/// `min` and `max` are inputs, of the type of the first.
pub(super) fn clip(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    // What is left out means the same as before: the largest finite number.
    let given = [("min", 1, f32::MIN), ("max", 2, f32::MAX)];
    for (name, index, default) in given {
        let value = take(node, name)?.and_then(|attribute| attribute.f);
        let Some(value) = value.filter(|value| *value != default) else { continue };
        let constant = scalar(node, step, name, value)?;
        set_input(node, index, constant);
    }
    Ok(())
}

/// `pads` and `value` are inputs, the second of the type of the first.
pub(super) fn pad(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    ints(node, step, &[("pads", 1)])?;
    if let Some(value) = take(node, "value")?.and_then(|attribute| attribute.f).filter(|value| *value != 0.0) {
        let constant = scalar(node, step, "value", value)?;
        set_input(node, 2, constant);
    }
    Ok(())
}

/// A new constant without axes, of the type of the node's first input.
fn scalar(node: &NodeProto, step: &mut Step<'_>, what: &str, value: f32) -> Result<String, String> {
    let code = step.facts.element(node.input(0).unwrap_or(""));
    let code = code.ok_or("expected an input of a known type, found one whose type the model does not say")?;
    let name = step.name(node, what);
    let tensor = match (code, element_type(code).and_then(|element| element.dtype)) {
        (FLOAT, _) => TensorProto::floats(name.clone(), &[], &[value]),
        (DOUBLE, _) => TensorProto::raw(name.clone(), code, &[], f64::from(value).to_le_bytes().to_vec()),
        (FLOAT16 | BFLOAT16, Some(dtype)) => {
            let mut bytes = vec![0; 2];
            encode_f32(dtype, &[value], &mut bytes);
            TensorProto::raw(name.clone(), code, &[], bytes)
        }
        _ => return Err(format!("expected an input of floats, found element type {code}")),
    };
    step.constants.push(tensor);
    Ok(name)
}
