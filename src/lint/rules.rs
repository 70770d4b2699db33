//! What keeps a node from computing with codes: one row a rule.
//!
//! Conditions of ONNX Runtime are those of its optimizer (`qdq_selectors.cc`, `qdq_util.cc`, `weight_bias_quantization.cc`,
//! `matmul_integer_to_float.cc`), version 1.32 on x86-64; those of TensorRT are from the list of operators that its parser of
//! ONNX takes. A new rule is a row, its check, a test and a line of docs/lint.md.

use super::graphs::Linear;
use super::routes::Route;
use super::unit::{Between, Input, Unit};
use crate::error::show_name;
use crate::formats::onnx::tensor::{FLOAT, FLOAT16, INT4, INT8, INT16, INT32, UINT4, UINT16, element_type};

/// What a rule that applies means for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The node computes in float.
    Float,
    /// It is made to compute with codes, and then refused when the model is loaded or run.
    Refused,
    /// It computes with codes, but not what the model says.
    Inexact,
}

/// The targets that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// All of them, also `any`.
    All,
    /// ONNX Runtime on processors of all kinds.
    Ort,
    /// ONNX Runtime where sums of products saturate.
    OrtAvx2,
    /// TensorRT.
    TensorRt,
}

/// A row of [`RULES`].
pub(super) struct Rule {
    pub name: &'static str,
    pub of: Of,
    /// The ways that it is about.
    pub routes: &'static [Route],
    pub effect: Effect,
    /// What can be done.
    pub fix: &'static str,
    /// What was found, where the rule is broken.
    pub check: fn(&Unit<'_, '_>) -> Option<String>,
}

const PRODUCTS: &[Route] = &[Route::Conv, Route::MatMul, Route::Gemm];
const QUANTIZED: &[Route] = &[
    Route::Conv,
    Route::MatMul,
    Route::Gemm,
    Route::Unary,
    Route::Binary,
    Route::Concat,
    Route::Where,
    Route::Split,
    Route::Moves,
    Route::Place,
];
const NEEDS_OUTPUT: &[Route] = &[Route::Conv, Route::Unary, Route::Binary, Route::Concat, Route::Where, Route::Split, Route::Moves];
const MAY_HAVE_OUTPUT: &[Route] = &[Route::MatMul, Route::Gemm, Route::WeightOnlyProduct];
const ELEMENTWISE: &[Route] = &[Route::Unary, Route::Binary, Route::Concat, Route::Where];
const KEEPS_PARAMETERS: &[Route] = &[Route::Split, Route::Moves];
const ALL: &[Route] = &[
    Route::Conv,
    Route::MatMul,
    Route::Gemm,
    Route::WeightOnlyProduct,
    Route::WeightOnly,
    Route::Unary,
    Route::Binary,
    Route::Concat,
    Route::Where,
    Route::Split,
    Route::Moves,
    Route::Place,
    Route::None,
];

