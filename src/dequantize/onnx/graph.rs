//! What the nodes of a quantized graph become, in one pass from the first node to the last.
//!
//! For values that are not floats the pass remembers what they stand for ([`Meaning`]); where a node makes floats of them
//! again, the float operator is put in its place. The nodes on the way stay until the end and go because nothing takes what
//! they make. A node on codes that is still there then has no float form that is known, and is an error.
//!
//! Weights get the names that they had: `NAME_quantized` gives `NAME`, and `NAME_transposed_quantized` too, with the axes
//! swapped back. A value keeps its name when its pair of QuantizeLinear and DequantizeLinear goes. Where codes did the work
//! of a Relu, as the zero point is the smallest code, a Relu follows the layer again; an upper limit, which a Clip may have
//! had as well, is not restored. The version of the standard operators stays.

use super::constants::{FloatConstant, Over};
use super::operators::{self, MOVE_DATA, first_quantized, is_quantized};
use crate::error::show_name;
use crate::formats::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, Payload, TensorProto};
use crate::formats::onnx::tensor::{DOUBLE, INT8, INT16, INT32, UINT8, UINT16, code_of};
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::{bodies, sweep};
use crate::tensor::Dtype;
use std::collections::{HashMap, HashSet};

/// The float model and its constants, to which deferred payloads refer.
///
/// # Errors
///
/// What was expected and what was found: the model has nothing quantized, or a quantized operator that is not known.
pub(super) fn to_float(mut model: ModelProto) -> Result<(ModelProto, Vec<FloatConstant>), String> {
    let unknown = |node: &NodeProto| {
        let name = if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name };
        format!("node {}: expected a quantized operator with a float form that is known, found {}", show_name(name), node.op_type)
    };
    if let Some(node) = operators::first_in_functions(&model) {
        return Err(format!("functions: {}", unknown(node)));
    }
    let names = Names::of(&model);
    let Some(graph) = model.graph.as_deref_mut().filter(|graph| first_quantized(graph).is_some()) else {
        return Err("graph: expected a quantized model, found no node that takes or makes codes".into());
    };
    let mut pass = Pass { names, values: HashSet::new(), levels: Vec::new(), next_level: 0, constants: Vec::new(), made: HashMap::new() };
    collect_values(graph, &mut pass.values);
    pass.graph(graph);
    if let Some(node) = first_quantized(graph) {
        return Err(unknown(node));
    }
    let constants = pass.constants;
    let is_unused = !operators::uses_domain(&model, "com.microsoft");
    model.opset_import.retain(|import| !(is_unused && import.domain == "com.microsoft"));
    Ok((model, constants))
}

fn collect_values(graph: &GraphProto, values: &mut HashSet<String>) {
    bodies::for_each_definition(graph, |name| {
        values.insert(name.to_owned());
    });
    graph.node.iter().flat_map(NodeProto::bodies).for_each(|body| collect_values(body, values));
}

/// What a value stands for that is not a float of the original model.
#[derive(Clone)]
enum Meaning {
    /// Codes of a float value.
    Codes(Codes),
    /// The product of codes, as integers or, after a Cast, as floats; how its node was.
    Product { node: NodeProto, operands: [Operand; 2], is_float: bool },
    /// Rows of constant codes, as integers or floats; zero points that were subtracted.
    Rows { gather: NodeProto, is_float: bool, zero_point: Option<String> },
}

/// Codes of the float value `of`.
#[derive(Clone)]
struct Codes {
    of: String,
    scale: String,
}

/// What an integer product multiplies.
#[derive(Clone)]
enum Operand {
    Codes(Codes),
    Constant { codes: String, zero_point: Option<String> },
}

/// A graph in the pass.
struct Level {
    number: usize,
    constants: HashMap<String, TensorProto>,
    meanings: HashMap<String, Meaning>,
    /// Values that have another name now.
    aliases: HashMap<String, String>,
    /// The nodes so far.
    nodes: Vec<NodeProto>,
    /// Which of them makes a value.
    makers: HashMap<String, usize>,
    added: Vec<TensorProto>,
}

