//! Rewrites a model into what the embedded engine runs right: same values under the same names.
//!
//! `rten` refuses some of what ONNX allows and, worse, calculates some of it differently without saying so. Each rule
//! below is about one such difference, found by comparing it with ONNX Runtime or by reading its source (0.27); what
//! cannot be rewritten is refused. Model-local functions are not inlined: their calls are operators that `rten` reports
//! as unknown.

use crate::error::show_name;
use crate::formats::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::{BFLOAT16, BOOL, FLOAT, INT16, INT32, INT64, UINT16};
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// `TensorProto.DataType` of unsigned integers that have no name in `formats`.
const UINT32: i64 = 12;
const UINT64: i64 = 13;

/// What the engine calls a node: nodes and values share one namespace in `rten`, so that a node named as a value hides
/// it. [`Labels::explain`] turns this back into words.
const NODE_PREFIX: &str = "qtool:node:";

/// The nodes of a lowered model, for error messages.
#[derive(Default)]
pub(super) struct Labels(Vec<String>);

impl Labels {
    /// `message` with the engine's names of nodes replaced by type and name of the original ones.
    pub(super) fn explain(&self, message: &str) -> String {
        let mut text = String::new();
        let mut rest = message;
        while let Some((before, after)) = rest.split_once(NODE_PREFIX) {
            let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let label = after[..digits].parse().ok().and_then(|index: usize| self.0.get(index));
            text.push_str(before.strip_suffix('"').unwrap_or(before));
            text.push_str(label.map_or("?", String::as_str));
            rest = after[digits..].strip_prefix('"').unwrap_or(&after[digits..]);
        }
        text.push_str(rest);
        text
    }
}

/// Rewrites `model` in place.
///
/// # Errors
///
/// What was expected and what was found, for a model that the engine would calculate wrongly.
pub(super) fn for_engine(model: &mut ModelProto) -> Result<Labels, String> {
    let opset = model.opset();
    let Some(graph) = model.graph.as_deref_mut() else {
        return Err("graph: expected one, found none".into());
    };
    let mut names = HashSet::new();
    all_names(graph, &mut names);
    let mut lowering = Lowering { opset, labels: Labels::default(), names, ranks: HashMap::new() };
    lowering.graph(graph)?;
    Ok(lowering.labels)
}

fn all_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
    names.extend(graph.input.iter().map(|input| input.name.clone()));
    for node in &graph.node {
        names.extend(node.output.iter().cloned());
        node.bodies().for_each(|body| all_names(body, names));
    }
}

struct Lowering {
    opset: i64,
    labels: Labels,
    /// All names of values, so that new ones do not clash.
    names: HashSet<String>,
    /// Number of dimensions, of constants and of what is computed from them without changing it.
    ranks: HashMap<String, usize>,
}

/// Nodes and constants that take the place of a node.
#[derive(Default)]
struct Replacement {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl Lowering {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), String> {
        // Declared types and shapes may be wrong without harm elsewhere; `rten` checks values that are fed back against them.
        graph.value_info.clear();
        graph.output.iter_mut().for_each(|output| output.r#type = None);
        for tensor in &mut graph.initializer {
            self.ranks.insert(tensor.name.clone(), tensor.dims.len());
            *tensor = representable(std::mem::take(tensor))?;
        }
        let limits = limits_of_slices(graph);
        for tensor in &graph.initializer {
            check_integers(&tensor.name, tensor, &limits)?;
        }
        let mut nodes = Vec::with_capacity(graph.node.len());
        for mut node in std::mem::take(&mut graph.node) {
            let name = [&node.name].into_iter().chain(&node.output).find(|name| !name.is_empty());
            let label = format!("{} ({})", show_name(name.map_or("", String::as_str)), node.op_type);
            let explained = |e: String| format!("node {label}: {e}");
            for body in node.bodies_mut() {
                self.graph(body)?;
            }
            self.constant(&mut node, &limits).map_err(explained)?;
            let replacement = self.node(node).map_err(explained)?;
            graph.initializer.extend(replacement.initializers);
            for mut node in replacement.nodes {
                node.name.clear();
                write!(node.name, "{NODE_PREFIX}{}", self.labels.0.len()).expect("a string takes it");
                self.labels.0.push(label.clone());
                nodes.push(node);
            }
        }
        graph.node = nodes;
        Ok(())
    }