/// Every rule.
#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule { name: "activation-not-quantized", of: Of::All, routes: QUANTIZED, effect: Effect::Float, check: activation_not_quantized,
        fix: "quantize the activation: put QuantizeLinear and DequantizeLinear before this input (qtool quantize --samples)" },
    Rule { name: "weight-not-quantized", of: Of::All, routes: PRODUCTS, effect: Effect::Float, check: weight_not_quantized,
        fix: "store the weight as codes with a DequantizeLinear behind" },
    Rule { name: "weight-only", of: Of::Ort, routes: &[Route::WeightOnly], effect: Effect::Float, check: weight_only,
        fix: "quantize the activations as well (qtool quantize --samples), or keep the weight in float, which is faster than dequantizing it" },
    Rule { name: "no-integer-kernel", of: Of::Ort, routes: &[Route::None], effect: Effect::Float, check: no_integer_kernel,
        fix: "keep this operator between floats: take the QuantizeLinear and DequantizeLinear around it out" },
    Rule { name: "output-not-quantized", of: Of::Ort, routes: NEEDS_OUTPUT, effect: Effect::Float, check: output_not_quantized,
        fix: "quantize the output: a QuantizeLinear must be the first to take it" },
    Rule { name: "output-has-other-readers", of: Of::Ort, routes: NEEDS_OUTPUT, effect: Effect::Float, check: output_has_other_readers,
        fix: "let everybody read the output behind its QuantizeLinear and DequantizeLinear" },
    Rule { name: "product-has-other-readers", of: Of::Ort, routes: MAY_HAVE_OUTPUT, effect: Effect::Float, check: product_has_other_readers,
        fix: "let everybody read the output behind its QuantizeLinear and DequantizeLinear, or take the QuantizeLinear out" },
    Rule { name: "activation-function-between", of: Of::Ort, routes: &[Route::Conv, Route::MatMul, Route::Gemm, Route::Unary, Route::Binary, Route::Concat, Route::Where],
        effect: Effect::Float, check: activation_function_between,
        fix: "quantize the output to uint8 with a range that begins where the activation function does (zero point 0), or quantize before it" },
    Rule { name: "weight-only-with-relu", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: activation_function_after,
        fix: "quantize the activations as well (qtool quantize, mode dynamic or static): weights alone are not fused before a Relu or a Clip" },
    Rule { name: "weight-only-with-quantized-output", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_with_output,
        fix: "quantize the activation as well, or take the QuantizeLinear of the output out" },
    Rule { name: "type-mix", of: Of::Ort, routes: PRODUCTS, effect: Effect::Float, check: product_type_mix,
        fix: "use one type for activations and outputs: uint8, or int8 with int8 weights" },
    Rule { name: "types-differ", of: Of::Ort, routes: ELEMENTWISE, effect: Effect::Float, check: types_differ,
        fix: "quantize all inputs and the output to the same type" },
    Rule { name: "int8-stays-signed", of: Of::Ort, routes: &[Route::Conv, Route::MatMul], effect: Effect::Float, check: int8_stays_signed,
        fix: "use uint8 activations: on x86-64 int8 ones are moved to uint8 only where one QuantizeLinear feeds one DequantizeLinear that feeds one node" },
    Rule { name: "sixteen-bits", of: Of::Ort, routes: &[Route::Conv, Route::MatMul, Route::Gemm, Route::Unary, Route::Binary, Route::Concat, Route::Where, Route::Moves, Route::Place],
        effect: Effect::Float, check: sixteen_bits, fix: "use 8 bits: kernels of 16 bits do not exist" },
    Rule { name: "four-bits", of: Of::Ort, routes: QUANTIZED, effect: Effect::Float, check: four_bits,
        fix: "use 8 bits; weights of four bits are for matrix products whose activations are floats" },
    Rule { name: "bias-in-float", of: Of::Ort, routes: &[Route::Conv, Route::Gemm], effect: Effect::Float, check: bias_in_float,
        fix: "store the bias as int32 codes of scale input scale * weight scale, with a DequantizeLinear behind" },
    Rule { name: "bias-type", of: Of::Ort, routes: &[Route::Conv, Route::Gemm], effect: Effect::Float, check: bias_type,
        fix: "store the codes of the bias as int32" },
    Rule { name: "bias-shape", of: Of::Ort, routes: &[Route::Gemm], effect: Effect::Refused, check: bias_shape,
        fix: "store the bias as one dimension, a value for each output" },
    Rule { name: "alpha-beta", of: Of::Ort, routes: &[Route::Gemm], effect: Effect::Float, check: alpha_beta,
        fix: "multiply the weight by alpha and the bias by beta, and take both out" },
    Rule { name: "weight-axis", of: Of::Ort, routes: &[Route::MatMul], effect: Effect::Float, check: weight_axis,
        fix: "give the weight a scale for each output, along its last axis" },
    Rule { name: "weight-axis-ignored", of: Of::Ort, routes: PRODUCTS, effect: Effect::Inexact, check: weight_axis_ignored,
        fix: "give the weight a scale for each output: axis 0 of a Conv, 1 of a MatMul, 1 of a Gemm or 0 with transB; those of another axis are taken for these" },
    Rule { name: "zero-point-missing", of: Of::Ort, routes: &[Route::Gemm], effect: Effect::Float, check: zero_point_missing,
        fix: "write zero points out, also those of 0" },
    Rule { name: "parameters-differ", of: Of::Ort, routes: KEEPS_PARAMETERS, effect: Effect::Float, check: parameters_differ,
        fix: "give input and outputs one type, scale and zero point, all scalar constants: data is only moved" },
    Rule { name: "weight-only-scale", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_scale,
        fix: "store scales and zero points as scalars, as one a column (axis 1), or in blocks along axis 0 of 16, 32, 64, … elements" },
    Rule { name: "weight-only-transposed", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_transposed,
        fix: "store the weight transposed, [K, N], and take transB out; alpha and transA cannot be fused" },
    Rule { name: "weight-only-bias", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_bias,
        fix: "store the bias as one dimension, a value for each output, and take beta out" },
    Rule { name: "weight-only-tied", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_tied,
        fix: "store the codes and their parameters once for each node that takes them" },
    Rule { name: "weight-only-rank", of: Of::Ort, routes: &[Route::WeightOnlyProduct], effect: Effect::Float, check: weight_only_rank,
        fix: "only matrices of 8, 4 or 2 bits are fused: quantize the activations as well" },
    Rule { name: "weight-zero-points-differ", of: Of::Ort, routes: PRODUCTS, effect: Effect::Refused, check: weight_zero_points_differ,
        fix: "make weights symmetric: zero points of channels must be equal" },
    Rule { name: "activation-per-channel", of: Of::Ort, routes: PRODUCTS, effect: Effect::Refused, check: activation_per_channel,
        fix: "give activations one scale and one zero point" },
    Rule { name: "bias-scale", of: Of::Ort, routes: &[Route::Conv], effect: Effect::Float, check: bias_scale,
        fix: "store the bias with the scale input scale * weight scale" },
    Rule { name: "bias-scale-ignored", of: Of::Ort, routes: &[Route::Gemm], effect: Effect::Inexact, check: bias_scale,
        fix: "store the bias with the scale input scale * weight scale, which is what its codes are taken for" },
    Rule { name: "scale-list-of-one", of: Of::Ort, routes: &[Route::Binary], effect: Effect::Float, check: list_of_one,
        fix: "store scale and zero point as scalars" },
    Rule { name: "pool-scale-list-of-one", of: Of::Ort, routes: &[Route::Unary], effect: Effect::Refused, check: list_of_one,
        fix: "store scale and zero point as scalars" },
    Rule { name: "int8-moved", of: Of::Ort, routes: &[Route::Moves], effect: Effect::Refused, check: int8_moved,
        fix: "use uint8 activations, a version of the operators below 21, or a QuantizeLinear and DequantizeLinear behind this node too" },
    Rule { name: "opset", of: Of::All, routes: ALL, effect: Effect::Refused, check: opset,
        fix: "raise the version of the standard operators: 13 for scales of channels, 19 for float16, 21 for blocks and for 4 and 16 bits" },
    Rule { name: "parameters-not-constant", of: Of::TensorRt, routes: ALL, effect: Effect::Refused, check: parameters_not_constant,
        fix: "store scales and zero points as constants" },
    Rule { name: "zero-point", of: Of::TensorRt, routes: ALL, effect: Effect::Refused, check: zero_point,
        fix: "quantize symmetrically: TensorRT takes zero points of 0 only (qtool quantize --target tensorrt)" },
    Rule { name: "codes-not-int8", of: Of::TensorRt, routes: ALL, effect: Effect::Refused, check: codes_not_int8,
        fix: "use int8 (qtool quantize --target tensorrt)" },
    Rule { name: "bias-quantized", of: Of::TensorRt, routes: ALL, effect: Effect::Refused, check: bias_quantized,
        fix: "keep the bias in float: TensorRT dequantizes no int32" },
    Rule { name: "operator-on-codes", of: Of::TensorRt, routes: &[Route::Codes, Route::Dynamic], effect: Effect::Refused, check: operator_on_codes,
        fix: "write it as a float operator between QuantizeLinear and DequantizeLinear (qtool quantize --samples --format qdq)" },
    Rule { name: "saturation", of: Of::OrtAvx2, routes: PRODUCTS, effect: Effect::Inexact, check: saturation,
        fix: "use uint8 weights, or int8 ones of 7 bits: without VNNI sums of two products saturate at 16 bits (qtool quantize --target ort-cpu-avx2)" },
];

