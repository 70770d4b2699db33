//! Static: QuantizeLinear and DequantizeLinear around values and weights, where runtimes make integer kernels of them.
//!
//! [`Style::Operators`] writes the same decisions as operators on codes instead.
//!
//! Each value has one pair, whoever takes it. The output of a convolution goes through its pair for everybody; other values
//! only on their way to operators that compute in integers. Biases are int32 of scale `input scale * weight scale`.

use super::rewrite::{Rewriter, WeightNames, element_code, pack_codes};
use super::weight_only::{dequantize, inputs};
use crate::formats::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::INT32;
use crate::graph::activations::{LayerOutput, QuantizedValues};
use crate::graph::index::GraphIndex;
use crate::graph::pairs::{self, Given};
use crate::graph::scopes::TOP;
use crate::graph::weights::Layer;
use crate::quant::params::Params;
use crate::quant::scheme::CodeType;
use std::collections::BTreeMap;

/// How integer operators are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// As float operators between pairs.
    Pairs,
    /// As operators on codes: QLinearConv, MatMulInteger.
    Operators,
}

/// The layers of the top graph that compute in integers between quantized values.
pub(super) struct Static<'v> {
    style: Style,
    values: &'v QuantizedValues,
    params: &'v BTreeMap<String, Params>,
    /// Values that are quantized already.
    done: BTreeMap<String, Pair>,
    /// What the outputs of layers are quantized to, by number.
    outputs: BTreeMap<usize, Pair>,
    /// Nodes of the top graph, as they are now.
    changed: BTreeMap<usize, Vec<NodeProto>>,
}

/// By how much more than its limit the highest code may stand for, relative to it: a scale is rounded.
const ROUNDING: f32 = 1e-5;

/// A quantized value: names of its codes, their parameters, and the floats that they stand for.
#[derive(Clone, Debug)]
struct Pair {
    codes: String,
    scale: String,
    zero_point: String,
    floats: String,
}

impl<'v> Static<'v> {
    pub(super) fn new(style: Style, values: &'v QuantizedValues, params: &'v BTreeMap<String, Params>) -> Self {
        let pair = |(value, given): (&String, &Given)| {
            let Given { codes, scale, zero_point, .. } = given.clone();
            (value.clone(), Pair { codes, scale, zero_point, floats: value.clone() })
        };
        let done = values.given.iter().map(pair).collect();
        Static { style, values, params, done, outputs: BTreeMap::new(), changed: BTreeMap::new() }
    }

    /// Quantizes the outputs of layers, for all who take them.
    pub(super) fn quantize_outputs(&mut self, rewriter: &mut Rewriter<'_>) {
        for (number, output) in &self.values.outputs {
            let layer = &rewriter.onnx.weights.layers[*number];
            let value = &output.value;
            let absorbed = output.absorbed.filter(|_| self.is_done_by_codes(output, rewriter.plan.activation_codes));
            // An activation function that stays takes the layer's own output, on the grid of what it makes of it.
            let stays = output.absorbed.is_some() && absorbed.is_none();
            let floats = if stays { &rewriter.indexes[TOP].graph.node[layer.node].output[0] } else { value };
            let pair = self.name(rewriter, value, floats.clone());
            let mut node = rewriter.indexes[TOP].graph.node[layer.node].clone();
            let mut after = Vec::new();
            if self.style_of(rewriter, layer) == Style::Pairs {
                let float = rewriter.names.fresh(&format!("{value}_float"));
                node.output[0].clone_from(&float);
                after.push(quantize_linear(rewriter, &pair, &float));
            } else {
                node.output[0].clone_from(&pair.codes);
            }
            after.push(dequantize_linear(rewriter, &pair));
            self.changed.insert(layer.node, vec![node]);
            // Behind the layer itself: nothing between it and the node that goes can take what that node made.
            rewriter.edits[TOP].after.entry(layer.node).or_default().extend(after);
            if let Some(absorbed) = absorbed {
                self.changed.insert(absorbed, Vec::new());
            }
            if !stays {
                self.done.insert(value.clone(), pair.clone());
            }
            self.outputs.insert(*number, pair);
        }
    }

