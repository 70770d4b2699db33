//! What a node takes and what becomes of its output, as far as quantization goes.
//!
//! QuantizeLinear and DequantizeLinear are also found behind operators that only move data, through which ONNX Runtime
//! carries them, and behind a Relu or a Clip that the codes do themselves.

use super::graphs::{Constant, Graphs, Linear};
use super::routes::{Route, route};
use crate::formats::onnx::proto::NodeProto;
use crate::formats::onnx::tensor::{FLOAT, INT8, INT16, UINT8, UINT16};
use crate::graph::pairs::{is_dequantize, is_quantize};
use std::collections::HashSet;

/// Operators through which ONNX Runtime carries quantization: QDQPropagationTransformer.
const CARRIES: &[&str] = &["MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"];

/// Most nodes that quantization is carried through.
const LONGEST_WAY: usize = 64;

/// An input of a node.
#[derive(Clone, Debug)]
pub(super) enum Input<'g> {
    /// It is left out.
    Absent,
    /// A DequantizeLinear makes it of codes.
    Codes(Box<Linear<'g>>),
    /// It is known, and not made of codes.
    Constant(Constant<'g>),
    /// Anything else.
    Float,
}

/// A Relu or a Clip between a node and what quantizes its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between<'g> {
    Nothing,
    /// The codes do what it does.
    Absorbed,
    /// It stays, and nothing is fused around it.
    Stays(&'g str),
}

/// What becomes of a node's first output.
#[derive(Clone, Debug)]
pub(super) struct Output<'g> {
    /// How often nodes and bodies take it.
    pub edges: usize,
    /// Whether it is an output of the graph.
    pub is_output: bool,
    /// Each QuantizeLinear that takes it, those that are alike once.
    pub quantized: Vec<Linear<'g>>,
    pub between: Between<'g>,
}

/// A node with what is around it.
pub(super) struct Unit<'a, 'g> {
    pub graphs: &'a Graphs<'g>,
    pub scope: usize,
    pub place: usize,
    pub node: &'g NodeProto,
    pub route: Route,
    pub inputs: Vec<Input<'g>>,
    pub output: Output<'g>,
    /// The Add of a bias that ONNX Runtime makes a part of a MatMul, which is a Gemm then.
    pub added: Option<usize>,
}

impl<'g> Input<'g> {
    pub(super) fn codes(&self) -> Option<&Linear<'g>> {
        match self {
            Input::Codes(linear) => Some(linear),
            _ => None,
        }
    }

    /// Whether it is made of constant codes.
    pub(super) fn is_stored_codes(&self) -> bool {
        self.codes().is_some_and(|linear| linear.stored.is_some())
    }

    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Input::Absent)
    }
}

impl<'g> Output<'g> {
    /// The one QuantizeLinear that takes the value, if nobody else does.
    pub(super) fn only_quantized(&self) -> Option<&Linear<'g>> {
        match &self.quantized[..] {
            [only] if self.edges == 1 && !self.is_output => Some(only),
            _ => None,
        }
    }
}

impl<'a, 'g> Unit<'a, 'g> {
    pub(super) fn new(graphs: &'a Graphs<'g>, scope: usize, place: usize) -> Self {
        let node = graphs.node(scope, place);
        let mut inputs: Vec<Input<'g>> = node.input.iter().map(|value| input(graphs, scope, value, LONGEST_WAY)).collect();
        let mut output = output(graphs, scope, node);
        let added = bias_that_is_added(graphs, scope, node);
        if let Some((add, bias)) = added {
            let is_matrix = node.input(0).and_then(|a| graphs.shape(scope, a)).is_some_and(|a| a.len() == 2);
            if !is_matrix && inputs[0].codes().is_some_and(|linear| !linear.is_single_constant()) {
                inputs[0] = Input::Float;
            }
            inputs.push(input(graphs, scope, graphs.node(scope, add).input(bias).unwrap_or(""), LONGEST_WAY));
            output = self::output(graphs, scope, graphs.node(scope, add));
            if !is_matrix {
                output = behind_reshape(graphs, scope, graphs.node(scope, add));
            }
        }
        let route = route(node, &inputs, added.is_some());
        Unit { graphs, scope, place, node, route, inputs, output, added: added.map(|(add, _)| add) }
    }

    pub(super) fn input(&self, number: usize) -> &Input<'g> {
        self.inputs.get(number).unwrap_or(&Input::Absent)
    }

    /// The codes of an input.
    pub(super) fn codes(&self, number: usize) -> Option<&Linear<'g>> {
        self.input(number).codes()
    }

    /// The type of the codes of an input as kernels see it.
    pub(super) fn type_of(&self, number: usize) -> Option<i64> {
        self.codes(number).and_then(|linear| self.graphs.runtime_codes(self.scope, linear))
    }

    /// The type of the output's codes as kernels see it.
    pub(super) fn output_type(&self) -> Option<i64> {
        self.output.quantized.first().and_then(|linear| self.graphs.runtime_codes(self.scope, linear))
    }

    /// Inputs that are made of codes, with their numbers.
    pub(super) fn all_codes(&self) -> impl Iterator<Item = (usize, &Linear<'g>)> {
        self.inputs.iter().enumerate().filter_map(|(number, input)| Some((number, input.codes()?)))
    }

    /// An integer attribute, of the Gemm that a MatMul becomes where it does.
    pub(super) fn int(&self, name: &str) -> i64 {
        self.node.int(name, 0)
    }
}

