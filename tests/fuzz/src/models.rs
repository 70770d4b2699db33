//! Models and recipes that are drawn from the fuzzer's bytes: mostly valid, so that everything after the readers is reached.

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

/// A safetensors file with up to six small tensors of the names and types that checkpoints have.
pub fn checkpoint(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    const NAMES: &[&str] =
        &["a.weight", "b.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "embed_tokens.weight", "a.bias", "norm.weight"];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for _ in 0..u.int_in_range(1..=6)? {
        let name = if u.ratio(1, 12)? { u.arbitrary::<String>()? } else { (*u.choose(NAMES)?).to_owned() };
        let (dtype, width) = *u.choose(&[
            ("F32", 4),
            ("F32", 4),
            ("F16", 2),
            ("BF16", 2),
            ("F64", 8),
            ("F8_E4M3", 1),
            ("F8_E5M2", 1),
            ("I64", 8),
            ("U8", 1),
        ])?;
        let rank = u.int_in_range(0..=4)?;
        let shape = (0..rank).map(|_| u.int_in_range(if rank > 2 { 0..=5 } else { 0..=20 })).collect::<Result<Vec<usize>>>()?;
        let len = shape.iter().product::<usize>() * width;
        let start = data.len();
        let values = values(u, dtype, shape.iter().product())?;
        data.extend(values);
        if header.contains_key(&name) || name == "__metadata__" {
            data.truncate(start);
            continue;
        }
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, start + len]}));
    }
    let header = serde_json::to_vec(&header).expect("JSON can be written");
    Ok(crate::framing::join_safetensors(&header, &data))
}

/// Values of a tensor: a pattern with some of the fuzzer's own numbers in it.
fn values(u: &mut Unstructured<'_>, dtype: &str, count: usize) -> Result<Vec<u8>> {
    let (scale, special) = (f32::from(u.arbitrary::<i8>()?) / 64.0, u.ratio(1, 6)?);
    let special = if special { Some((u.arbitrary::<u32>()?, u.int_in_range(0..=count.max(1) - 1)?)) } else { None };
    let pattern = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
    let value = |i: usize| match special {
        Some((bits, at)) if at == i => f32::from_bits(bits),
        _ => pattern(i) * scale,
    };
    let bytes = (0..count).flat_map(|i| {
        let value = value(i);
        match dtype {
            "F32" => value.to_le_bytes().to_vec(),
            "F64" => f64::from(value).to_le_bytes().to_vec(),
            "BF16" => value.to_le_bytes()[2..].to_vec(),
            // Neither infinite nor NaN: the exponent is not full.
            "F16" => [(i * 31) as u8, 0x2c | (i as u8 & 0x83)].to_vec(),
            "F8_E4M3" | "F8_E5M2" => vec![(i * 29) as u8 & 0xb7],
            "I64" => (i as i64).to_le_bytes().to_vec(),
            _ => vec![i as u8],
        }
    });
    Ok(bytes.collect())
}

