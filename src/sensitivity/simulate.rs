//! A float model that computes what a quantized one would, so that an engine which knows no integer kernels can tell what
//! quantizing some of its weights and values costs.
//!
//! A quantized value goes through QuantizeLinear and DequantizeLinear, for whom it does in the output; a quantized weight
//! holds the values that its codes stand for. Not simulated: the rounding of biases to 32 bits, which is far finer, and
//! the quantized state of recurrent layers.

use crate::formats::onnx::proto::{ModelProto, NodeProto, Payload, TensorProto};
use crate::graph::edits::Edits;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::onnx_model::OnnxModel;
use crate::graph::scopes::{self, TOP};
use crate::model::Model;
use crate::outputs::onnx::rewrite::element_code;
use crate::plan::{LayerMode, Plan, TensorScheme};
use crate::quant::kernel::{dequantize, quantize};
use crate::quant::params::Params;
use crate::quant::scheme::CodeType;
use crate::tensor::encode_f32;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is quantized in a simulated model.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    /// Weights, by tensor of the model.
    pub weights: BTreeSet<usize>,
    /// Values with fixed parameters, by name.
    pub values: BTreeMap<String, Params>,
    /// Layers whose input is quantized by the range that it has then.
    pub dynamic: BTreeSet<usize>,
}

/// The values that the codes of a weight stand for, in the weight's own type, row-major.
pub(super) fn rounded_weight(model: &Model, tensor: usize, scheme: &TensorScheme, params: &[Params]) -> Bytes {
    let info = &model.tensors()[tensor].info;
    let mut scratch = Vec::new();
    let mut values = model.values(tensor, 0..info.elements(), &mut scratch).to_vec();
    let mut codes = Vec::new();
    scheme.layout.for_each_run(0..info.elements(), |group, run| {
        let values = &mut values[run];
        codes.resize(values.len(), 0);
        quantize(values, params[group], scheme.arithmetic, scheme.clip, &mut codes);
        dequantize(&codes, scheme.codes.is_signed(), params[group], values);
    });
    let mut bytes = vec![0; model.tensor_bytes(tensor).len()];
    encode_f32(info.dtype, &values, &mut bytes);
    Bytes::from(bytes)
}

/// The model of `trial`. Of the values that it quantizes, those that `plan` lists as outputs of layers are quantized for
/// everybody, others only on their way to the layers that are to run in integers. `rounded` holds the quantized weights.
pub(super) fn simulate(onnx: &OnnxModel, plan: &Plan, trial: &Trial, rounded: &HashMap<usize, Bytes>) -> ModelProto {
    let mut proto = onnx.file.proto.clone();
    let Some(graph) = onnx.file.proto.graph.as_deref() else { return proto };
    let mut simulation = Simulation {
        index: GraphIndex::new(graph),
        names: Names::of(&onnx.file.proto),
        edits: Edits::default(),
        changed: BTreeMap::new(),
        codes: plan.activation_codes,
    };
    let of_layers: BTreeSet<&str> = plan.values.outputs.values().map(|output| output.value.as_str()).collect();
    let mut takers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (_, layer) in plan.layers_of(onnx, LayerMode::Static) {
        graph.node[layer.node].input(0).into_iter().for_each(|value| takers.entry(value).or_default().push(layer.node));
    }
    for (value, params) in &trial.values {
        if of_layers.contains(value.as_str()) {
            simulation.for_everybody(value, *params);
            continue;
        }
        let quantized = simulation.pair(value, *params);
        simulation.hand_to(value, &quantized, takers.get(value.as_str()).map_or(&[], Vec::as_slice));
    }
    for number in &trial.dynamic {
        // Bodies of control flow are simulated with their weights only.
        let layer = Some(&onnx.weights.layers[*number]).filter(|layer| layer.scope == TOP);
        if let Some((layer, value)) = layer.and_then(|layer| Some((layer, graph.node[layer.node].input(0)?))) {
            let quantized = simulation.dynamic_pair(value);
            simulation.hand_to(value, &quantized, &[layer.node]);
        }
    }
    let Simulation { mut edits, changed, .. } = simulation;
    edits.replaced.extend(changed.into_iter().map(|(place, node)| (place, vec![node])));
    let mut edits = Some(edits);
    scopes::for_each_mut(&mut proto, &mut |number, graph| {
        for constant in &mut graph.initializer {
            let tensor = onnx.tensor(&(number, constant.name.clone())).filter(|tensor| trial.weights.contains(tensor));
            if let Some(bytes) = tensor.and_then(|tensor| rounded.get(&tensor)) {
                let kept = (std::mem::take(&mut constant.name), constant.data_type, std::mem::take(&mut constant.dims));
                let raw_data = Some(Payload::Bytes(bytes.clone()));
                *constant = TensorProto { name: kept.0, data_type: kept.1, dims: kept.2, raw_data, ..TensorProto::default() };
            }
        }
        if let Some(edits) = edits.take_if(|_| number == TOP) {
            edits.apply(graph);
        }
    });
    proto
}

