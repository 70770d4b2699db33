//! Which input of which operator is a weight, and which of its axes are the output channels: one row an operator.

use crate::formats::onnx::proto::NodeProto;

/// One row of [`OPERATORS`].
pub(crate) struct Operator {
    pub op_type: &'static str,
    /// Inputs that are weights.
    pub weights: &'static [WeightInput],
}

/// A weight among the inputs of an operator.
pub(crate) struct WeightInput {
    pub input: usize,
    /// The axis of output channels of a weight of so many dimensions, unless the node uses it in an unusual way.
    pub axis: fn(&NodeProto, usize) -> Option<usize>,
}

/// Every operator whose weights can be quantized.
pub(crate) const OPERATORS: &[Operator] = &[
    Operator { op_type: "Conv", weights: &[WeightInput { input: 1, axis: |_, rank| (rank >= 3).then_some(0) }] },
    // [in, out / groups, ...]
    Operator { op_type: "ConvTranspose", weights: &[WeightInput { input: 1, axis: |_, rank| (rank >= 3).then_some(1) }] },
    // [..., K, N]; from the left it is [..., M, K].
    Operator {
        op_type: "MatMul",
        weights: &[
            WeightInput { input: 1, axis: |_, rank| (rank >= 2).then(|| rank - 1) },
            WeightInput { input: 0, axis: |_, rank| (rank >= 2).then(|| rank - 2) },
        ],
    },
    Operator {
        op_type: "Gemm",
        weights: &[WeightInput { input: 1, axis: |node, rank| (rank == 2).then_some(if node.int("transB", 0) == 0 { 1 } else { 0 }) }],
    },
    // An embedding: one row each.
    Operator {
        op_type: "Gather",
        weights: &[WeightInput { input: 0, axis: |node, rank| (rank == 2 && matches!(node.int("axis", 0), 0 | -2)).then_some(0) }],
    },
    // [directions, gates, in] and [directions, gates, hidden]
    Operator { op_type: "LSTM", weights: RECURRENT },
    Operator { op_type: "GRU", weights: RECURRENT },
    Operator { op_type: "RNN", weights: RECURRENT },
];

const RECURRENT: &[WeightInput] = &[
    WeightInput { input: 1, axis: |_, rank| (rank == 3).then_some(1) },
    WeightInput { input: 2, axis: |_, rank| (rank == 3).then_some(1) },
];

/// The row of a node's operator.
pub(crate) fn operator(node: &NodeProto) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| node.is(operator.op_type))
}