/// What a value is called in what was found.
fn name_of(unit: &Unit<'_, '_>, number: usize) -> String {
    let own = unit.node.input(number).unwrap_or_default();
    let added = unit.added.and_then(|add| unit.graphs.node(unit.scope, add).input.iter().find(|name| **name != unit.node.output[0]));
    let name = if number == 2 && unit.node.is("MatMul") { added.map_or("", String::as_str) } else { own };
    show_name(name).to_string()
}

fn type_name(code: Option<i64>) -> String {
    code.and_then(element_type).map_or_else(|| "an unknown type".into(), |element| element.name.to_owned())
}

/// The inputs that must be made of codes, by way.
fn activations(unit: &Unit<'_, '_>) -> Vec<usize> {
    match unit.route {
        Route::Conv | Route::MatMul | Route::Gemm | Route::Unary | Route::Split | Route::Moves | Route::Place => vec![0],
        Route::Where => vec![1, 2],
        _ => (0..unit.inputs.len()).collect(),
    }
}

fn activation_not_quantized(unit: &Unit<'_, '_>) -> Option<String> {
    let missing = activations(unit).into_iter().find(|number| unit.codes(*number).is_none())?;
    let is_constant = matches!(unit.input(missing), Input::Constant(_));
    let what = if is_constant { "a float constant" } else { "a float" };
    Some(format!("input {missing}, {}, is {what}", name_of(unit, missing)))
}

fn weight_not_quantized(unit: &Unit<'_, '_>) -> Option<String> {
    if unit.codes(1).is_some() || quantizes_by_itself(unit, 1) {
        return None;
    }
    Some(format!("input 1, {}, is a float", name_of(unit, 1)))
}

