//! The small models that files of other kinds are read beside.

use crate::framing::join_safetensors;

/// A checkpoint of two layers, `a.weight` `[4, 8]` and `b.weight` `[3, 4]`, and a bias.
pub fn checkpoint() -> Vec<u8> {
    let header = br#"{"a.weight":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},"b.weight":{"dtype":"F32","shape":[3,4],"data_offsets":[128,176]},"b.bias":{"dtype":"F32","shape":[3],"data_offsets":[176,188]}}"#;
    let values = (0..47).flat_map(|i| (((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect::<Vec<u8>>();
    join_safetensors(header, &values)
}

/// An ONNX model of `y = relu(x w) v`, with `x [1, 4]`, `w [4, 4]`, `v [4, 4]` and the value `h` between.
pub fn onnx() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8][..], content].concat();
    let value = |name: &str| {
        let dims = [field(1, &[8, 1]), field(1, &[8, 4])].concat();
        let tensor = [&[8, 1][..], &field(2, &dims)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let constant = |name: &str| {
        let values: Vec<u8> = (0..16).flat_map(|i| (i as f32 / 16.0 - 0.4).to_le_bytes()).collect();
        [&[8, 4, 8, 4, 16, 1][..], &field(8, name.as_bytes()), &field(9, &values)].concat()
    };
    let node = |op: &str, inputs: &[&str], out: &str| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        [inputs, field(2, out.as_bytes()), field(4, op.as_bytes())].concat()
    };
    let nodes = [node("MatMul", &["x", "w"], "h"), node("Relu", &["h"], "r"), node("MatMul", &["r", "v"], "y")];
    let graph: Vec<u8> = nodes
        .iter()
        .flat_map(|node| field(1, node))
        .chain(field(2, b"g"))
        .chain([constant("w"), constant("v")].iter().flat_map(|constant| field(5, constant)))
        .chain(field(11, &value("x")))
        .chain(field(12, &value("y")))
        .collect();
    let mut model = vec![8, 8, 7 << 3 | 2];
    let len = graph.len();
    model.extend([len as u8 | 0x80, (len >> 7) as u8]);
    assert!((128..1 << 14).contains(&len), "a length of two bytes");
    [model, graph, field(8, &[16, 13])].concat()
}