/// A constant that was made: level, codes, scale, zero point, how they lie, swapped, type.
type Made = (usize, String, String, Option<String>, Over, bool, Dtype);

struct Pass {
    names: Names,
    /// Names of values only.
    values: HashSet<String>,
    /// The graph at hand last, after those around it.
    levels: Vec<Level>,
    next_level: usize,
    constants: Vec<FloatConstant>,
    made: HashMap<Made, String>,
}

/// Nodes that something before them has taken care of.
#[derive(Default)]
struct Ahead {
    done: HashSet<usize>,
    /// Gemm nodes whose second input has the axes swapped back.
    transposed: HashSet<usize>,
}

impl Pass {
    fn graph(&mut self, graph: &mut GraphProto) {
        let unused = sweep::unused(graph);
        let original = graph.clone();
        let index = GraphIndex::new(&original);
        let constants = original.initializer.iter().filter(|tensor| !index.is_input(&tensor.name));
        self.levels.push(Level {
            number: self.next_level,
            constants: constants.map(|tensor| (tensor.name.clone(), tensor.clone())).collect(),
            meanings: HashMap::new(),
            aliases: HashMap::new(),
            nodes: Vec::new(),
            makers: HashMap::new(),
            added: Vec::new(),
        });
        self.next_level += 1;
        let mut ahead = Ahead::default();
        for (i, node) in original.node.iter().enumerate() {
            if ahead.done.contains(&i) || self.replace(&index, node, &mut ahead) == Some(()) {
                continue;
            }
            let mut node = node.clone();
            node.bodies_mut().for_each(|body| self.graph(body));
            if ahead.transposed.contains(&i) {
                node.attribute.retain(|attribute| attribute.name != "transB");
                node.attribute.push(AttributeProto::int("transB", 1));
            }
            self.emit(node);
        }
        let Some(level) = self.levels.pop() else { return };
        graph.node = level.nodes;
        graph.initializer.extend(level.added);
        let resolved = level.aliases.keys().map(|name| (name.clone(), resolve(&level.aliases, name).to_owned())).collect();
        bodies::rename(graph, &resolved);
        sweep::remove(graph, &unused);
    }

    /// Notes what a node's outputs stand for; `Some` if something was put in its place or nothing has to be.
    fn replace(&mut self, index: &GraphIndex<'_>, node: &NodeProto, ahead: &mut Ahead) -> Option<()> {
        let is_runtime = node.domain == "com.microsoft";
        match node.op_type.as_str() {
            "DynamicQuantizeLSTM" if is_runtime => return self.lstm(node),
            "DequantizeLinear" if node.is_standard() || is_runtime => return self.dequantize_linear(index, node, ahead),
            "QuantizeLinear" if node.is_standard() || is_runtime => self.quantize_linear(index, node)?,
            _ if !node.is_standard() => return None,
            "DynamicQuantizeLinear" => {
                let codes = Codes { of: node.input(0)?.to_owned(), scale: node.output.get(1)?.clone() };
                self.note(node, Meaning::Codes(codes));
            }
            "MatMulInteger" | "ConvInteger" => {
                let operands = [self.operand(node, 0)?, self.operand(node, 1)?];
                self.note(node, Meaning::Product { node: node.clone(), operands, is_float: false });
            }
            "QLinearConv" => self.convolution(index, node)?,
            "Cast" => match self.meaning(node.input(0)?)? {
                Meaning::Product { node: product, operands, .. } => {
                    self.note(node, Meaning::Product { node: product, operands, is_float: true });
                }
                Meaning::Rows { gather, zero_point, .. } => self.note(node, Meaning::Rows { gather, is_float: true, zero_point }),
                Meaning::Codes(_) => {}
            },
            "Gather" if self.constant(node.input(0)?).is_some_and(|codes| matches!(codes.data_type, Some(INT8 | UINT8))) => {
                self.note(node, Meaning::Rows { gather: node.clone(), is_float: false, zero_point: None });
            }
            // Codes of fewer bits than their type has.
            "Clip" => match self.meaning(node.input(0)?)? {
                Meaning::Codes(codes) => self.note(node, Meaning::Codes(codes)),
                _ => return None,
            },
            "Sub" => self.centre(node)?,
            "Mul" => return self.scale(index, node, ahead),
            op if MOVE_DATA.contains(&op) => self.move_data(index, node)?,
            _ => {}
        }
        None
    }