/// Changes to the top graph.
struct Simulation<'g> {
    index: GraphIndex<'g>,
    names: Names,
    edits: Edits,
    /// Nodes as they are now.
    changed: BTreeMap<usize, NodeProto>,
    codes: CodeType,
}

impl Simulation<'_> {
    /// Quantizes a value for all who take it: its producer gives another name, of which this one is the quantized value.
    fn for_everybody(&mut self, value: &str, params: Params) {
        let Some((place, _)) = self.index.producer(value) else { return };
        let float = self.names.fresh(&format!("{value}_float"));
        for name in self.node(place).output.iter_mut().filter(|name| *name == value) {
            name.clone_from(&float);
        }
        let codes = self.names.fresh(&format!("{value}_codes"));
        let constants = self.constants(value, params);
        let nodes = [("QuantizeLinear", float, codes.clone()), ("DequantizeLinear", codes, value.to_owned())];
        let nodes = nodes.map(|(op, from, to)| self.step(op, vec![from, constants[0].clone(), constants[1].clone()], vec![to]));
        self.edits.after.entry(place).or_default().splice(0..0, nodes);
    }

    /// A quantized copy of a value; returns its name.
    fn pair(&mut self, value: &str, params: Params) -> String {
        let [codes, quantized] = ["codes", "quantized"].map(|what| self.names.fresh(&format!("{value}_{what}")));
        let [scale, zero_point] = self.constants(value, params);
        let nodes = vec![
            self.step("QuantizeLinear", vec![value.to_owned(), scale.clone(), zero_point.clone()], vec![codes.clone()]),
            self.step("DequantizeLinear", vec![codes, scale, zero_point], vec![quantized.clone()]),
        ];
        self.insert(value, nodes);
        quantized
    }

    /// A copy of a value that is quantized by its own range; returns its name.
    fn dynamic_pair(&mut self, value: &str) -> String {
        let fresh = ["codes", "scale", "zero_point", "quantized"].map(|what| self.names.fresh(&format!("{value}_dynamic_{what}")));
        let [codes, scale, zero_point, quantized] = fresh.clone();
        let nodes = vec![
            self.step("DynamicQuantizeLinear", vec![value.to_owned()], fresh[..3].to_vec()),
            self.step("DequantizeLinear", vec![codes, scale, zero_point], vec![quantized.clone()]),
        ];
        self.insert(value, nodes);
        quantized
    }

    /// Makes nodes take `quantized` as their first input instead of `value`.
    fn hand_to(&mut self, value: &str, quantized: &str, takers: &[usize]) {
        for place in takers {
            let node = self.node(*place);
            if node.input(0) == Some(value) {
                node.input[0] = quantized.to_owned();
            }
        }
    }

    fn node(&mut self, place: usize) -> &mut NodeProto {
        self.changed.entry(place).or_insert_with(|| self.index.graph.node[place].clone())
    }

    /// Puts nodes where `value` is known.
    fn insert(&mut self, value: &str, nodes: Vec<NodeProto>) {
        match self.index.producer(value) {
            Some((place, _)) => self.edits.after.entry(place).or_default().extend(nodes),
            None => self.edits.first.extend(nodes),
        }
    }

    fn step(&mut self, op: &str, input: Vec<String>, output: Vec<String>) -> NodeProto {
        let name = self.names.fresh(&format!("{}_{op}", output[0]));
        NodeProto::new(op, name, input, output)
    }

    /// Scale and zero point as constants.
    fn constants(&mut self, value: &str, params: Params) -> [String; 2] {
        let [scale, zero_point] = ["scale", "zero_point"].map(|what| self.names.fresh(&format!("{value}_{what}")));
        self.edits.add(TensorProto::floats(scale.clone(), &[], &[params.scale]));
        let width = self.codes.bits() as usize / 8;
        let bytes = params.zero_point.to_le_bytes()[..width].to_vec();
        self.edits.add(TensorProto::raw(zero_point.clone(), element_code(self.codes), &[], bytes));
        [scale, zero_point]
    }
}