/// Whether ONNX Runtime quantizes a constant weight (1) or bias (2) itself, as it does between quantized values.
fn quantizes_by_itself(unit: &Unit<'_, '_>, number: usize) -> bool {
    let is_between = unit.codes(0).is_some_and(|linear| linear.scale.is_single()) && unit.output.only_quantized().is_some();
    let Input::Constant(constant) = unit.input(number) else { return false };
    let is_float = constant.element == Some(FLOAT);
    if !(is_between && is_float && matches!(unit.route, Route::Conv | Route::Gemm)) {
        return false;
    }
    let bias_size = match unit.input(2) {
        Input::Absent => None,
        Input::Constant(bias) => match bias.dims.as_deref() {
            Some([size]) => Some(*size),
            _ => return false,
        },
        _ => return false,
    };
    if number == 1 {
        return true;
    }
    // The scale of a bias of a Conv is compared with that of the product before the model runs.
    let is_computed = unit.codes(0).is_some_and(|linear| linear.scale.constant.is_none());
    if unit.route == Route::Conv && is_computed {
        return false;
    }
    let Some(weight) = unit.codes(1).filter(|weight| !weight.scale.is_single()) else { return bias_size.is_some() };
    let rank = weight.stored.as_ref().and_then(|stored| stored.dims.as_ref()).map_or(0, |dims| dims.len() as i64);
    let axis = if weight.axis < 0 { weight.axis + rank } else { weight.axis };
    let expected = i64::from(unit.route == Route::Gemm && unit.int("transB") == 0);
    let sizes = weight.scale.dims.as_deref();
    weight.block == 0 && axis == expected && matches!((sizes, bias_size), (Some([scales]), Some(bias)) if *scales == bias)
}

fn weight_only(unit: &Unit<'_, '_>) -> Option<String> {
    let (number, _) = unit.all_codes().find(|(_, linear)| linear.stored.is_some())?;
    Some(format!("input {number}, {}, is dequantized whenever the model runs", name_of(unit, number)))
}

fn no_integer_kernel(unit: &Unit<'_, '_>) -> Option<String> {
    let (number, _) = unit.all_codes().next()?;
    Some(format!("{} takes codes as input {number} but has no kernel for them", unit.node.op_type))
}

fn output_not_quantized(unit: &Unit<'_, '_>) -> Option<String> {
    if carries_by_itself(unit) || matches!(unit.output.between, Between::Stays(_)) {
        return None;
    }
    if unit.route == Route::Split {
        let all = (1..unit.node.output.len()).all(|number| other_output(unit, number).is_some()) && !unit.output.quantized.is_empty();
        return (!all).then(|| "not every output is quantized".into());
    }
    if !unit.output.quantized.is_empty() {
        return None;
    }
    let output = show_name(unit.node.output.first().map_or("", String::as_str)).to_string();
    let graph_output = if unit.output.is_output { "an output of the graph, " } else { "" };
    Some(format!("{output}, {graph_output}is read as a float"))
}

/// The QuantizeLinear that alone takes another output of a Split.
fn other_output<'g>(unit: &Unit<'_, 'g>, number: usize) -> Option<Linear<'g>> {
    let value = unit.node.output.get(number)?;
    let only = unit.graphs.only_use(unit.scope, value).filter(|only| only.input == 0)?;
    unit.graphs.linear(unit.scope, only.node).filter(|linear| linear.node.op_type == "QuantizeLinear")
}

/// Whether a node that moves data gets the parameters of its input for its output: QDQPropagationTransformer.
fn carries_by_itself(unit: &Unit<'_, '_>) -> bool {
    const CARRIES: &[&str] = &["MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"];
    let carries = unit.route == Route::Moves && CARRIES.contains(&unit.node.op_type.as_str());
    let is_free = !unit.output.is_output || unit.output.edges == 0;
    carries && unit.codes(0).is_some_and(Linear::is_single_constant) && is_free && unit.output.quantized.is_empty()
}

fn output_has_other_readers(unit: &Unit<'_, '_>) -> Option<String> {
    let (quantized, edges) = (unit.output.quantized.len(), unit.output.edges);
    if quantized == 0 || unit.output.only_quantized().is_some() || unit.route == Route::Split {
        return None;
    }
    Some(others(unit, quantized, edges))
}

fn others(unit: &Unit<'_, '_>, quantized: usize, edges: usize) -> String {
    let output = show_name(unit.node.output.first().map_or("", String::as_str)).to_string();
    if unit.output.is_output {
        return format!("{output} is an output of the graph besides");
    }
    if edges > quantized { format!("{output} is read as a float besides") } else { format!("{output} is quantized in {quantized} ways") }
}

