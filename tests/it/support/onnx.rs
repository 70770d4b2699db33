//! ONNX models made on the spot: just enough of the protocol buffer to say nodes, constants and values.

use std::collections::BTreeSet;

/// Element types.
pub(crate) const FLOAT: u64 = 1;
pub(crate) const UINT8: u64 = 2;
pub(crate) const INT8: u64 = 3;
pub(crate) const INT64: u64 = 7;

/// A constant.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    pub name: String,
    pub kind: u64,
    pub dims: Vec<u64>,
    pub bytes: Vec<u8>,
    /// The file that its values are in, instead of `bytes`.
    pub location: Option<String>,
}

/// A node; attributes are integers, and graphs.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub op: &'static str,
    /// Empty for ONNX's own operators.
    pub domain: String,
    pub name: String,
    pub inputs: Vec<String>,
    pub output: String,
    pub attributes: Vec<(&'static str, i64)>,
    /// Bodies of control flow, by the name of the attribute.
    pub bodies: Vec<(&'static str, Graph)>,
}

/// A dimension that the model leaves open.
pub(crate) const OPEN: u64 = u64::MAX;

/// A graph of floats.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
    pub constants: Vec<Constant>,
    /// Name and dimensions.
    pub inputs: Vec<(String, Vec<u64>)>,
    pub outputs: Vec<(String, Vec<u64>)>,
}

impl Constant {
    pub(crate) fn floats(name: &str, dims: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Constant { name: name.into(), kind: FLOAT, dims: dims.into(), bytes, location: None }
    }

    pub(crate) fn codes(name: &str, kind: u64, dims: &[u64], values: &[i16]) -> Self {
        Constant { name: name.into(), kind, dims: dims.into(), bytes: values.iter().map(|value| *value as u8).collect(), location: None }
    }

    fn encode(&self) -> Vec<u8> {
        let dims: Vec<u8> = self.dims.iter().flat_map(|dim| number(1, *dim)).collect();
        let values = match &self.location {
            None => bytes(9, &self.bytes),
            Some(location) => [bytes(13, &[bytes(1, b"location"), bytes(2, location.as_bytes())].concat()), number(14, 1)].concat(),
        };
        [dims, number(2, self.kind), bytes(8, self.name.as_bytes()), values].concat()
    }
}

impl Node {
    pub(crate) fn new(op: &'static str, inputs: &[&str], output: &str, attributes: &[(&'static str, i64)]) -> Self {
        let inputs = inputs.iter().map(|input| (*input).to_owned()).collect();
        let (domain, name) = (String::new(), format!("{output}_node"));
        Node { op, domain, name, inputs, output: output.into(), attributes: attributes.into(), bodies: Vec::new() }
    }

    fn encode(&self) -> Vec<u8> {
        let inputs: Vec<u8> = self.inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
        let attribute = |(name, value): &(&str, i64)| {
            let value = number(3, value.cast_unsigned());
            bytes(5, &[bytes(1, name.as_bytes()), value, number(20, 2)].concat())
        };
        let body =
            |(name, graph): &(&str, Graph)| bytes(5, &[bytes(1, name.as_bytes()), bytes(6, &graph.encode()), number(20, 5)].concat());
        let attributes = self.attributes.iter().flat_map(attribute).chain(self.bodies.iter().flat_map(body)).collect();
        let domain = if self.domain.is_empty() { vec![] } else { bytes(7, self.domain.as_bytes()) };
        let output = bytes(2, self.output.as_bytes());
        [inputs, output, bytes(3, self.name.as_bytes()), bytes(4, self.op.as_bytes()), attributes, domain].concat()
    }
}

impl Graph {
    fn encode(&self) -> Vec<u8> {
        let nodes = self.nodes.iter().flat_map(|node| bytes(1, &node.encode()));
        let constants = self.constants.iter().flat_map(|constant| bytes(5, &constant.encode()));
        let inputs = self.inputs.iter().flat_map(|value| bytes(11, &encode_value(value)));
        let outputs = self.outputs.iter().flat_map(|value| bytes(12, &encode_value(value)));
        nodes.chain(bytes(2, b"g")).chain(constants).chain(inputs).chain(outputs).collect()
    }

    /// The file of a model of this version of the operators.
    pub(crate) fn model(&self, opset: u64) -> Vec<u8> {
        let domains: BTreeSet<&String> = self.nodes.iter().map(|node| &node.domain).filter(|domain| !domain.is_empty()).collect();
        let imports = domains.into_iter().flat_map(|domain| bytes(8, &[bytes(1, domain.as_bytes()), number(2, 1)].concat()));
        [number(1, 8), bytes(7, &self.encode()), bytes(8, &number(2, opset)), imports.collect()].concat()
    }

    /// The constant of this name, to change it.
    pub(crate) fn constant(&mut self, name: &str) -> &mut Constant {
        self.constants.iter_mut().find(|constant| constant.name == name).expect("a constant of this name")
    }

    /// The node that makes a value, to change it.
    pub(crate) fn node(&mut self, output: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.output == output).expect("a node with this output")
    }
}

fn encode_value((name, dims): &(String, Vec<u64>)) -> Vec<u8> {
    let encode = |dim: &u64| if *dim == OPEN { bytes(2, b"n") } else { number(1, *dim) };
    let dims: Vec<u8> = dims.iter().flat_map(|dim| bytes(1, &encode(dim))).collect();
    let tensor = [number(1, FLOAT), bytes(2, &dims)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

pub(crate) fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

pub(crate) fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}
