//! New nodes and constants in the place of one node.

use super::Known;
use super::codes;
use crate::formats::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::FLOAT;
use crate::graph::names::Names;

/// Dimensions are counted back from the end to here at most, whatever a file says: as many as a tensor may have.
const MOST_BEHIND: i64 = -64;

/// Nodes and constants that take the place of a node, or come before it.
pub(super) struct Emit<'a> {
    pub known: &'a Known,
    pub opset: i64,
    names: &'a mut Names,
    base: String,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'a> Emit<'a> {
    pub(super) fn new(known: &'a Known, names: &'a mut Names, opset: i64, node: &NodeProto) -> Self {
        let base = node.output.first().cloned().unwrap_or_default();
        Emit { known, opset, names, base, nodes: Vec::new(), initializers: Vec::new() }
    }

    pub(super) fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.initializers)
    }

    /// A new float constant.
    pub(super) fn constant(&mut self, dims: &[i64], values: &[f32]) -> String {
        let name = self.names.fresh(&format!("{}_constant", self.base));
        self.initializers.push(TensorProto::floats(name.clone(), dims, values));
        name
    }

    /// A new float constant of the name `output`.
    pub(super) fn constant_to(&mut self, output: &str, dims: &[i64], values: &[f32]) {
        self.initializers.push(TensorProto::floats(output.to_owned(), dims, values));
    }

    /// A node with one new value.
    pub(super) fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        let output = self.names.fresh(&format!("{}_{op_type}", self.base));
        self.op_to(op_type, inputs, &output);
        output
    }

    /// A node whose value has the name `output`.
    pub(super) fn op_to(&mut self, op_type: &str, inputs: &[&str], output: &str) {
        let inputs = inputs.iter().map(|name| (*name).to_owned()).collect();
        let node = NodeProto::new(op_type, self.names.fresh(&format!("{output}_node")), inputs, vec![output.to_owned()]);
        self.nodes.push(node);
    }

    /// Adds attributes to the last node.
    pub(super) fn with(&mut self, attributes: impl IntoIterator<Item = AttributeProto>) {
        if let Some(node) = self.nodes.last_mut() {
            node.attribute.extend(attributes);
        }
    }

    /// Adds a node as it is.
    pub(super) fn node(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// A value as floats, whatever it is.
    pub(super) fn as_float(&mut self, name: &str) -> String {
        if self.known.carried.contains(name) {
            return name.to_owned();
        }
        let float = self.op("Cast", &[name]);
        self.with([AttributeProto::int("to", FLOAT)]);
        float
    }

    /// The constant of this name, whose value nobody can replace.
    pub(super) fn known_constant(&self, name: &str) -> Option<&'a TensorProto> {
        self.known.constants.get(name)
    }

    /// Parameters as floats that broadcast along `axis` of a value of `rank` dimensions.
    pub(super) fn aligned(&mut self, name: &str, axis: i64, rank: Option<usize>) -> Result<String, String> {
        let Some(tensor) = self.known_constant(name) else { return Ok(self.as_float(name)) };
        let values = codes::floats(tensor)?;
        if values.len() == 1 {
            return Ok(self.constant(&[], &values));
        }
        if tensor.dims.len() != 1 {
            return Err(format!("{name}: expected one parameter or one axis of them, found {:?}", tensor.dims));
        }
        let behind = match (axis, rank) {
            (MOST_BEHIND..0, _) => -1 - axis,
            (_, Some(rank)) if axis < rank as i64 => rank as i64 - 1 - axis,
            (..0, _) => return Err(format!("{name}: axis: expected one of the value's, found {axis}")),
            _ => return Err(format!("{name}: expected one parameter for a value of unknown rank, found {:?}", tensor.dims)),
        };
        let dims: Vec<i64> = std::iter::once(values.len() as i64).chain((0..behind).map(|_| 1)).collect();
        Ok(self.constant(&dims, &values))
    }

    /// `code - zero point` as floats.
    pub(super) fn centred(&mut self, value: &str, zero_point: Option<&str>, axis: i64) -> Result<String, String> {
        let zero_constant = zero_point.and_then(|name| self.known_constant(name));
        if let Some(tensor) = self.known_constant(value)
            && zero_constant.is_some() == zero_point.is_some()
        {
            let values = codes::dequantize(tensor, None, zero_constant, axis, 0)?;
            return Ok(self.constant(&tensor.dims, &values));
        }
        let float = self.as_float(value);
        let is_zero = match zero_constant {
            Some(tensor) => codes::floats(tensor)?.iter().all(|value| *value == 0.0),
            None => zero_point.is_none(),
        };
        let Some(zero_point) = zero_point.filter(|_| !is_zero) else { return Ok(float) };
        let zero_point = self.aligned(zero_point, axis, self.known.ranks.get(value).copied())?;
        Ok(self.op("Sub", &[&float, &zero_point]))
    }

    /// `Clip(Round(value) + zero point)` as `output`.
    pub(super) fn codes_to(&mut self, value: &str, zero_point: Option<&str>, (low, high): (f32, f32), output: &str) {
        let rounded = self.op("Round", &[value]);
        let shifted = match zero_point {
            Some(zero_point) => self.op("Add", &[&rounded, zero_point]),
            None => rounded,
        };
        self.clip_to(&shifted, (low, high), output);
    }

    fn clip_to(&mut self, value: &str, (low, high): (f32, f32), output: &str) {
        let (low, high) = (self.constant(&[], &[low]), self.constant(&[], &[high]));
        if self.opset >= 11 {
            self.op_to("Clip", &[value, &low, &high], output);
        } else {
            let raised = self.op("Max", &[value, &low]);
            self.op_to("Min", &[&raised, &high], output);
        }
    }

    /// The formula of DynamicQuantizeLinear: codes of `value` as `codes`, their scale as `scale` and zero point as `zero`.
    pub(super) fn dynamic(&mut self, value: &str, [codes, scale, zero]: [&str; 3]) {
        let nil = self.constant(&[], &[0.0]);
        let one = self.constant(&[], &[1.0]);
        let steps = self.constant(&[], &[255.0]);
        let [high, low] = [("ReduceMax", "Max"), ("ReduceMin", "Min")].map(|(reduce, with_zero)| {
            let extreme = self.op(reduce, &[value]);
            self.with([AttributeProto::int("keepdims", 0)]);
            self.op(with_zero, &[&extreme, &nil])
        });
        let range = self.op("Sub", &[&high, &low]);
        let spread = self.op("Div", &[&range, &steps]);
        let is_nil = self.op("Equal", &[&spread, &nil]);
        self.op_to("Where", &[&is_nil, &one, &spread], scale);
        let below = self.op("Div", &[&low, scale]);
        let wanted = self.op("Sub", &[&nil, &below]);
        let clipped = self.names.fresh(&format!("{}_clipped", self.base));
        self.clip_to(&wanted, (0.0, 255.0), &clipped);
        self.op_to("Round", &[&clipped], zero);
        let scaled = self.op("Div", &[value, scale]);
        self.codes_to(&scaled, Some(zero), (0.0, 255.0), codes);
    }

    /// A new name.
    pub(super) fn fresh(&mut self, what: &str) -> String {
        self.names.fresh(&format!("{}_{what}", self.base))
    }
}