/// Where a value comes from.
fn input<'g>(graphs: &Graphs<'g>, scope: usize, value: &str, longest: usize) -> Input<'g> {
    if value.is_empty() {
        return Input::Absent;
    }
    if let Some(constant) = graphs.constant(scope, value) {
        return Input::Constant(constant);
    }
    match dequantized(graphs, scope, value, longest) {
        Some(linear) => Input::Codes(Box::new(linear)),
        None => Input::Float,
    }
}

/// The DequantizeLinear that makes a value, or whose parameters are carried to it.
fn dequantized<'g>(graphs: &Graphs<'g>, scope: usize, value: &str, longest: usize) -> Option<Linear<'g>> {
    let index = graphs.index(scope);
    let (place, node) = index.producer(value).filter(|_| longest > 0)?;
    if is_dequantize(node) {
        return graphs.linear(scope, place);
    }
    if !node.is_standard() {
        return None;
    }
    match node.op_type.as_str() {
        "Identity" => dequantized(graphs, scope, node.input(0)?, longest - 1),
        op if CARRIES.contains(&op) => {
            let linear = dequantized(graphs, scope, node.input(0)?, longest - 1)?;
            if op == "Transpose" && linear.stored.is_some() && linear.block == 0 && !linear.scale.is_single() {
                return transposed(linear, node);
            }
            (linear.is_single_constant() && !index.is_output(value)).then_some(linear)
        }
        _ => None,
    }
}

/// Codes of a constant behind a Transpose, which ONNX Runtime transposes before it runs.
fn transposed<'g>(mut linear: Linear<'g>, node: &NodeProto) -> Option<Linear<'g>> {
    let stored = linear.stored.as_mut()?;
    let dims = stored.dims.clone()?;
    let axis = if linear.axis < 0 { linear.axis + dims.len() as i64 } else { linear.axis };
    let perm = node.attribute("perm").map(|attribute| attribute.ints.clone());
    let perm = perm.unwrap_or_else(|| (0..dims.len() as i64).rev().collect());
    stored.dims = super::graphs::permuted(&dims, node);
    stored.tensor = None;
    linear.axis = perm.iter().position(|from| *from == axis)? as i64;
    Some(linear)
}

/// What becomes of a node's first output.
fn output<'g>(graphs: &Graphs<'g>, scope: usize, node: &NodeProto) -> Output<'g> {
    let index = graphs.index(scope);
    let mut value = node.output.first().map_or("", String::as_str);
    for _ in 0..LONGEST_WAY {
        match graphs.only_use(scope, value).map(|only| graphs.node(scope, only.node)) {
            Some(reader) if reader.is("Identity") && !index.is_output(&reader.output[0]) => value = &reader.output[0],
            _ => break,
        }
    }
    let mut output =
        Output { edges: graphs.edges(scope, value), is_output: index.is_output(value), quantized: Vec::new(), between: Between::Nothing };
    let Some(only) = graphs.only_use(scope, value) else {
        output.quantized = different(graphs, scope, value);
        // Those that are alike become one.
        let all = index.uses(value).iter().filter(|only| only.input == 0 && is_quantize(graphs.node(scope, only.node))).count();
        output.edges -= all - output.quantized.len();
        return output;
    };
    let reader = graphs.node(scope, only.node);
    let limits = (reader.is("Relu") || reader.is("Clip")) && only.input == 0;
    if limits && graphs.only_use(scope, &reader.output[0]).is_some() {
        output.quantized = carried_quantize(graphs, scope, &reader.output[0], LONGEST_WAY).into_iter().collect();
        let is_done = output.quantized.first().is_some_and(|linear| is_done_by_codes(graphs, scope, reader, linear));
        output.between = if is_done { Between::Absorbed } else { Between::Stays(&reader.op_type) };
    } else {
        output.quantized = carried_quantize(graphs, scope, value, LONGEST_WAY).into_iter().collect();
    }
    output
}

/// What becomes of the output of a Gemm behind which there will be a Reshape, through which quantization is carried.
fn behind_reshape<'g>(graphs: &Graphs<'g>, scope: usize, node: &NodeProto) -> Output<'g> {
    let quantized = carried_quantize(graphs, scope, node.output.first().map_or("", String::as_str), LONGEST_WAY);
    let quantized = quantized.filter(Linear::is_single_constant).into_iter().collect();
    Output { edges: 1, is_output: false, quantized, between: Between::Nothing }
}

/// Each QuantizeLinear that takes a value, those that are alike once.
fn different<'g>(graphs: &Graphs<'g>, scope: usize, value: &str) -> Vec<Linear<'g>> {
    let (mut found, mut known): (Vec<Linear<'g>>, HashSet<&[String]>) = Default::default();
    for only in graphs.index(scope).uses(value).iter().filter(|only| only.input == 0 && is_quantize(graphs.node(scope, only.node))) {
        if let Some(linear) = graphs.linear(scope, only.node)
            && known.insert(&linear.node.input)
        {
            found.push(linear);
        }
    }
    found
}