fn product_has_other_readers(unit: &Unit<'_, '_>) -> Option<String> {
    let quantized = unit.output.quantized.len();
    if quantized == 0 || unit.output.only_quantized().is_some() || unit.route == Route::WeightOnlyProduct {
        return None;
    }
    Some(others(unit, quantized, unit.output.edges))
}

fn activation_function_between(unit: &Unit<'_, '_>) -> Option<String> {
    let Between::Stays(function) = unit.output.between else { return None };
    let what = match unit.output.quantized.first() {
        None => format!("{function} follows, and its output is not quantized"),
        Some(linear) => {
            let zero_point = linear.zero_points().and_then(|values| values.first().copied());
            let zero_point = zero_point.map_or_else(|| "another".into(), |value| value.to_string());
            format!("{function} follows, and codes of {} with zero point {zero_point} do not do its work", type_name(linear.codes))
        }
    };
    Some(what)
}

fn activation_function_after(unit: &Unit<'_, '_>) -> Option<String> {
    match unit.output.between {
        Between::Absorbed if unit.codes(0).is_none() => Some("an activation function follows, and a QuantizeLinear".into()),
        _ => activation_function_between(unit),
    }
}

fn weight_only_with_output(unit: &Unit<'_, '_>) -> Option<String> {
    let quantized = unit.output.quantized.first()?;
    let Some(input) = unit.codes(0) else {
        return (unit.output.between != Between::Absorbed).then(|| "the output is quantized, the activation is not".into());
    };
    let only = unit.output.only_quantized().is_some();
    (!only || quantized.codes != input.codes)
        .then(|| format!("the activation has codes of {}, the output of {}", type_name(input.codes), type_name(quantized.codes)))
}

fn is_sixteen(code: Option<i64>) -> bool {
    matches!(code, Some(INT16 | UINT16))
}

fn is_four(code: Option<i64>) -> bool {
    matches!(code, Some(INT4 | UINT4))
}

fn product_type_mix(unit: &Unit<'_, '_>) -> Option<String> {
    let (input, weight) = (unit.type_of(0)?, unit.type_of(1));
    let output = unit.output.only_quantized().and_then(|_| unit.output_type());
    if let Some(output) = output.filter(|output| *output != input) {
        return Some(format!("activations are {}, outputs {}", type_name(Some(input)), type_name(Some(output))));
    }
    let weight = weight.filter(|weight| input == INT8 && *weight != input)?;
    Some(format!("activations are int8, weights {}", type_name(Some(weight))))
}

fn types_differ(unit: &Unit<'_, '_>) -> Option<String> {
    let mut types: Vec<Option<i64>> =
        activations(unit).into_iter().filter(|number| unit.codes(*number).is_some()).map(|number| unit.type_of(number)).collect();
    if let Some(output) = unit.output.only_quantized().and_then(|_| unit.output_type()) {
        types.push(Some(output));
    }
    let first = *types.first()?;
    let other = types.iter().find(|code| **code != first)?;
    Some(format!("{} and {}", type_name(first), type_name(*other)))
}

fn int8_stays_signed(unit: &Unit<'_, '_>) -> Option<String> {
    (unit.type_of(0) == Some(INT8))
        .then(|| format!("input 0, {}, has int8 codes that others take too, or that no QuantizeLinear makes", name_of(unit, 0)))
}

fn sixteen_bits(unit: &Unit<'_, '_>) -> Option<String> {
    const COMPARES: &[&str] = &["MaxPool", "ReduceMax", "ReduceMin", "Resize"];
    if unit.route == Route::Moves && !COMPARES.contains(&unit.node.op_type.as_str()) {
        return None;
    }
    let (number, linear) = unit.all_codes().find(|(_, linear)| is_sixteen(linear.codes))?;
    Some(format!("input {number}, {}, has codes of {}", name_of(unit, number), type_name(linear.codes)))
}

fn four_bits(unit: &Unit<'_, '_>) -> Option<String> {
    let (number, linear) = unit.all_codes().find(|(_, linear)| is_four(linear.codes))?;
    Some(format!("input {number}, {}, has codes of {}", name_of(unit, number), type_name(linear.codes)))
}

fn bias_in_float(unit: &Unit<'_, '_>) -> Option<String> {
    if !unit.input(2).is_there() || unit.codes(2).is_some() || quantizes_by_itself(unit, 2) {
        return None;
    }
    Some(format!("input 2, {}, is a float", name_of(unit, 2)))
}

fn bias_type(unit: &Unit<'_, '_>) -> Option<String> {
    let linear = unit.codes(2).filter(|linear| linear.codes != Some(INT32))?;
    Some(format!("input 2, {}, has codes of {}", name_of(unit, 2), type_name(linear.codes)))
}