    /// QuantizeLinear, of which a Relu before may have become a part.
    fn quantize_linear(&mut self, index: &GraphIndex<'_>, node: &NodeProto) -> Option<()> {
        let (value, scale) = (node.input(0)?.to_owned(), node.input(1)?.to_owned());
        if index.only_use(&value).is_some() && self.starts_at_zero(node.input(2)) {
            let level = self.levels.last_mut()?;
            let maker = level.makers.get(&value).copied();
            let layer = maker.and_then(|place| level.nodes.get_mut(place));
            if let Some(layer) = layer.filter(|node| ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| node.is(op))) {
                let before = self.names.fresh(&format!("{}_linear", value.strip_suffix("_float").unwrap_or(&value)));
                layer.output[0].clone_from(&before);
                self.relu(before, value.clone());
            }
        }
        self.note(node, Meaning::Codes(Codes { of: value, scale }));
        Some(())
    }

    fn relu(&mut self, from: String, to: String) {
        let name = self.names.fresh(&format!("{}_Relu", to.strip_suffix("_float").unwrap_or(&to)));
        self.emit(NodeProto::new("Relu", name, vec![from], vec![to]));
    }

    /// DequantizeLinear: floats that are known, under a name of their own.
    fn dequantize_linear(&mut self, index: &GraphIndex<'_>, node: &NodeProto, ahead: &mut Ahead) -> Option<()> {
        let (codes, scale, out) = (node.input(0)?, node.input(1)?, node.output.first()?);
        let zero_point = node.input(2);
        match self.meaning(codes) {
            Some(Meaning::Codes(codes)) if self.same(&codes.scale, scale) => {
                self.unite(index, &codes.of, out);
                return Some(());
            }
            Some(Meaning::Rows { gather, is_float: false, .. }) if self.constant(scale)?.elements() == Ok(1) => {
                return self.look_up(&gather, scale, zero_point, node);
            }
            _ => {}
        }
        let tensor = self.constant(codes)?;
        let rank = tensor.dims.len();
        let axis = node.int("axis", 1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
        let over = match usize::try_from(node.int("block_size", 0)).ok()? {
            0 => Over::Axis(axis),
            size => Over::Blocks { axis, size },
        };
        let mut dtype = self.constant(scale)?.dtype()?;
        let (_, is_transposed) = original_name(codes);
        let only = index.only_use(out).map(|only| (only, &index.graph.node[only.node]));
        let cast = only.filter(|(_, node)| node.is("Cast") && node.int("to", 0) == DOUBLE && !is_transposed);
        let mut value = out.clone();
        if let Some((only, cast)) = cast {
            (dtype, value) = (Dtype::F64, cast.output.first()?.clone());
            let name = self.float_constant([codes, scale], zero_point, over, false, dtype)?;
            ahead.done.insert(only.node);
            self.unite(index, &name, &value);
            return Some(());
        }
        let name = self.float_constant([codes, scale], zero_point, over, is_transposed, dtype)?;
        match only {
            Some((only, gemm)) if is_transposed && gemm.is("Gemm") && only.input == 1 && gemm.int("transB", 0) == 0 => {
                ahead.transposed.insert(only.node);
            }
            _ if is_transposed => {
                self.transpose(name, value, rank);
                return Some(());
            }
            _ => {}
        }
        self.unite(index, &name, &value);
        Some(())
    }

    /// Swaps the last two axes of a constant, as the original did.
    fn transpose(&mut self, from: String, to: String, rank: usize) {
        let mut order: Vec<i64> = (0..rank as i64).collect();
        order.swap(rank.saturating_sub(2), rank.saturating_sub(1));
        let mut node = NodeProto::new("Transpose", self.names.fresh(&format!("{to}_Transpose")), vec![from], vec![to]);
        node.attribute.push(AttributeProto::ints("perm", &order));
        self.emit(node);
    }

    /// Lets `known`, the name of a float value or constant, and `value`, which is the same, be one.
    fn unite(&mut self, index: &GraphIndex<'_>, known: &str, value: &str) {
        let known = self.levels.iter().rev().fold(known.to_owned(), |name, level| resolve(&level.aliases, &name).to_owned());
        let Some(level) = self.levels.last_mut().filter(|_| known != value) else { return };
        let maker = level.makers.get(&known).copied().filter(|_| !index.is_output(&known));
        let is_output = index.is_output(value);
        match maker {
            // The output of a layer of ours is NAME_float until it is quantized.
            Some(place) if is_output || known.strip_suffix("_float") == Some(value) => {
                level.nodes[place].output.iter_mut().filter(|name| **name == known).for_each(|name| value.clone_into(name));
                level.makers.remove(&known);
                level.makers.insert(value.to_owned(), place);
                level.aliases.insert(known, value.to_owned());
            }
            _ if is_output => {
                let name = self.names.fresh(&format!("{value}_Identity"));
                self.emit(NodeProto::new("Identity", name, vec![known], vec![value.to_owned()]));
            }
            _ => {
                level.aliases.insert(value.to_owned(), known);
            }
        }
    }

    /// QLinearConv: a Conv that gives floats.
    fn convolution(&mut self, index: &GraphIndex<'_>, node: &NodeProto) -> Option<()> {
        let (Some(Meaning::Codes(input)), out) = (self.meaning(node.input(0)?), node.output.first()?) else { return None };
        let (weight, weight_scale, scale) = (node.input(3)?, node.input(4)?, node.input(6)?);
        let weight_scales = self.constant(weight_scale)?.to_floats()?;
        let dtype = self.constant(weight_scale)?.dtype()?;
        let mut float = NodeProto { op_type: "Conv".into(), domain: String::new(), ..node.clone() };
        let bias = match node.input(8) {
            None => None,
            Some(bias) => {
                let input_scale = *self.constant(node.input(1)?)?.to_floats()?.first()?;
                let scales: Vec<f32> = weight_scales.iter().map(|scale| input_scale * scale).collect();
                Some(self.bias(bias, weight_scale, scales)?)
            }
        };
        let weight = self.float_constant([weight, weight_scale], node.input(5), Over::Axis(0), false, dtype)?;
        float.input = [input.of, weight].into_iter().chain(bias).collect();
        let value = self.floats_of(index, out, scale);
        if self.starts_at_zero(node.input(7)) {
            let before = self.names.fresh(&format!("{value}_linear"));
            float.output = vec![before.clone()];
            self.emit(float);
            self.relu(before, value.clone());
        } else {
            float.output = vec![value.clone()];
            self.emit(float);
        }
        self.note(node, Meaning::Codes(Codes { of: value, scale: scale.to_owned() }));
        Some(())
    }

    /// The floats of a bias whose scale is no constant of the model.
    fn bias(&mut self, codes: &str, weight_scale: &str, scales: Vec<f32>) -> Option<String> {
        let level = self.level_of(codes)?;
        let key = (self.levels[level].number, codes.to_owned(), weight_scale.to_owned(), None, Over::Axis(0), false, Dtype::F32);
        let dims = if scales.len() == 1 { vec![] } else { vec![scales.len() as i64] };
        let constant = FloatConstant::new(self.constant(codes)?, Dtype::F32, (&dims, scales), None, Over::Axis(0), false)?;
        Some(self.add(level, key, constant))
    }

    /// The name for the floats of codes: that of the floats which are made of them.
    fn floats_of(&mut self, index: &GraphIndex<'_>, codes: &str, scale: &str) -> String {
        let nodes = index.uses(codes).iter().filter(|place| place.input == 0).map(|place| &index.graph.node[place.node]);
        let is_of = |node: &&NodeProto| node.is("DequantizeLinear") && node.input(1).is_some_and(|other| self.same(scale, other));
        let mut values: Vec<&String> = nodes.filter(is_of).filter_map(|node| node.output.first()).collect();
        values.sort_by_key(|value| !index.is_output(value));
        match values.first() {
            Some(value) => (*value).clone(),
            None => self.names.fresh(codes.strip_suffix("_quantized").unwrap_or(codes)),
        }
    }

    /// Does to floats what a node does to their codes.
    fn move_data(&mut self, index: &GraphIndex<'_>, node: &NodeProto) -> Option<()> {
        let Some(Meaning::Codes(codes)) = self.meaning(node.input(0)?) else { return None };
        let mut float = node.clone();
        float.input[0] = codes.of;
        float.output = vec![self.floats_of(index, node.output.first()?, &codes.scale)];
        let of = float.output[0].clone();
        self.emit(float);
        self.note(node, Meaning::Codes(Codes { of, scale: codes.scale }));
        Some(())
    }

    /// Zero points subtracted from rows of codes.
    fn centre(&mut self, node: &NodeProto) -> Option<()> {
        let rows = |value: Option<Meaning>| match value {
            Some(Meaning::Rows { gather, is_float: true, zero_point: None }) => Some(gather),
            _ => None,
        };
        let (gather, zero_points) = (rows(self.meaning(node.input(0)?))?, rows(self.meaning(node.input(1)?))?);
        if gather.input.get(1) == zero_points.input.get(1) {
            let zero_point = Some(zero_points.input(0)?.to_owned());
            self.note(node, Meaning::Rows { gather, is_float: true, zero_point });
        }
        Some(())
    }

    /// A product or rows times their scales.
    fn scale(&mut self, index: &GraphIndex<'_>, node: &NodeProto, ahead: &mut Ahead) -> Option<()> {
        let (left, right) = (node.input(0)?, node.input(1)?);
        for (value, scales) in [(left, right), (right, left)] {
            match self.meaning(value) {
                Some(Meaning::Product { node: product, operands, is_float: true }) => {
                    return self.product(index, &product, &operands, scales, node, ahead);
                }
                Some(Meaning::Rows { gather, is_float: true, zero_point }) => {
                    let (_, scales) = index.producer(scales)?;
                    let same_rows = scales.is("Gather") && scales.input(1) == gather.input(1) && scales.int("axis", 0) == 0;
                    return if same_rows { self.look_up(&gather, scales.input(0)?, zero_point.as_deref(), node) } else { None };
                }
                _ => {}
            }
        }
        None
    }

    /// Rows of the float table in place of `node`.
    fn look_up(&mut self, gather: &NodeProto, scale: &str, zero_point: Option<&str>, node: &NodeProto) -> Option<()> {
        let (dtype, axis) = (self.constant(scale)?.dtype()?, gather.int("axis", 0));
        if self.constant(scale)?.elements() != Ok(1) && axis != 0 {
            return None;
        }
        let table = self.float_constant([gather.input(0)?, scale], zero_point, Over::Axis(0), false, dtype)?;
        let mut float = NodeProto { output: node.output.clone(), ..gather.clone() };
        float.input[0] = table;
        self.emit(float);
        Some(())
    }

    /// A float product in place of `last`, which scales that of integers.
    fn product(
        &mut self,
        index: &GraphIndex<'_>,
        product: &NodeProto,
        operands: &[Operand; 2],
        scales: &str,
        last: &NodeProto,
        ahead: &mut Ahead,
    ) -> Option<()> {
        let (_, scales) = index.producer(scales).filter(|(_, node)| node.is("Mul"))?;
        let (first, second) = (scales.input(0)?, scales.input(1)?);
        let is_matrix = product.op_type == "MatMulInteger";
        let (mut inputs, mut is_transposed, mut rank) = (Vec::new(), false, 0);
        for (side, operand) in operands.iter().enumerate() {
            match operand {
                Operand::Codes(codes) if [first, second].contains(&codes.scale.as_str()) => inputs.push(codes.of.clone()),
                Operand::Codes(_) => return None,
                Operand::Constant { codes, zero_point } => {
                    let Operand::Codes(other) = &operands[1 - side] else { return None };
                    let scale = if other.scale == first { second } else { first };
                    rank = self.constant(codes)?.dims.len();
                    // Only columns have scales of their own.
                    let axis = if is_matrix && side == 1 { rank.checked_sub(1)? } else { usize::MAX };
                    is_transposed = is_matrix && side == 1 && original_name(codes).1;
                    let dtype = self.constant(scale)?.dtype()?;
                    inputs.push(self.float_constant([codes, scale], zero_point.as_deref(), Over::Axis(axis), is_transposed, dtype)?);
                }
            }
        }
        let out = last.output.first()?;
        let name = product.name.strip_suffix("_quant").unwrap_or(&last.name).to_owned();
        let op = if is_matrix { "MatMul" } else { "Conv" };
        let mut float = NodeProto { name, op_type: op.into(), domain: String::new(), input: inputs, ..product.clone() };
        float.output = vec![out.clone()];
        // A Gemm with its bias is written so.
        let add = index.only_use(out).map(|only| (only.node, &index.graph.node[only.node]));
        let add = add.filter(|(_, add)| rank == 2 && add.is("Add") && add.input(0) == Some(out));
        if let Some((place, add)) = add.filter(|(_, add)| out.strip_suffix("_scaled") == add.output.first().map(String::as_str)) {
            float.op_type = "Gemm".into();
            float.input.push(add.input(1)?.to_owned());
            float.name.clone_from(&add.name);
            float.output.clone_from(&add.output);
            if is_transposed {
                float.attribute.push(AttributeProto::int("transB", 1));
            }
            ahead.done.insert(place);
        } else if is_transposed {
            let swapped = self.names.fresh(&format!("{}_transposed", float.input[1]));
            self.transpose(std::mem::replace(&mut float.input[1], swapped.clone()), swapped, rank);
        }
        self.emit(float);
        Some(())
    }

    /// LSTM in place of ONNX Runtime's DynamicQuantizeLSTM.
    fn lstm(&mut self, node: &NodeProto) -> Option<()> {
        let mut float = NodeProto { op_type: "LSTM".into(), domain: String::new(), ..node.clone() };
        float.input.truncate(8);
        for (input, parameters) in [(1, 8), (2, 10)] {
            let (codes, scale) = (node.input(input)?, node.input(parameters)?);
            let dtype = self.constant(scale)?.dtype()?;
            float.input[input] = self.float_constant([codes, scale], node.input(parameters + 1), Over::Directions, true, dtype)?;
        }
        while float.input.last().is_some_and(String::is_empty) {
            float.input.pop();
        }
        self.emit(float);
        Some(())
    }

    /// An operand of MatMulInteger or ConvInteger.
    fn operand(&self, node: &NodeProto, input: usize) -> Option<Operand> {
        let codes = node.input(input)?;
        match self.meaning(codes) {
            Some(Meaning::Codes(codes)) => Some(Operand::Codes(codes)),
            _ => self
                .constant(codes)
                .map(|_| Operand::Constant { codes: codes.to_owned(), zero_point: node.input(input + 2).map(str::to_owned) }),
        }
    }

    /// The floats that constant codes stand for, as a constant beside them; `None` if they are no constants that fit.
    fn float_constant(
        &mut self,
        [codes, scale]: [&str; 2],
        zero_point: Option<&str>,
        over: Over,
        swap: bool,
        dtype: Dtype,
    ) -> Option<String> {
        let level = self.level_of(codes)?;
        let key = (self.levels[level].number, codes.to_owned(), scale.to_owned(), zero_point.map(str::to_owned), over, swap, dtype);
        if let Some(name) = self.made.get(&key) {
            return Some(name.clone());
        }
        let scales = self.constant(scale)?;
        let zero_point = match zero_point {
            None => None,
            Some(name) => Some(self.constant(name)?),
        };
        let scales = (&scales.dims[..], scales.to_floats()?);
        let constant = FloatConstant::new(self.constant(codes)?, dtype, scales, zero_point, over, swap)?;
        Some(self.add(level, key, constant))
    }

    /// Adds a constant under its original name, if that is free.
    fn add(&mut self, level: usize, key: Made, constant: FloatConstant) -> String {
        if let Some(name) = self.made.get(&key) {
            return name.clone();
        }
        let (base, _) = original_name(&key.1);
        let name = match base {
            Some(base) if self.values.insert(base.to_owned()) => base.to_owned(),
            base => {
                let name = self.names.fresh(&format!("{}_dequantized", base.unwrap_or(&key.1)));
                self.values.insert(name.clone());
                name
            }
        };
        let len = (constant.elements() * constant.width()) as u64;
        self.levels[level].added.push(TensorProto {
            name: name.clone(),
            data_type: code_of(constant.dtype),
            dims: constant.dims(),
            raw_data: Some(Payload::Deferred { id: self.constants.len(), len }),
            ..TensorProto::default()
        });
        self.constants.push(constant);
        self.made.insert(key, name.clone());
        name
    }

    /// Whether a zero point is the smallest code of its type.
    fn starts_at_zero(&self, zero_point: Option<&str>) -> bool {
        let Some(name) = zero_point else { return true };
        let Some(tensor) = self.constant(name) else { return false };
        let smallest = match tensor.data_type {
            Some(UINT8 | UINT16) => 0,
            Some(INT8) => i64::from(i8::MIN),
            Some(INT16) => i64::from(i16::MIN),
            Some(INT32) => i64::from(i32::MIN),
            _ => return false,
        };
        tensor.to_ints().is_some_and(|codes| codes == [smallest])
    }

    /// Whether two scales are the same value, or constants with the same values.
    fn same(&self, a: &str, b: &str) -> bool {
        let values = |name: &str| self.constant(name).and_then(TensorProto::to_floats);
        a == b || values(a).is_some_and(|values_of_a| values(b) == Some(values_of_a))
    }

    fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.levels.iter().rev().find_map(|level| level.constants.get(name))
    }

    fn level_of(&self, constant: &str) -> Option<usize> {
        self.levels.iter().rposition(|level| level.constants.contains_key(constant))
    }

    fn meaning(&self, value: &str) -> Option<Meaning> {
        self.levels.iter().rev().find_map(|level| level.meanings.get(value)).cloned()
    }

    /// Notes what the first output of a node stands for.
    fn note(&mut self, node: &NodeProto, meaning: Meaning) {
        if let (Some(level), Some(value)) = (self.levels.last_mut(), node.output.first()) {
            level.meanings.insert(value.clone(), meaning);
        }
    }

    /// Puts a node last in the graph at hand.
    fn emit(&mut self, node: NodeProto) {
        let Some(level) = self.levels.last_mut() else { return };
        let place = level.nodes.len();
        // What stands for codes goes in the end, so that nothing is named after it.
        if !is_quantized(&node) {
            level.makers.extend(node.output.iter().filter(|name| !name.is_empty()).map(|name| (name.clone(), place)));
        }
        level.nodes.push(node);
    }
}

/// The name of the weight that codes were made of, if they are named after it, and whether its last two axes are swapped.
fn original_name(codes: &str) -> (Option<&str>, bool) {
    let Some(name) = codes.strip_suffix("_quantized").filter(|name| !name.is_empty()) else { return (None, false) };
    match name.strip_suffix("_transposed").filter(|name| !name.is_empty()) {
        Some(name) => (Some(name), true),
        None => (Some(name), false),
    }
}

/// What a value is called now.
fn resolve<'a>(aliases: &'a HashMap<String, String>, name: &'a str) -> &'a str {
    let mut name = name;
    while let Some(next) = aliases.get(name) {
        name = next;
    }
    name
}