    /// Whether values saturate where the activation function that could go has its limits: the lowest code is 0, and the highest
    /// is not above what a Clip lets through.
    fn is_done_by_codes(&self, output: &LayerOutput, codes: CodeType) -> bool {
        let (params, grid) = (self.params[&output.value], codes.grid());
        let highest = (grid.qmax - params.zero_point) as f32 * params.scale;
        params.zero_point == grid.qmin && output.limit.is_none_or(|limit| highest <= limit * (1.0 + ROUNDING))
    }

    /// How a layer is written. An operator on codes takes a bias of integers only, so that a convolution whose bias cannot be that stays a
    /// float operator between pairs.
    fn style_of(&self, rewriter: &Rewriter<'_>, layer: &Layer) -> Style {
        let node = &rewriter.indexes[TOP].graph.node[layer.node];
        match node.input(2) {
            Some(bias) if self.style == Style::Operators && layer.op == "Conv" => {
                let is_held = self.bias_with_scales(rewriter, layer, &node.input[0], bias).is_some();
                if is_held { Style::Operators } else { Style::Pairs }
            }
            _ => self.style,
        }
    }

    /// Rewrites one layer.
    pub(super) fn rewrite(&mut self, rewriter: &mut Rewriter<'_>, number: usize, layer: &Layer) {
        let original = &rewriter.indexes[TOP].graph.node[layer.node];
        let mut input = self.quantized(rewriter, &original.input[0]);
        let mut node = match self.changed.get(&layer.node) {
            Some(nodes) => nodes[0].clone(),
            None => original.clone(),
        };
        let nodes = match (self.style_of(rewriter, layer), layer.op.as_str()) {
            (Style::Operators, "Conv") => self.convolution(rewriter, number, layer, &input, node),
            (Style::Operators, _) => product(rewriter, layer, &input, node),
            (Style::Pairs, _) => {
                let weight = rewriter.weight_for_integers(layer, layer.path.transposed);
                let value = rewriter.names.fresh(&format!("{}_dequantized", layer.weight.1));
                let mut nodes = dequantize(rewriter, &weight, &value);
                if self.style == Style::Operators {
                    // Operators on codes have no use for the floats, so that nobody has made them.
                    input.floats = rewriter.names.fresh(&format!("{}_dequantized", original.input[0]));
                    nodes.push(dequantize_linear(rewriter, &input));
                }
                node.input[0] = input.floats;
                node.input[layer.input] = value;
                if let Some(bias) = original.input(2)
                    && let Some(constants) = self.bias(rewriter, layer, &original.input[0], bias)
                {
                    let out = rewriter.names.fresh(&format!("{}_bias_dequantized", layer.name));
                    let pair = Pair { floats: out.clone(), ..constants };
                    let mut dequantize = dequantize_linear(rewriter, &pair);
                    if rewriter.edits[TOP].find(&pair.scale).is_some_and(|scale| !scale.dims.is_empty()) {
                        dequantize.attribute.push(AttributeProto::int("axis", 0));
                    }
                    nodes.push(dequantize);
                    node.input[2] = out;
                }
                nodes.push(node);
                nodes
            }
        };
        self.changed.insert(layer.node, nodes);
    }

    /// Hands all changes over.
    pub(super) fn finish(self, rewriter: &mut Rewriter<'_>) {
        rewriter.edits[TOP].replaced.extend(self.changed);
    }

    /// QLinearConv.
    fn convolution(
        &mut self,
        rewriter: &mut Rewriter<'_>,
        number: usize,
        layer: &Layer,
        input: &Pair,
        mut node: NodeProto,
    ) -> Vec<NodeProto> {
        let weight = rewriter.weight_for_integers(layer, layer.path.transposed);
        let nodes = &rewriter.indexes[TOP].graph.node;
        let original = &nodes[layer.node];
        let output = match self.values.given_outputs.get(&number) {
            // The model's own QuantizeLinear goes, and its parameters are the operator's.
            Some(quantize) => {
                self.changed.insert(*quantize, Vec::new());
                let Some([_, scale, zero_point]) = nodes[*quantize].input.first_chunk() else { return vec![node] };
                let codes = nodes[*quantize].output[0].clone();
                node.output[0].clone_from(&codes);
                &Pair { codes, scale: scale.clone(), zero_point: zero_point.clone(), floats: String::new() }
            }
            None => &self.outputs[&number],
        };
        let bias = original.input(2).and_then(|bias| self.bias(rewriter, layer, &original.input[0], bias));
        let WeightNames { codes, scale, zero_point, .. } = weight;
        node.op_type = "QLinearConv".into();
        let input = [&input.codes, &input.scale, &input.zero_point, &codes, &scale, &zero_point, &output.scale, &output.zero_point];
        node.input = input.into_iter().cloned().chain(bias.map(|bias| bias.codes)).collect();
        vec![node]
    }