fn bias_shape(unit: &Unit<'_, '_>) -> Option<String> {
    let dims = unit.codes(2)?.stored.as_ref()?.dims.clone()?;
    (dims.len() != 1).then(|| format!("input 2, {}, has the shape {dims:?}", name_of(unit, 2)))
}

fn alpha_beta(unit: &Unit<'_, '_>) -> Option<String> {
    let (alpha, beta) = (unit.node.float("alpha", 1.0), unit.node.float("beta", 1.0));
    let is_scaled = unit.input(2).is_there() && unit.node.is("Gemm") && (alpha != 1.0 || beta != 1.0);
    is_scaled.then(|| format!("alpha is {alpha}, beta {beta}"))
}

/// The axis of the scales of a weight and that of its outputs, where there is a scale for each.
fn weight_axes(unit: &Unit<'_, '_>) -> Option<(i64, i64)> {
    let weight = unit.codes(1).filter(|weight| !weight.scale.is_single())?;
    let rank = weight.stored.as_ref()?.dims.as_ref()?.len() as i64;
    let axis = if weight.axis < 0 { weight.axis + rank } else { weight.axis };
    let expected = match unit.route {
        Route::Conv => 0,
        Route::Gemm => i64::from(unit.int("transB") == 0),
        _ => rank - 1,
    };
    Some((axis, expected))
}

/// Whether a product is fused only if scales are along its outputs: that of a MatMul with a quantized output.
fn is_axis_checked(unit: &Unit<'_, '_>) -> bool {
    unit.route == Route::MatMul && !unit.output.quantized.is_empty()
}

fn weight_axis(unit: &Unit<'_, '_>) -> Option<String> {
    let (axis, expected) = weight_axes(unit).filter(|(axis, expected)| axis != expected)?;
    is_axis_checked(unit).then(|| format!("scales of the weight are along axis {axis}, outputs along {expected}"))
}

fn weight_axis_ignored(unit: &Unit<'_, '_>) -> Option<String> {
    let (axis, expected) = weight_axes(unit).filter(|(axis, expected)| axis != expected)?;
    (!is_axis_checked(unit)).then(|| format!("scales of the weight are along axis {axis}, outputs along {expected}"))
}

/// What is wrong with the scale of an int32 bias, which must be that of the product.
fn wrong_bias_scale(unit: &Unit<'_, '_>) -> Option<String> {
    let bias = unit.codes(2).filter(|bias| bias.codes == Some(INT32))?;
    let scales = |linear: &Linear<'_>| linear.scale.floats().filter(|scales| !scales.is_empty());
    let (Some(input), Some(weight), Some(bias)) = (scales(unit.codes(0)?), scales(unit.codes(1)?), scales(bias)) else {
        return Some("the scale of the bias, or those of the product, are computed when the model runs".into());
    };
    let [input] = input[..] else { return None };
    let count = weight.len().max(bias.len());
    let mut pairs = (0..count).map(|i| (input * weight[i % weight.len()], bias[i % bias.len()]));
    let (expected, found) = pairs.find(|(expected, found)| (expected - found).abs() > SCALE_TOLERANCE * expected.abs())?;
    Some(format!("the scale of the bias is {found}, that of the product {expected}"))
}

fn bias_scale(unit: &Unit<'_, '_>) -> Option<String> {
    wrong_bias_scale(unit)
}

fn list_of_one(unit: &Unit<'_, '_>) -> Option<String> {
    let is_list = |linear: &&Linear<'_>| linear.scale.dims.as_deref() == Some(&[1]);
    let concerned = unit.route == Route::Binary || unit.node.is("AveragePool");
    let linear = unit.all_codes().map(|(_, linear)| linear).chain(&unit.output.quantized).filter(|_| concerned).find(is_list)?;
    Some(format!("scale {} has the shape [1]", show_name(linear.scale.name)))
}

fn int8_moved(unit: &Unit<'_, '_>) -> Option<String> {
    let is_moved = carries_by_itself(unit) && unit.codes(0).is_some_and(|linear| linear.codes == Some(INT8));
    (is_moved && unit.graphs.opset >= 21)
        .then(|| format!("int8 codes are moved, and the version of the operators is {}", unit.graphs.opset))
}

fn zero_point_missing(unit: &Unit<'_, '_>) -> Option<String> {
    let (number, _) = unit.all_codes().find(|(number, linear)| *number < 2 && linear.zero_point.is_none())?;
    Some(format!("input {number}, {}, has no zero point", name_of(unit, number)))
}

