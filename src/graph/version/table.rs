//! Which operators change in which version, and how each is converted.
//!
//! Found with `onnx.defs.get_all_schemas_with_history()` of the Python package onnx 1.23, definition by definition: inputs,
//! outputs, attributes with their defaults, types, and the text. [`STEPS`] are the changes that concern a model which is
//! valid in the older version. All others between versions 7 and 21 add types (as most do at 9, 11, 13, 16, 19 and 21), or
//! say something more clearly, or add what defaults to the old behaviour:
//!
//! - attributes: ArgMax and ArgMin `select_last_index`, AveragePool `ceil_mode` and `dilations`, Cast and CastLike
//!   `saturate`, Constant `sparse_value` and `value_*`, DepthToSpace `mode`, DequantizeLinear `axis` and `block_size`,
//!   GatherND `batch_dims`, GRU, LSTM and RNN `layout`, LpPool `ceil_mode` and `dilations`, MaxPool `storage_order`,
//!   `ceil_mode` and `dilations`, QuantizeLinear `axis`, `saturate`, `block_size` and `output_dtype`, Reshape `allowzero`,
//!   Resize `antialias`, `axes` and `keep_aspect_ratio_policy`, ScatterElements and ScatterND `reduction`, Shape `start` and
//!   `end`, TopK `largest` and `sorted`;
//! - inputs and outputs: Gemm without C, MaxPool's indices, OptionalHasElement without an input, Pad's axes;
//! - broadcasting: Max, Mean, Min and Sum (version 8);
//! - negative axes and indices: from version 11 (OneHot's indices were not negative before).

use super::{Step, moves, resize, rewrite};
use crate::formats::onnx::proto::NodeProto;

/// Converts a node from the version before.
pub(super) type Convert = fn(&mut NodeProto, &mut Step<'_>) -> Result<(), String>;

/// Operator, version, and what it takes to get there.
pub(super) const STEPS: &[(&str, i64, Convert)] = &[
    // `spatial` went; outputs of training changed.
    ("BatchNormalization", 9, rewrite::batch_normalization_without_spatial),
    ("BatchNormalization", 14, rewrite::batch_normalization_for_inference),
    // Limits are inputs.
    ("Clip", 11, moves::clip),
    // The axis is an input, with another default.
    ("DFT", 20, moves::dft),
    // The mask is boolean, then of another value; the ratio is an input.
    ("Dropout", 10, rewrite::dropout),
    ("Dropout", 12, rewrite::dropout),
    // Integers went.
    ("Erf", 13, rewrite::erf),
    // Modes have other names.
    ("GridSample", 20, rewrite::grid_sample),
    // Scale and bias are for each channel, not for each group.
    ("GroupNormalization", 21, rewrite::group_normalization),
    // What was flattened to a matrix is along one axis.
    ("Hardmax", 13, rewrite::along_one_axis),
    ("LogSoftmax", 13, rewrite::along_one_axis),
    ("Softmax", 13, rewrite::along_one_axis),
    // Paddings are inputs.
    ("Pad", 11, moves::pad),
    // Axes are inputs.
    ("ReduceL1", 18, moves::axes),
    ("ReduceL2", 18, moves::axes),
    ("ReduceLogSum", 18, moves::axes),
    ("ReduceLogSumExp", 18, moves::axes),
    ("ReduceMax", 18, moves::axes),
    ("ReduceMean", 18, moves::axes),
    ("ReduceMin", 18, moves::axes),
    ("ReduceProd", 18, moves::axes),
    ("ReduceSum", 13, moves::axes),
    ("ReduceSumSquare", 18, moves::axes),
    ("Squeeze", 13, moves::axes),
    ("Unsqueeze", 13, moves::axes),
    // Coordinates are the caller's choice; later one choice went.
    ("Resize", 11, resize::with_coordinates),
    ("Resize", 13, resize::without_both_sizes),
    // Coordinates are the caller's choice.
    ("RoiAlign", 16, rewrite::roi_align),
    // The batch axis went.
    ("Scan", 9, rewrite::scan),
    // Another name.
    ("Scatter", 11, rewrite::scatter),
    ("Slice", 10, moves::slice),
    ("Split", 13, moves::split),
    ("Split", 18, rewrite::split_evenly),
    ("TopK", 10, moves::top_k),
    ("Upsample", 9, moves::upsample),
    ("Upsample", 10, resize::from_upsample),
];

/// How to convert a node to `version` from the one before, if that takes anything.
pub(super) fn step(node: &NodeProto, version: i64) -> Option<Convert> {
    let found = STEPS.iter().find(|(op_type, at, _)| *at == version && *op_type == node.op_type);
    found.filter(|_| node.is_standard()).map(|(.., convert)| *convert)
}
