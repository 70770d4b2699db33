//! By which way an operator can come to compute with codes, and the kernel that it then is: one row an operator.

use super::unit::{Input, Unit};
use crate::formats::onnx::proto::NodeProto;
use crate::formats::onnx::tensor::{INT16, UINT16};
use crate::graph::ops::operator;

/// A way to compute with codes. Rules are about some of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A convolution between quantized values.
    Conv,
    /// A matrix product of quantized values, with or without a quantized output.
    MatMul,
    /// The same with a bias.
    Gemm,
    /// A matrix product of floats, or of codes of 16 bits, and stored codes.
    WeightOnlyProduct,
    /// Any other operator whose weights alone are codes.
    WeightOnly,
    /// One quantized value in, one out, on their own scales.
    Unary,
    /// Two quantized values in, one out.
    Binary,
    /// Any number of quantized values in, one out.
    Concat,
    /// Two quantized values and a condition.
    Where,
    /// One quantized value in, several out, all with the same parameters.
    Split,
    /// Data is moved, or compared, whatever the codes stand for: the parameters stay.
    Moves,
    /// Places of codes are as good as places of values.
    Place,
    /// Matrix products in integers of values that are quantized when the model runs.
    Dynamic,
    /// An operator on codes as it stands in the model.
    Codes,
    /// There is no kernel on codes.
    None,
}

/// Operators that take and give values on scales of their own: `com.microsoft.QLinear…`.
const UNARY: &[&str] = &["AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"];

/// Operators that only move data: QDQ pairs around them are dropped.
#[rustfmt::skip]
const MOVES: &[&str] = &[
    "Expand", "Flatten", "Gather", "GatherElements", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
];

/// Standard operators on codes.
const ON_CODES: &[&str] = &["ConvInteger", "QLinearConv", "QLinearMatMul"];

/// Operators on codes of ONNX Runtime, but those whose names begin with QLinear or DynamicQuantize.
#[rustfmt::skip]
const ON_CODES_OF_RUNTIME: &[&str] = &[
    "GatherBlockQuantized", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE",
    "QOrderedMatMul",
];

/// The way that `node` can go. `has_bias` is that of a MatMul that becomes a Gemm.
pub(super) fn route(node: &NodeProto, inputs: &[Input<'_>], has_bias: bool) -> Route {
    let op = node.op_type.as_str();
    if node.domain == "com.microsoft" {
        let is_on_codes = op.starts_with("QLinear") || op.starts_with("DynamicQuantize") || ON_CODES_OF_RUNTIME.contains(&op);
        return if is_on_codes { Route::Codes } else { Route::None };
    }
    if !node.is_standard() {
        return Route::None;
    }
    let is_codes = |number: usize| inputs.get(number).is_some_and(|input| input.codes().is_some());
    let is_stored = |number: usize| inputs.get(number).is_some_and(Input::is_stored_codes);
    match op {
        "MatMulInteger" => Route::Dynamic,
        _ if ON_CODES.contains(&op) => Route::Codes,
        "MatMul" | "Gemm" if is_stored(1) && (!is_codes(0) || is_wide(inputs)) => Route::WeightOnlyProduct,
        "MatMul" if has_bias => Route::Gemm,
        "MatMul" => Route::MatMul,
        "Gemm" => Route::Gemm,
        "Conv" if is_stored(1) && !is_codes(0) => Route::WeightOnly,
        "Conv" => Route::Conv,
        "Add" | "Mul" => Route::Binary,
        "Concat" => Route::Concat,
        "Where" => Route::Where,
        "Split" => Route::Split,
        "ArgMax" => Route::Place,
        "Gather" if is_stored(0) => Route::WeightOnly,
        _ if UNARY.contains(&op) => Route::Unary,
        _ if MOVES.contains(&op) => Route::Moves,
        _ if takes_stored_weights(node, inputs) => Route::WeightOnly,
        _ => Route::None,
    }
}

/// Whether an activation has codes of 16 bits, which are dequantized for products.
fn is_wide(inputs: &[Input<'_>]) -> bool {
    let codes = inputs.first().and_then(Input::codes).and_then(|linear| linear.codes);
    matches!(codes, Some(INT16 | UINT16))
}

/// Whether a weight of the node, as the table of operators has it, is made of stored codes.
fn takes_stored_weights(node: &NodeProto, inputs: &[Input<'_>]) -> bool {
    let weights = operator(node).into_iter().flat_map(|operator| operator.weights);
    weights.into_iter().any(|weight| inputs.get(weight.input).is_some_and(Input::is_stored_codes))
}

/// The operator that ONNX Runtime makes of a node that computes with codes.
pub(super) fn kernel(unit: &Unit<'_, '_>) -> String {
    let quantized = unit.output.only_quantized().is_some();
    match unit.route {
        Route::Conv => "QLinearConv".into(),
        Route::MatMul if quantized => "QLinearMatMul".into(),
        Route::MatMul => "MatMulIntegerToFloat".into(),
        Route::Gemm => "QGemm".into(),
        Route::WeightOnlyProduct => "MatMulNBits".into(),
        Route::Unary | Route::Binary | Route::Concat | Route::Where => format!("QLinear{}", unit.node.op_type),
        Route::Dynamic => dynamic_kernel(unit).into(),
        _ => unit.node.op_type.clone(),
    }
}

/// What a MatMulInteger becomes together with what scales its sums.
fn dynamic_kernel(unit: &Unit<'_, '_>) -> &'static str {
    let (graphs, scope, node) = (unit.graphs, unit.scope, unit.node);
    let index = graphs.index(scope);
    let next = |value: &str| graphs.only_use(scope, value).map(|only| graphs.node(scope, only.node));
    let found = || {
        let cast = next(&node.output[0]).filter(|cast| cast.is("Cast"))?;
        let mul = next(cast.output.first()?).filter(|mul| mul.is("Mul"))?;
        let other = mul.input.iter().find(|input| *input != &cast.output[0])?;
        let (_, scales) = index.producer(other).filter(|(_, scales)| scales.is("Mul"))?;
        index.only_use(&scales.output[0])?;
        Some(scales)
    };
    // Scales that are all constant are multiplied before the model runs, and then nothing is left to be fused.
    let is_left = |scales: &&NodeProto| graphs.constant(scope, &scales.output[0]).is_none();
    let Some(scales) = found().filter(is_left) else { return "MatMulInteger" };
    let dynamic = node.input(0).and_then(|codes| index.producer(codes)).map(|(_, quantize)| quantize);
    let Some(quantize) = dynamic.filter(|quantize| quantize.is("DynamicQuantizeLinear")) else { return "MatMulIntegerToFloat" };
    let takes_all = quantize.output.iter().all(|output| index.only_use(output).is_some()) && quantize.output.len() == 3;
    let is_fixed = |value: Option<&str>| value.is_none_or(|value| graphs.constant(scope, value).is_some());
    let is_own = scales.input(0) == quantize.output.get(1).map(String::as_str);
    if takes_all && is_own && is_fixed(node.input(1)) && is_fixed(node.input(3)) && is_fixed(scales.input(1)) {
        "DynamicQuantizeMatMul"
    } else {
        "MatMulIntegerToFloat"
    }
}