/// The QuantizeLinear that alone takes a value, or whose parameters are carried back to it.
fn carried_quantize<'g>(graphs: &Graphs<'g>, scope: usize, value: &str, longest: usize) -> Option<Linear<'g>> {
    let only = graphs.only_use(scope, value).filter(|only| only.input == 0 && longest > 0)?;
    let node = graphs.node(scope, only.node);
    if is_quantize(node) {
        return graphs.linear(scope, only.node);
    }
    let carries = node.is_standard() && CARRIES.contains(&node.op_type.as_str());
    let linear = carried_quantize(graphs, scope, node.output.first().filter(|_| carries)?, longest - 1)?;
    linear.is_single_constant().then_some(linear)
}

/// Whether codes begin and end where a Relu or a Clip does.
fn is_done_by_codes(graphs: &Graphs<'_>, scope: usize, node: &NodeProto, linear: &Linear<'_>) -> bool {
    let (lowest, highest) = match linear.codes {
        Some(INT8) => (-128, 127),
        Some(UINT8) => (0, 255),
        Some(INT16) => (-32768, 32767),
        Some(UINT16) => (0, 65535),
        _ => return false,
    };
    let Some([zero_point]) = linear.zero_points().and_then(|values| <[i64; 1]>::try_from(values).ok()) else { return false };
    if node.is("Relu") {
        return zero_point == lowest;
    }
    let is_scalar = |dims: &Option<Vec<i64>>| dims.as_ref().is_some_and(Vec::is_empty);
    let is_plain = is_scalar(&linear.scale.dims) && linear.zero_point.as_ref().is_none_or(|param| is_scalar(&param.dims));
    let Some(scale) = linear.scale.floats().and_then(|scales| scales.first().copied()).filter(|_| is_plain) else { return false };
    let limit = |input: usize, name: &str, default: f32| match node.input(input) {
        Some(value) => graphs.constant(scope, value)?.tensor?.to_floats()?.first().copied(),
        None => Some(node.float(name, default)),
    };
    let (Some(min), Some(max)) = (limit(1, "min", f32::MIN), limit(2, "max", f32::MAX)) else { return false };
    // As IsClipMadeRedundantByQ rounds, and ClipQuantFusion compares, of which either is enough.
    let code = |limit: f32| f64::from(limit / scale).round_ties_even().clamp(-2f64.powi(31), 2f64.powi(31) - 1.0) as i64 + zero_point;
    let by_codes = code(min) <= lowest && code(max) >= highest;
    let (lower, upper) = (scale * (lowest - zero_point) as f32, scale * (highest - zero_point) as f32);
    by_codes || (linear.zero_point.is_some() && min - lower <= f32::EPSILON && upper - max <= f32::EPSILON)
}

/// The Add behind a MatMul, and which of its inputs is the bias, if ONNX Runtime makes one Gemm of both: MatMulAddFusion.
fn bias_that_is_added(graphs: &Graphs<'_>, scope: usize, node: &NodeProto) -> Option<(usize, usize)> {
    if !node.is("MatMul") {
        return None;
    }
    let value = node.output.first()?;
    let only = graphs.only_use(scope, value)?;
    let add = graphs.node(scope, only.node);
    if !add.is("Add") || add.input(0) == add.input(1) {
        return None;
    }
    let (a, b) = (graphs.shape(scope, node.input(0)?)?, graphs.shape(scope, node.input(1)?)?);
    let bias = 1 - only.input;
    let bias_name = add.input(bias)?;
    let bias_shape = graphs.shape(scope, bias_name)?;
    let is_float = graphs.element(scope, bias_name).is_none_or(|element| element == FLOAT);
    if b.len() != 2 || !is_float {
        return None;
    }
    let is_matrix = a.len() == 2;
    if !is_matrix && (a.iter().chain(&b).any(Option::is_none) || is_behind_attention(graphs, scope, node)) {
        return None;
    }
    let columns = b[1];
    let fits = match bias_shape[..] {
        [size] => size == columns && size.is_some(),
        [rows, size] if is_matrix => {
            let is_row = rows == Some(1) && size == columns;
            let is_matching = rows.is_some() && rows == a[0];
            is_row || (is_matching && (size == Some(1) || size == columns))
        }
        _ => false,
    };
    fits.then_some((only.node, bias))
}

/// Whether a MatMul projects what attention gives, Softmax → MatMul → Transpose → Reshape, which is left to other fusions.
fn is_behind_attention(graphs: &Graphs<'_>, scope: usize, node: &NodeProto) -> bool {
    let mut value = node.input(0).unwrap_or_default();
    for op_type in ["Reshape", "Transpose", "MatMul", "Softmax"] {
        match graphs.index(scope).producer(value) {
            Some((_, producer)) if producer.is(op_type) => value = producer.input(0).unwrap_or_default(),
            _ => return false,
        }
    }
    true
}