fn parameters_differ<'g>(unit: &Unit<'_, 'g>) -> Option<String> {
    let input = unit.codes(0)?;
    if carries_by_itself(unit) {
        return None;
    }
    let mut outputs: Vec<Linear<'g>> = unit.output.only_quantized().cloned().into_iter().collect();
    outputs.extend((1..unit.node.output.len()).filter_map(|number| other_output(unit, number)));
    if outputs.is_empty() {
        return None;
    }
    if !input.is_single_constant() || input.zero_point.is_none() {
        return Some("the input has no constant scalar scale and zero point".into());
    }
    let of = |linear: &Linear<'g>| {
        (
            unit.graphs.runtime_codes(unit.scope, linear),
            linear.scale.floats(),
            linear.zero_point.as_ref().and_then(|zero_point| zero_point.ints()),
        )
    };
    let is_other = |linear: &&Linear<'g>| !linear.is_single_constant() || of(linear) != of(input);
    let other = outputs.iter().find(is_other)?;
    Some(format!("the output {} is on another grid than the input", show_name(&other.node.input[0])))
}

fn weight_only_scale(unit: &Unit<'_, '_>) -> Option<String> {
    let weight = unit.codes(1)?;
    let dims = weight.stored.as_ref()?.dims.clone()?;
    let [rows, columns] = dims[..] else { return None };
    let scale = weight.scale.constant.as_ref();
    let zero_point = weight.zero_point.as_ref();
    if scale.is_none() || zero_point.is_some_and(|param| param.constant.is_none()) {
        return Some("scale and zero point are no constants".into());
    }
    let type_fits = matches!(scale.and_then(|scale| scale.element), Some(FLOAT | FLOAT16));
    let sizes = weight.scale.dims.clone()?;
    let same = zero_point.is_none_or(|param| param.dims.as_ref() == Some(&sizes));
    let fits = match (&sizes[..], weight.block) {
        ([], 0) => true,
        ([size], 0) => *size == columns && weight.axis == 1,
        ([blocks, size], block) if block > 0 => {
            let is_power = block >= 16 && block & (block - 1) == 0;
            weight.axis == 0
                && weight.node.attribute("axis").is_some()
                && is_power
                && *blocks == (rows + block - 1) / block
                && *size == columns
        }
        _ => false,
    };
    (!(type_fits && same && fits)).then(|| format!("scales have the shape {sizes:?} along axis {}, the weight {dims:?}", weight.axis))
}

fn weight_only_transposed(unit: &Unit<'_, '_>) -> Option<String> {
    if !unit.node.is("Gemm") {
        return None;
    }
    let set = ["transA", "transB"].into_iter().find(|name| unit.int(name) != 0);
    let alpha = unit.node.float("alpha", 1.0);
    match set {
        Some(name) => Some(format!("{name} is set")),
        None => ((alpha - 1.0).abs() > 1e-6).then(|| format!("alpha is {alpha}")),
    }
}

fn weight_only_bias(unit: &Unit<'_, '_>) -> Option<String> {
    if !unit.input(2).is_there() {
        return None;
    }
    let beta = unit.node.float("beta", 1.0);
    if (beta - 1.0).abs() > 1e-6 && unit.node.is("Gemm") {
        return Some(format!("beta is {beta}"));
    }
    let columns = unit.codes(1)?.stored.as_ref()?.dims.as_ref()?.last().copied();
    let shape = match (unit.input(2), unit.added) {
        (Input::Constant(constant), _) => constant.dims.clone().map(|dims| dims.into_iter().map(Some).collect()),
        (Input::Codes(linear), _) => {
            linear.stored.as_ref().and_then(|stored| stored.dims.clone()).map(|dims| dims.into_iter().map(Some).collect())
        }
        (_, None) => unit.node.input(2).and_then(|bias| unit.graphs.shape(unit.scope, bias)),
        (_, Some(_)) => None,
    };
    let fits = matches!(shape.as_deref(), Some([size]) if *size == columns);
    (!fits).then(|| format!("input 2, {}, is not one value for each of the outputs", name_of(unit, 2)))
}

fn weight_only_tied(unit: &Unit<'_, '_>) -> Option<String> {
    let weight = unit.codes(1)?;
    let index = unit.graphs.index(unit.scope);
    let floats = weight.node.output.first()?;
    if unit.graphs.edges(unit.scope, floats) + usize::from(index.is_output(floats)) > 1 {
        return Some(format!("the dequantized weight {} is read by several", show_name(floats)));
    }
    let codes = weight.node.input(0)?;
    (unit.graphs.edges(unit.scope, codes) > 1).then(|| format!("the codes {} are read by several", show_name(codes)))
}