    /// Constants in attributes: same rules as for initializers.
    fn constant(&mut self, node: &mut NodeProto, limits: &HashSet<String>) -> Result<(), String> {
        if !node.is("Constant") && !node.is("ConstantOfShape") {
            return Ok(());
        }
        let name = node.output.first().cloned().unwrap_or_default();
        for attribute in &mut node.attribute {
            if let Some(tensor) = &mut attribute.t {
                if node.op_type == "Constant" {
                    self.ranks.insert(name.clone(), tensor.dims.len());
                }
                **tensor = representable(std::mem::take(&mut **tensor))?;
                check_integers(&name, tensor, limits)?;
            }
            if !limits.contains(&name) {
                attribute.i.iter().chain(&attribute.ints).try_for_each(|value| check_integer(&name, *value))?;
            }
        }
        Ok(())
    }

    fn node(&mut self, mut node: NodeProto) -> Result<Replacement, String> {
        if !node.is_standard() {
            return Ok(node.into());
        }
        match node.op_type.as_str() {
            "Conv" | "ConvInteger" | "ConvTranspose" => self.convolution(&mut node)?,
            "MaxPool" | "AveragePool" => {
                let dimensions = node.attribute("kernel_shape").map_or(0, |attribute| attribute.ints.len());
                set_window_defaults(&mut node, dimensions, false)?;
            }
            "Cast" => return self.cast(node),
            "Softmax" | "LogSoftmax" if self.opset < 13 => return Ok(self.flat_softmax(node)),
            "Resize" => check_resize(&mut node, self.opset)?,
            // `rten` reads the lengths and ignores them.
            "LSTM" | "GRU" if node.input(4).is_some() => {
                return Err("sequence_lens: expected none, as the embedded engine does not look at them, found some".into());
            }
            // The same bytes in every run.
            "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike" | "Multinomial"
                if node.attribute("seed").is_none() =>
            {
                node.attribute.push(AttributeProto::float("seed", 0.0));
            }
            "DequantizeLinear" | "QuantizeLinear" | "Identity" | "Transpose" => self.copy_rank(&node),
            "Selu" | "Celu" | "ThresholdedRelu" | "Mish" => return Ok(self.activation(node)),
            _ => {}
        }
        Ok(node.into())
    }

    fn copy_rank(&mut self, node: &NodeProto) {
        let rank = node.input(0).and_then(|name| self.ranks.get(name)).copied();
        if let (Some(rank), Some(output)) = (rank, node.output.first()) {
            self.ranks.insert(output.clone(), rank);
        }
    }

    /// Defaults that depend on the number of spatial dimensions, which `rten` takes from `kernel_shape`, itself optional.
    fn convolution(&mut self, node: &mut NodeProto) -> Result<(), String> {
        let declared = node.attribute("kernel_shape").map(|attribute| attribute.ints.len()).filter(|len| *len > 0);
        let rank = node.input(1).and_then(|weight| self.ranks.get(weight)).copied();
        match declared.or(rank.and_then(|rank| rank.checked_sub(2))) {
            Some(dimensions) => set_window_defaults(node, dimensions, true),
            None => Ok(()),
        }
    }