/// A recipe in JSON, with methods of which each may be there.
pub fn recipe(u: &mut Unstructured<'_>) -> Result<Value> {
    const OBSERVERS: &[&str] =
        &["min-max", "mse", "percentile:99", "histogram", "entropy:128", "moving-average:0.1", "memoryless-mse", "min-max"];
    const CODES: &[&str] = &["int8", "uint8", "int4", "uint4"];
    let granularity = match u.int_in_range(0..=4)? {
        0 => "per-tensor".to_owned(),
        1 | 2 => "per-channel".to_owned(),
        _ => format!("per-group:{}", u.int_in_range(1..=24)?),
    };
    let mut settings = json!({"granularity": granularity, "observer": u.choose(OBSERVERS)?, "weights": u.choose(CODES)?});
    if u.ratio(1, 3)? {
        settings["symmetric"] = json!(false);
    }
    if u.ratio(1, 3)? {
        settings["convention"] = json!(u.choose(&["torch", "ort", "compressed-tensors"])?);
    }
    if u.ratio(1, 4)? {
        settings["axis"] = json!(u.int_in_range(-3..=3)?);
    }
    if u.ratio(1, 6)? {
        settings["narrow_range"] = json!(true);
    }
    let mut recipe = json!({"default": settings, "min_elements": u.int_in_range(0..=8)?});
    if u.ratio(1, 3)? {
        recipe["allow_non_finite"] = json!(true);
    }
    if u.ratio(1, 4)? {
        recipe["rule"] =
            json!([{"match": u.choose(&["a*", "*.weight", "re:.*", "?", "w0"])?, "weights": u.choose(&["keep", "int4", "uint8"])?}]);
    }
    if u.ratio(1, 3)? {
        recipe["mode"] = json!(u.choose(&["weight-only", "dynamic", "auto"])?);
    }
    if u.ratio(1, 4)? {
        recipe["activations"] = json!({"dtype": u.choose(&["int8", "uint8", "uint16", "int16"])?, "symmetric": u.arbitrary::<bool>()?});
    }
    Ok(recipe)
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

const FLOAT: u64 = 1;

/// A value of a graph under construction.
struct Drawn {
    name: String,
    dims: Vec<u64>,
}

/// A graph under construction.
#[derive(Default)]
struct Graph {
    fields: Vec<u8>,
    constants: usize,
    values: Vec<Drawn>,
    /// Names of values that a node makes.
    made: usize,
    prefix: String,
}

/// An ONNX model of up to ten nodes, and the names of its values.
pub fn onnx(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, Vec<String>)> {
    let mut graph = Graph::default();
    let dims: Vec<u64> = (0..u.int_in_range(2..=4)?).map(|_| u.int_in_range(1..=6)).collect::<Result<_>>()?;
    graph.fields.extend(bytes(11, &value_info("x", &dims)));
    graph.values.push(Drawn { name: "x".into(), dims });
    for _ in 0..u.int_in_range(1..=10)? {
        graph.node(u, 0)?;
    }
    for value in graph.values.iter().skip(1).rev().take(u.int_in_range(1..=3)?) {
        graph.fields.extend(bytes(12, &value_info(&value.name, &value.dims)));
    }
    graph.fields.extend(bytes(2, b"g"));
    let opset = u.int_in_range(9..=22)?;
    let names = graph.values.iter().map(|value| value.name.clone()).collect();
    let mut model = [number(1, 8), bytes(7, &graph.fields), bytes(8, &number(2, opset))].concat();
    if u.ratio(1, 8)? {
        model.extend(bytes(8, &[bytes(1, b"com.microsoft"), number(2, 1)].concat()));
    }
    Ok((model, names))
}

fn value_info(name: &str, dims: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| bytes(1, &number(1, *dim))).collect();
    let tensor = [number(1, FLOAT), bytes(2, &dims)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

impl Graph {
    fn constant(&mut self, u: &mut Unstructured<'_>, kind: u64, dims: &[u64]) -> Result<String> {
        let name =
            if self.constants > 0 && u.ratio(1, 8)? { format!("{}w0", self.prefix) } else { format!("{}w{}", self.prefix, self.constants) };
        let count = dims.iter().product::<u64>() as usize;
        let (dtype, kind) = match kind {
            FLOAT if u.ratio(1, 10)? => ("F16", 10),
            FLOAT => ("F32", FLOAT),
            7 => ("I64", 7),
            other => ("U8", other),
        };
        let data = values(u, dtype, count)?;
        if name != format!("{}w0", self.prefix) || self.constants == 0 {
            let dims: Vec<u8> = dims.iter().flat_map(|dim| number(1, *dim)).collect();
            self.fields.extend(bytes(5, &[dims, number(2, kind), bytes(8, name.as_bytes()), bytes(9, &data)].concat()));
            self.constants += 1;
        }
        Ok(name)
    }

    /// Adds a node on a value that there is, of dimensions that fit more often than not.
    fn node(&mut self, u: &mut Unstructured<'_>, depth: usize) -> Result<()> {
        const OPS: &[&str] = &[
            "MatMul",
            "MatMul",
            "Gemm",
            "Conv",
            "ConvTranspose",
            "Gather",
            "Add",
            "Mul",
            "Relu",
            "Clip",
            "Sigmoid",
            "Transpose",
            "Identity",
            "Cast",
            "Reshape",
            "Flatten",
            "BatchNormalization",
            "QuantizeLinear",
            "DequantizeLinear",
            "Pair",
            "If",
            "LSTM",
            "MaxPool",
            "Concat",
            "Softmax",
        ];
        let at = u.int_in_range(0..=self.values.len() - 1)?;
        let (input, dims) = (self.values[at].name.clone(), self.values[at].dims.clone());
        let last = dims.last().copied().unwrap_or(1);
        let second = dims.get(1).copied().unwrap_or(1);
        let out = format!("{}v{}", self.prefix, self.made);
        self.made += 1;
        let op = *u.choose(OPS)?;
        let (mut inputs, mut attributes, mut out_dims) = (vec![input.clone()], Vec::new(), dims.clone());
        let width = u.int_in_range(1..=8)?;
        match op {
            "MatMul" => {
                inputs.push(self.constant(u, FLOAT, &[last, width])?);
                if let Some(last) = out_dims.last_mut() {
                    *last = width;
                }
            }
            "Gemm" => {
                let turned = u.arbitrary::<bool>()?;
                let shape = if turned { [width, last] } else { [last, width] };
                inputs.push(self.constant(u, FLOAT, &shape)?);
                if u.ratio(1, 2)? {
                    inputs.push(self.constant(u, FLOAT, &[width])?);
                }
                attributes.push(("transB", u64::from(turned)));
                out_dims = vec![dims.first().copied().unwrap_or(1), width];
            }
            "Conv" | "ConvTranspose" => {
                let shape = [[width, second], [second, width]][usize::from(op == "ConvTranspose")];
                let kernel = vec![1; dims.len().saturating_sub(2)];
                inputs.push(self.constant(u, FLOAT, &[&shape[..], &kernel].concat())?);
                if u.ratio(1, 2)? {
                    inputs.push(self.constant(u, FLOAT, &[width])?);
                }
                if u.ratio(1, 4)? {
                    attributes.push(("group", u.int_in_range(0..=3)?));
                }
                if let Some(second) = out_dims.get_mut(1) {
                    *second = width;
                }
            }
            "Gather" => {
                inputs.insert(0, self.constant(u, FLOAT, &[width, 4])?);
                inputs[1] = self.constant(u, 7, &[2])?;
                out_dims = vec![2, 4];
            }
            "Add" | "Mul" => inputs.push(if u.ratio(1, 2)? { self.constant(u, FLOAT, &[last])? } else { input }),
            "Clip" => inputs.extend([self.constant(u, FLOAT, &[])?, self.constant(u, FLOAT, &[])?]),
            "BatchNormalization" => {
                for _ in 0..4 {
                    inputs.push(self.constant(u, FLOAT, &[second])?);
                }
            }
            "Transpose" => out_dims.reverse(),
            "Cast" => attributes.push(("to", *u.choose(&[1, 10, 11, 7])?)),
            "Reshape" => {
                inputs.push(self.constant(u, 7, &[2])?);
                out_dims = vec![0, 1];
            }
            "Flatten" => out_dims = vec![dims.first().copied().unwrap_or(1), dims.iter().skip(1).product()],
            "QuantizeLinear" | "DequantizeLinear" => {
                inputs.push(self.constant(u, FLOAT, &[])?);
                if u.ratio(3, 4)? {
                    let kind = *u.choose(&[2, 3])?;
                    inputs.push(self.constant(u, kind, &[])?);
                }
            }
            "Pair" => {
                // What quantization-aware training leaves.
                let kind = *u.choose(&[2, 3])?;
                let (scale, zero) = (self.constant(u, FLOAT, &[])?, self.constant(u, kind, &[])?);
                let codes = format!("{out}_codes");
                self.put("QuantizeLinear", &[input, scale.clone(), zero.clone()], &codes, &[], &[])?;
                self.put("DequantizeLinear", &[codes, scale, zero], &out, &[], &[])?;
                self.values.push(Drawn { name: out, dims });
                return Ok(());
            }
            "LSTM" => {
                let hidden = u.int_in_range(1..=3)?;
                inputs.push(self.constant(u, FLOAT, &[1, 4 * hidden, last])?);
                inputs.push(self.constant(u, FLOAT, &[1, 4 * hidden, hidden])?);
                attributes.push(("hidden_size", hidden));
                out_dims = vec![dims.first().copied().unwrap_or(1), 1, second, hidden];
            }
            "If" if depth < 2 => {
                let mut bodies = Vec::new();
                for branch in ["then_branch", "else_branch"] {
                    let mut body = Graph { prefix: format!("{out}{}", &branch[..1]), ..Graph::default() };
                    body.values = self.values.iter().map(|value| Drawn { name: value.name.clone(), dims: value.dims.clone() }).collect();
                    for _ in 0..u.int_in_range(1..=3)? {
                        body.node(u, depth + 1)?;
                    }
                    let last = body.values.last().expect("there is the input");
                    body.fields.extend(bytes(12, &value_info(&last.name, &last.dims)));
                    body.fields.extend(bytes(2, b"body"));
                    bodies.push([bytes(1, branch.as_bytes()), bytes(6, &body.fields), number(20, 5)].concat());
                }
                inputs = vec![self.constant(u, 9, &[])?];
                return self.put("If", &inputs, &out, &[], &bodies).map(|()| self.values.push(Drawn { name: out, dims }));
            }
            _ => {}
        }
        if u.ratio(1, 8)? {
            attributes.push((*u.choose(&["axis", "transA", "transB", "keepdims", "to", "alpha"])?, u.arbitrary::<u8>()?.into()));
        }
        self.put(op, &inputs, &out, &attributes, &[])?;
        self.values.push(Drawn { name: out, dims: out_dims });
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "it ends functions that draw")]
    fn put(&mut self, op: &str, inputs: &[String], out: &str, attributes: &[(&str, u64)], bodies: &[Vec<u8>]) -> Result<()> {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
        let attribute = |(name, value): &(&str, u64)| bytes(5, &[bytes(1, name.as_bytes()), number(3, *value), number(20, 2)].concat());
        let attributes = attributes.iter().flat_map(attribute).chain(bodies.iter().flat_map(|body| bytes(5, body))).collect();
        self.fields.extend(bytes(1, &[inputs, bytes(2, out.as_bytes()), bytes(4, op.as_bytes()), attributes].concat()));
        Ok(())
    }
}