fn weight_only_rank(unit: &Unit<'_, '_>) -> Option<String> {
    let weight = unit.codes(1)?;
    let is_narrow = weight.codes.and_then(element_type).is_some_and(|element| element.bits <= 8);
    let rank = weight.stored.as_ref()?.dims.as_ref()?.len();
    (rank != 2 || !is_narrow).then(|| format!("the weight has {rank} dimensions and codes of {}", type_name(weight.codes)))
}

fn weight_zero_points_differ(unit: &Unit<'_, '_>) -> Option<String> {
    let zero_points = unit.codes(1)?.zero_points()?;
    let other = zero_points.iter().find(|value| **value != zero_points[0])?;
    (unit.route == Route::Conv).then(|| format!("zero points of the weight are {} and {other}", zero_points[0]))
}

fn activation_per_channel(unit: &Unit<'_, '_>) -> Option<String> {
    let linear = unit.codes(0).filter(|linear| linear.scale.dims.is_some() && !linear.scale.is_single())?;
    Some(format!("input 0, {}, has scales of the shape {:?}", name_of(unit, 0), linear.scale.dims.clone().unwrap_or_default()))
}

/// How far scales of biases may be off the product of the others, relative to it: they are products of floats.
const SCALE_TOLERANCE: f32 = 1e-3;

fn opset(unit: &Unit<'_, '_>) -> Option<String> {
    let opset = unit.graphs.opset;
    let all = unit.all_codes().map(|(_, linear)| linear).chain(&unit.output.quantized).filter(|linear| linear.node.is_standard());
    let needs = |linear: &Linear<'_>| {
        let is_half = linear.scale.constant.as_ref().and_then(|scale| scale.element) == Some(FLOAT16);
        match () {
            () if linear.block > 0 || is_four(linear.codes) || is_sixteen(linear.codes) => (21, "blocks, or codes of 4 or 16 bits"),
            () if is_half => (19, "float16 scales"),
            () if linear.scale.dims.is_some() && !linear.scale.is_single() => (13, "scales of channels"),
            () => (10, "codes"),
        }
    };
    let (needed, what) = all.map(needs).max_by_key(|(needed, _)| *needed)?;
    (opset < needed).then(|| format!("version {opset} of the standard operators has no {what}"))
}

fn parameters_not_constant(unit: &Unit<'_, '_>) -> Option<String> {
    let linear = unit
        .all_codes()
        .map(|(_, linear)| linear)
        .chain(&unit.output.quantized)
        .find(|linear| linear.scale.constant.is_none() || linear.zero_point.as_ref().is_some_and(|param| param.constant.is_none()))?;
    Some(format!("scale {} is computed when the model runs", show_name(linear.scale.name)))
}

fn zero_point(unit: &Unit<'_, '_>) -> Option<String> {
    let all = unit.all_codes().map(|(_, linear)| linear).chain(&unit.output.quantized);
    let found =
        all.filter(|linear| linear.codes != Some(INT32)).find_map(|linear| linear.zero_points()?.into_iter().find(|value| *value != 0))?;
    Some(format!("a zero point is {found}"))
}

fn codes_not_int8(unit: &Unit<'_, '_>) -> Option<String> {
    let is_taken = |linear: &&Linear<'_>| match linear.codes {
        Some(INT8 | INT32) | None => true,
        Some(INT4) => linear.stored.is_some(),
        // 8-bit floats.
        Some(code) => (17..=20).contains(&code),
    };
    let mut all = unit.all_codes().map(|(_, linear)| linear).chain(&unit.output.quantized);
    let other = all.find(|linear| !is_taken(linear))?;
    Some(format!("codes are {}", type_name(other.codes)))
}

fn bias_quantized(unit: &Unit<'_, '_>) -> Option<String> {
    let (number, _) = unit.all_codes().find(|(_, linear)| linear.codes == Some(INT32))?;
    Some(format!("input {number}, {}, has codes of int32", name_of(unit, number)))
}

fn operator_on_codes(unit: &Unit<'_, '_>) -> Option<String> {
    Some(format!("{} is none of the operators that TensorRT takes", unit.node.op_type))
}

/// Largest sum of two neighbouring weights whose products with 255 fit 16 bits.
const LARGEST_PAIR: i32 = 128;

fn saturation(unit: &Unit<'_, '_>) -> Option<String> {
    let weight = unit.codes(1).filter(|weight| weight.codes == Some(INT8) && unit.codes(0).is_some())?;
    let tensor = weight.stored.as_ref()?.tensor?;
    let codes = tensor.contents().ok()?;
    // How codes are paired depends on the kernel: no two of 7 bits can saturate, whichever they are.
    let largest = codes.iter().map(|code| i32::from(code.cast_signed()).abs()).max()?;
    (2 * largest > LARGEST_PAIR).then(|| format!("codes of the weight reach {largest}, those of 7 bits end at 64"))
}