    /// `rten` runs booleans as i32 and casts to them as to i32, which makes 0 of 0.5 and leaves 2 as it is.
    fn cast(&mut self, mut node: NodeProto) -> Result<Replacement, String> {
        self.copy_rank(&node);
        let Some(to) = node.attribute.iter_mut().find(|attribute| attribute.name == "to") else {
            return Ok(node.into());
        };
        match to.i {
            Some(BOOL) => {}
            // Wider types hold all their values.
            Some(INT16 | UINT16 | UINT32 | UINT64) => to.i = Some(INT32),
            Some(BFLOAT16) => to.i = Some(FLOAT),
            _ => return Ok(node.into()),
        }
        if to.i != Some(BOOL) {
            return Ok(node.into());
        }
        let (float, zero, is_zero) = (self.fresh(&node, "float"), self.fresh(&node, "zero"), self.fresh(&node, "is_zero"));
        let mut cast = NodeProto::new("Cast", String::new(), node.input, vec![float.clone()]);
        cast.attribute.push(AttributeProto::int("to", FLOAT));
        let equal = NodeProto::new("Equal", String::new(), vec![float, zero.clone()], vec![is_zero.clone()]);
        let not = NodeProto::new("Not", String::new(), vec![is_zero], node.output);
        Ok(Replacement { nodes: vec![cast, equal, not], initializers: vec![TensorProto::floats(zero, &[], &[0.0])] })
    }

    /// Before opset 13, Softmax was over all dimensions from `axis` (1 unless said otherwise) on, taken as one.
    fn flat_softmax(&mut self, mut node: NodeProto) -> Replacement {
        let axis = node.int("axis", 1);
        node.attribute.retain(|attribute| attribute.name != "axis");
        node.attribute.push(AttributeProto::int("axis", -1));
        if axis == -1 {
            return node.into();
        }
        let (shape, flat, result) = (self.fresh(&node, "shape"), self.fresh(&node, "flat"), self.fresh(&node, "result"));
        let input = node.input.clone();
        let output = std::mem::replace(&mut node.output, vec![result.clone()]);
        node.input = vec![flat.clone()];
        let shape_of = NodeProto::new("Shape", String::new(), input.clone(), vec![shape.clone()]);
        let mut flatten = NodeProto::new("Flatten", String::new(), input, vec![flat]);
        flatten.attribute.push(AttributeProto::int("axis", axis));
        let reshape = NodeProto::new("Reshape", String::new(), vec![result, shape], output);
        Replacement { nodes: vec![shape_of, flatten, node, reshape], initializers: Vec::new() }
    }

    /// Activations that `rten` does not have, of those that it has:
    ///
    /// ```text
    /// Selu(x)            = gamma * Elu(x, alpha)
    /// Celu(x)            = alpha * Elu(x / alpha, 1)
    /// ThresholdedRelu(x) = x where x > alpha, else 0
    /// Mish(x)            = x * Tanh(Softplus(x))
    /// ```
    fn activation(&mut self, node: NodeProto) -> Replacement {
        let mut out = Replacement::default();
        let x = node.input.first().cloned().unwrap_or_default();
        let y = node.output.clone();
        let mut constant = |this: &mut Self, what: &str, value: f32| {
            let name = this.fresh(&node, what);
            out.initializers.push(TensorProto::floats(name.clone(), &[], &[value]));
            name
        };
        let op = |op_type: &str, inputs: &[&str], outputs: Vec<String>| {
            NodeProto::new(op_type, String::new(), inputs.iter().map(|name| (*name).to_owned()).collect(), outputs)
        };
        let elu = |input: &str, alpha: f32, output: &str| {
            let mut elu = op("Elu", &[input], vec![output.to_owned()]);
            elu.attribute.push(AttributeProto::float("alpha", alpha));
            elu
        };
        out.nodes = match node.op_type.as_str() {
            "Selu" => {
                let gamma = constant(self, "gamma", node.float("gamma", 1.050_701));
                let inner = self.fresh(&node, "elu");
                vec![elu(&x, node.float("alpha", 1.673_263_2), &inner), op("Mul", &[&inner, &gamma], y)]
            }
            "Celu" => {
                let alpha = constant(self, "alpha", node.float("alpha", 1.0));
                let (scaled, inner) = (self.fresh(&node, "scaled"), self.fresh(&node, "elu"));
                vec![op("Div", &[&x, &alpha], vec![scaled.clone()]), elu(&scaled, 1.0, &inner), op("Mul", &[&inner, &alpha], y)]
            }
            "ThresholdedRelu" => {
                let (alpha, zero) = (constant(self, "alpha", node.float("alpha", 1.0)), constant(self, "zero", 0.0));
                let above = self.fresh(&node, "above");
                vec![op("Greater", &[&x, &alpha], vec![above.clone()]), op("Where", &[&above, &x, &zero], y)]
            }
            _ => {
                let (softplus, tanh) = (self.fresh(&node, "softplus"), self.fresh(&node, "tanh"));
                let soft = op("Softplus", &[&x], vec![softplus.clone()]);
                vec![soft, op("Tanh", &[&softplus], vec![tanh.clone()]), op("Mul", &[&x, &tanh], y)]
            }
        };
        out
    }