    /// A value's codes, which are made if there are none yet.
    fn quantized(&mut self, rewriter: &mut Rewriter<'_>, value: &str) -> Pair {
        if let Some(done) = self.done.get(value) {
            return done.clone();
        }
        let floats = rewriter.names.fresh(&format!("{value}_dequantized"));
        let pair = self.name(rewriter, value, floats);
        let mut nodes = vec![quantize_linear(rewriter, &pair, value)];
        if self.style == Style::Pairs {
            nodes.push(dequantize_linear(rewriter, &pair));
        }
        match rewriter.indexes[TOP].producer(value) {
            Some((place, _)) => rewriter.edits[TOP].after.entry(place).or_default().extend(nodes),
            None => rewriter.edits[TOP].first.extend(nodes),
        }
        self.done.insert(value.to_owned(), pair.clone());
        pair
    }

    /// Names for the codes of `value` and its parameters, which become constants.
    fn name(&self, rewriter: &mut Rewriter<'_>, value: &str, floats: String) -> Pair {
        let params = self.params[value];
        let [codes, scale, zero_point] = ["quantized", "scale", "zero_point"].map(|what| rewriter.names.fresh(&format!("{value}_{what}")));
        let codes_of = rewriter.plan.activation_codes;
        let edits = &mut rewriter.edits[TOP];
        edits.add(TensorProto::floats(scale.clone(), &[], &[params.scale]));
        edits.add(TensorProto::raw(zero_point.clone(), element_code(codes_of), &[], pack_codes(codes_of, &[params.zero_point])));
        Pair { codes, scale, zero_point, floats }
    }

    /// A constant bias with the scale of each channel's int32 code, `input scale * weight scale`, or the one of all; `None` if its
    /// shape and that of the scales do not fit.
    fn bias_with_scales(&self, rewriter: &Rewriter<'_>, layer: &Layer, input: &str, bias: &str) -> Option<(Bias, Vec<f32>)> {
        let bias = Bias::of(&rewriter.indexes[TOP], bias)?;
        let (tensor, _) = rewriter.scheme(layer)?;
        let input_scale = self.params[input].scale;
        let scales: Vec<f32> = rewriter.params[&tensor].iter().map(|params| input_scale * params.scale).collect();
        (scales.len() == 1 || scales.len() == bias.values.len()).then_some((bias, scales))
    }

    /// The codes of a constant bias, if they can be had. One that is written so already stays as it is.
    fn bias(&self, rewriter: &mut Rewriter<'_>, layer: &Layer, input: &str, bias: &str) -> Option<Pair> {
        let (bias, scales) = self.bias_with_scales(rewriter, layer, input, bias)?;
        if self.style == Style::Pairs && rewriter.plan.float_biases && bias.codes.is_none() {
            return None;
        }
        let (_, scheme) = rewriter.scheme(layer)?;
        let channels = bias.values.len();
        let scale_of = |channel: usize| if scales.len() == 1 { scales[0] } else { scales[channel] };
        if let Some((codes, stored)) = &bias.codes
            && (0..channels).all(|i| stored[i % stored.len()] == scale_of(i))
        {
            let pair = Pair { codes: codes.clone(), scale: String::new(), zero_point: String::new(), floats: String::new() };
            return (self.style == Style::Operators).then_some(pair);
        }
        // Trained scales are not raised for a bias that does not fit, which floats hold.
        let fits = |(i, value): (usize, &f64)| (value / f64::from(scale_of(i))).abs() < f64::from(i32::MAX);
        if self.style == Style::Pairs && scheme.trained.is_some() && !bias.values.iter().enumerate().all(fits) {
            return None;
        }
        let codes: Vec<u8> = bias.values.iter().enumerate().flat_map(|(i, value)| bias_code(*value, scale_of(i)).to_le_bytes()).collect();
        let names = ["quantized", "scale", "zero_point"];
        let [quantized, scale, zero_point] = names.map(|what| rewriter.names.fresh(&format!("{}_bias_{what}", layer.name)));
        let dims: Vec<i64> = if scales.len() == 1 { vec![] } else { vec![channels as i64] };
        let edits = &mut rewriter.edits[TOP];
        edits.add(TensorProto::raw(quantized.clone(), INT32, &[channels as i64], codes));
        if self.style == Style::Pairs {
            edits.add(TensorProto::floats(scale.clone(), &dims, &scales));
            edits.add(TensorProto::raw(zero_point.clone(), INT32, &dims, vec![0; 4 * scales.len()]));
        }
        Some(Pair { codes: quantized, scale, zero_point, floats: String::new() })
    }
}

