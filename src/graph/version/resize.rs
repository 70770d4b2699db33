//! Upsample and Resize: coordinates.
//!
//! Until version 10 the place in the input was `x / scale`, and the nearest one was left to the runtime. ONNX Runtime takes
//! the floor along axes that grow and the ceiling along axes that shrink
//! ([upsamplebase.h](https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/cpu/tensor/upsamplebase.h));
//! so does what is written here.

use super::{Step, set, set_input};
use crate::formats::onnx::proto::{AttributeProto, NodeProto, TensorProto};

fn text<'n>(node: &'n NodeProto, name: &str, default: &'static str) -> &'n str {
    let attribute = node.attribute(name).and_then(|attribute| attribute.s.as_deref());
    attribute.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or(default)
}

/// Version 10 calls Upsample Resize.
pub(super) fn from_upsample(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    node.op_type = "Resize".into();
    Ok(())
}

/// Version 11 has a region of interest, and says what coordinates are.
pub(super) fn with_coordinates(node: &mut NodeProto, step: &mut Step<'_>) -> Result<(), String> {
    let scales = node.input(1).ok_or("scales: expected an input, found none")?.to_owned();
    if text(node, "mode", "nearest") == "nearest" {
        let known = step.constants.iter().find(|tensor| tensor.name == scales).or_else(|| step.facts.constant(&scales));
        let values =
            known.and_then(TensorProto::to_floats).ok_or("scales: expected constants to tell growing from shrinking, found none")?;
        let nearest = if values.iter().all(|scale| *scale >= 1.0) {
            "floor"
        } else if values.iter().all(|scale| *scale <= 1.0) {
            "ceil"
        } else {
            return Err(format!("scales: expected all axes to grow or all to shrink, found {values:?}"));
        };
        set(node, AttributeProto::string("nearest_mode", nearest));
    }
    set(node, AttributeProto::string("coordinate_transformation_mode", "asymmetric"));
    // Optional since version 13.
    let roi = if step.to < 13 { step.name(node, "roi") } else { String::new() };
    if !roi.is_empty() {
        step.constants.push(TensorProto::floats(roi.clone(), &[0], &[]));
    }
    set_input(node, 1, roi);
    set_input(node, 2, scales);
    Ok(())
}

/// Version 13 takes scales or sizes, not both, and has one mode less.
pub(super) fn without_both_sizes(node: &mut NodeProto, _step: &mut Step<'_>) -> Result<(), String> {
    // Sizes counted only where scales were empty.
    if node.input(3).is_some() {
        set_input(node, 2, String::new());
    }
    let mode = text(node, "coordinate_transformation_mode", "half_pixel");
    if mode == "tf_half_pixel_for_nn" {
        let (mode, nearest) = (text(node, "mode", "nearest"), text(node, "nearest_mode", "round_prefer_floor"));
        if (mode, nearest) != ("nearest", "floor") {
            return Err(format!(
                "coordinate_transformation_mode: expected tf_half_pixel_for_nn with floor, found it with {mode} and {nearest}"
            ));
        }
        // floor((x + 0.5) / scale) = floor(y + 0.5) with y = (x + 0.5) / scale - 0.5
        set(node, AttributeProto::string("coordinate_transformation_mode", "half_pixel"));
        set(node, AttributeProto::string("nearest_mode", "round_prefer_ceil"));
    }
    Ok(())
}