    /// A name that nothing has yet.
    fn fresh(&mut self, node: &NodeProto, what: &str) -> String {
        let base = node.output.first().map_or("", String::as_str);
        let mut name = format!("{base}:{what}");
        while !self.names.insert(name.clone()) {
            name.push('\'');
        }
        name
    }
}

impl From<NodeProto> for Replacement {
    fn from(node: NodeProto) -> Self {
        Replacement { nodes: vec![node], initializers: Vec::new() }
    }
}

/// Spells out what a sliding window does by default, for `dimensions` spatial dimensions.
fn set_window_defaults(node: &mut NodeProto, dimensions: usize, dilations: bool) -> Result<(), String> {
    if dimensions == 0 {
        return Ok(());
    }
    let set = |node: &mut NodeProto, name: &str, values: Vec<i64>| {
        if node.attribute(name).is_none_or(|attribute| attribute.ints.is_empty()) {
            node.attribute.retain(|attribute| attribute.name != name);
            node.attribute.push(AttributeProto::ints(name, &values));
        }
    };
    set(node, "strides", vec![1; dimensions]);
    if dilations {
        set(node, "dilations", vec![1; dimensions]);
    }
    let auto_pad = node.attribute("auto_pad").and_then(|attribute| attribute.s.clone()).unwrap_or_default();
    match &auto_pad[..] {
        b"SAME_UPPER" => {}
        // `rten` pads at the end for both.
        b"SAME_LOWER" => {
            let ints = |name: &str| node.attribute(name).map_or(Vec::new(), |attribute| attribute.ints.clone());
            let (kernel, strides, dilations) = (ints("kernel_shape"), ints("strides"), ints("dilations"));
            if kernel.is_empty() || strides.iter().any(|stride| *stride != 1) || node.op_type == "ConvTranspose" {
                return Err("auto_pad: expected anything but SAME_LOWER with strides, which the embedded engine does not pad right".into());
            }
            let total = |i: usize| (kernel[i] - 1) * dilations.get(i).unwrap_or(&1);
            let ends = (0..kernel.len()).map(|i| total(i) / 2);
            let begins: Vec<i64> = (0..kernel.len()).map(|i| total(i) - total(i) / 2).collect();
            let pads = begins.into_iter().chain(ends).collect();
            node.attribute.retain(|attribute| attribute.name != "auto_pad" && attribute.name != "pads");
            set(node, "pads", pads);
        }
        _ => set(node, "pads", vec![0; 2 * dimensions]),
    }
    Ok(())
}

/// `rten` takes `cubic` for `linear`, and does not know the operator as opset 10 had it, which is Upsample by another name.
fn check_resize(node: &mut NodeProto, opset: i64) -> Result<(), String> {
    if node.attribute("mode").is_some_and(|mode| mode.s.as_deref() == Some(b"cubic")) {
        return Err("mode: expected nearest or linear, as the embedded engine has no other, found cubic".into());
    }
    if opset < 11 {
        node.op_type = "Upsample".into();
    }
    Ok(())
}

/// The tensor in a type that the engine has.
fn representable(tensor: TensorProto) -> Result<TensorProto, String> {
    let wrong = || format!("constant {}: expected values to be known, found none", show_name(&tensor.name));
    match tensor.data_type {
        Some(BFLOAT16) => Ok(TensorProto::floats(tensor.name.clone(), &tensor.dims, &tensor.to_floats().ok_or_else(wrong)?)),
        Some(INT16 | UINT16 | UINT32 | UINT64) => {
            Ok(TensorProto::ints(tensor.name.clone(), &tensor.dims, &tensor.to_ints().ok_or_else(wrong)?))
        }
        _ => Ok(tensor),
    }
}

/// Names of constants that only say how far slices go: `rten` saturates them to 32 bits, which changes nothing.
fn limits_of_slices(graph: &GraphProto) -> HashSet<String> {
    let limits = graph.node.iter().filter(|node| node.is("Slice"));
    let mut names: HashSet<String> = limits.flat_map(|node| node.input.iter().skip(1).cloned()).collect();
    for node in graph.node.iter().filter(|node| !node.is("Slice")) {
        node.input.iter().for_each(|name| {
            names.remove(name);
        });
    }
    names
}

fn check_integers(name: &str, tensor: &TensorProto, limits: &HashSet<String>) -> Result<(), String> {
    if tensor.data_type != Some(INT64) || limits.contains(name) {
        return Ok(());
    }
    tensor.to_ints().unwrap_or_default().into_iter().try_for_each(|value| check_integer(name, value))
}

/// Beyond this, an integer stands for "no limit" and may as well be the largest of 32 bits.
const UNLIMITED: u64 = 1 << 62;

fn check_integer(name: &str, value: i64) -> Result<(), String> {
    if i32::try_from(value).is_err() && value.unsigned_abs() < UNLIMITED {
        let name = show_name(name);
        return Err(format!("constant {name}: expected integers of 32 bits, as the embedded engine calculates with them, found {value}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lower(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, opset: i64) -> Result<(ModelProto, Labels), String> {
        let graph = GraphProto { node: nodes, initializer, ..GraphProto::default() };
        let import = crate::formats::onnx::proto::OperatorSetIdProto { version: Some(opset), ..Default::default() };
        let mut model = ModelProto { graph: Some(Box::new(graph)), opset_import: vec![import], ..ModelProto::default() };
        let labels = for_engine(&mut model)?;
        Ok((model, labels))
    }

    fn node(op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
        let inputs = inputs.iter().map(|name| (*name).to_owned()).collect();
        NodeProto { attribute, ..NodeProto::new(op_type, "same".into(), inputs, vec!["same".into()]) }
    }

    fn types(model: &ModelProto) -> Vec<&str> {
        model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type.as_str()).collect()
    }

    #[test]
    fn windows_get_their_defaults() {
        struct Case {
            op: NodeProto,
            expected: &'static [(&'static str, &'static [i64])],
        }
        let text = |name: &str, value: &str| AttributeProto::string(name, value);
        let ints = |name: &str, values: &[i64]| AttributeProto::ints(name, values);
        let cases = [
            Case { op: node("Conv", &["x", "w3"], vec![]), expected: &[("strides", &[1]), ("dilations", &[1]), ("pads", &[0, 0])] },
            Case { op: node("Conv", &["x", "w4"], vec![]), expected: &[("strides", &[1, 1]), ("pads", &[0, 0, 0, 0])] },
            Case {
                op: node("Conv", &["x", "unknown"], vec![ints("kernel_shape", &[3])]),
                expected: &[("strides", &[1]), ("pads", &[0, 0])],
            },
            Case {
                op: node("MaxPool", &["x"], vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]),
                expected: &[("strides", &[2, 2]), ("pads", &[0, 0, 0, 0])],
            },
            Case {
                op: node("MaxPool", &["x"], vec![ints("kernel_shape", &[4, 3]), text("auto_pad", "SAME_LOWER")]),
                expected: &[("pads", &[2, 1, 1, 1])],
            },
        ];
        for case in cases {
            let weights = [("w3", vec![1, 1, 1]), ("w4", vec![1, 1, 1, 1])];
            let weights = weights.map(|(name, dims)| TensorProto::floats(name.into(), &dims, &[1.0])).to_vec();
            let (model, _) = lower(vec![case.op], weights, 17).unwrap();
            let node = &model.graph.unwrap().node[0];
            for (name, values) in case.expected {
                assert_eq!(node.attribute(name).map(|attribute| &attribute.ints[..]), Some(*values), "{} {name}", node.op_type);
            }
        }
    }

    #[test]
    fn what_would_be_calculated_wrongly_is_rewritten_or_refused() {
        let to = |code: i64| vec![AttributeProto::int("to", code)];
        /// The operators that it becomes, or a part of the error.
        type Expected<'a> = Result<&'a [&'a str], &'a str>;
        let cases: [(NodeProto, i64, Expected<'_>); 9] = [
            (node("Cast", &["x"], to(BOOL)), 17, Ok(&["Cast", "Equal", "Not"])),
            (node("Cast", &["x"], to(FLOAT)), 17, Ok(&["Cast"])),
            (node("Softmax", &["x"], vec![]), 17, Ok(&["Softmax"])),
            (node("Softmax", &["x"], vec![]), 11, Ok(&["Shape", "Flatten", "Softmax", "Reshape"])),
            (node("Softmax", &["x"], vec![AttributeProto::int("axis", -1)]), 11, Ok(&["Softmax"])),
            (node("Resize", &["x", "s"], vec![]), 10, Ok(&["Upsample"])),
            (node("Resize", &["x", "", "s"], vec![AttributeProto::string("mode", "cubic")]), 13, Err("cubic")),
            (node("GRU", &["x", "w", "r", "b", "lengths"], vec![]), 17, Err("sequence_lens")),
            (node("Selu", &["x"], vec![]), 17, Ok(&["Elu", "Mul"])),
        ];
        for (op, opset, expected) in cases {
            let name = op.op_type.clone();
            match (lower(vec![op], vec![], opset), expected) {
                (Ok((model, _)), Ok(expected)) => {
                    assert_eq!(types(&model), expected);
                    let nodes = &model.graph.as_ref().unwrap().node;
                    assert_eq!(nodes.last().unwrap().output, ["same"], "{name} keeps the name of its value");
                }
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (result, expected) => panic!("{name}: expected {expected:?}, found {:?}", result.map(|(model, _)| model)),
            }
        }
    }

    #[test]
    fn integers_beyond_32_bits_are_refused_unless_they_mean_no_limit() {
        let constants = |value: i64| vec![TensorProto::ints("k".into(), &[1], &[value])];
        let add = || vec![node("Add", &["x", "k"], vec![])];
        let slice = || vec![node("Slice", &["x", "k", "k"], vec![])];
        assert!(lower(add(), constants(1 << 31), 17).map(|_| ()).unwrap_err().contains("2147483648"));
        assert!(lower(add(), constants(i64::MAX), 17).is_ok());
        assert!(lower(add(), constants((1 << 31) - 1), 17).is_ok());
        assert!(lower(slice(), constants(1 << 40), 17).is_ok());
        let value = TensorProto::ints(String::new(), &[], &[-10_000_000_000]);
        let mut constant = node("Constant", &[], vec![AttributeProto::tensor("value", value)]);
        constant.output = vec!["c".into()];
        assert!(lower(vec![constant], vec![], 17).map(|_| ()).unwrap_err().contains("-10000000000"));
    }

    #[test]
    fn names_of_nodes_come_back_in_messages() {
        let (model, labels) = lower(vec![node("Relu", &["x"], vec![])], vec![], 17).unwrap();
        let name = &model.graph.unwrap().node[0].name;
        assert_eq!(labels.explain(&format!("operator \"{name}\" failed")), "operator \"same\" (Relu) failed");
        assert_eq!(labels.explain("nothing to explain"), "nothing to explain");
    }
}