/// QuantizeLinear of the floats `from`.
fn quantize_linear(rewriter: &mut Rewriter<'_>, pair: &Pair, from: &str) -> NodeProto {
    let name = rewriter.names.fresh(&format!("{}_QuantizeLinear", pair.codes));
    NodeProto::new("QuantizeLinear", name, inputs([from, &pair.scale, &pair.zero_point]), vec![pair.codes.clone()])
}

/// DequantizeLinear to the floats of a pair.
fn dequantize_linear(rewriter: &mut Rewriter<'_>, pair: &Pair) -> NodeProto {
    let name = rewriter.names.fresh(&format!("{}_DequantizeLinear", pair.codes));
    NodeProto::new("DequantizeLinear", name, inputs([&pair.codes, &pair.scale, &pair.zero_point]), vec![pair.floats.clone()])
}

/// A matrix product on codes, with a float result: `Cast(MatMulInteger(a, b)) * (a_scale * b_scale) [+ bias]`.
fn product(rewriter: &mut Rewriter<'_>, layer: &Layer, input: &Pair, node: NodeProto) -> Vec<NodeProto> {
    let swaps = node.is("Gemm") && node.int("transB", 0) != 0;
    let weight = rewriter.weight_for_integers(layer, layer.path.transposed != swaps);
    super::dynamic::integer_product(rewriter, &node, [&input.codes, &input.scale, &input.zero_point], &weight)
}

/// A constant bias.
struct Bias {
    values: Vec<f64>,
    /// Its int32 codes and their scales, one or one a value, if it is made of codes.
    codes: Option<(String, Vec<f32>)>,
}

impl Bias {
    /// The bias of this name, if it is a constant or made of constant codes.
    fn of(index: &GraphIndex<'_>, name: &str) -> Option<Self> {
        if let Some(values) = index.constant(name).and_then(TensorProto::to_floats) {
            return Some(Bias { values: values.into_iter().map(f64::from).collect(), codes: None });
        }
        let (_, node) = index.producer(name).filter(|(_, node)| pairs::is_dequantize(node))?;
        let codes = node.input(0).and_then(|codes| index.constant(codes)).filter(|codes| codes.data_type == Some(INT32))?;
        let scales = node.input(1).and_then(|scale| index.constant(scale)).and_then(TensorProto::to_floats)?;
        let ints = codes.to_ints()?;
        if ints.is_empty() || (scales.len() != 1 && scales.len() != ints.len()) {
            return None;
        }
        let values = ints.iter().enumerate().map(|(i, code)| *code as f64 * f64::from(scales[i % scales.len()])).collect();
        Some(Bias { values, codes: Some((codes.name.clone(), scales)) })
    }
}

/// `clamp(round_half_even(value / scale))` in f64, as ONNX Runtime's `quantize_bias_static_impl`.
pub(super) fn bias_code(value: f64, scale: f32) -> i32 {
    (value / f64::from(scale)).round_ties_even().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
}

/// The smallest weight scale with which a bias fits 32 bits, as ONNX Runtime's `_adjust_weight_scale_for_int32_bias`:
///
/// ```text
/// input scale * weight scale >= 1.0001 * 2 |bias| / (2^32 - 2)
/// ```
pub(crate) fn weight_scale_for_bias(scale: f32, input_scale: f32, bias: f32) -> f32 {
    let needed = f64::from(1.0001f32 * (2.0 * bias.abs())) / f64::from(u32::MAX - 1);
    let product = f64::from(input_scale) * f64::from(scale);
    if product > 0.0 && product < needed { (f64::from(scale) * (needed / product)) as f32 } else { scale }
}
