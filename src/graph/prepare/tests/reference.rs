//! Plain loops that compute the operators which folding concerns, in f64.

use crate::formats::onnx::proto::{GraphProto, NodeProto};
use std::collections::HashMap;

/// Shape and values, row-major.
#[derive(Clone, Debug)]
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// Computes all values of a graph.
pub(super) fn run(graph: &GraphProto, inputs: &[(&str, Array)]) -> HashMap<String, Array> {
    let mut values: HashMap<String, Array> = inputs.iter().map(|(name, array)| ((*name).to_owned(), array.clone())).collect();
    for tensor in &graph.initializer {
        let data = tensor.to_floats().map(|floats| floats.into_iter().map(f64::from).collect());
        let ints = || tensor.to_ints().unwrap().into_iter().map(|value| value as f64).collect();
        let array = Array { shape: tensor.shape().unwrap(), values: data.unwrap_or_else(ints) };
        values.insert(tensor.name.clone(), array);
    }
    for node in &graph.node {
        let inputs: Vec<&Array> = node.input.iter().filter(|name| !name.is_empty()).map(|name| &values[name]).collect();
        let result = match node.op_type.as_str() {
            "Conv" => conv(node, &inputs),
            "ConvTranspose" => conv_transpose(node, &inputs),
            "BatchNormalization" => batch_normalization(node, &inputs),
            "Gemm" => gemm(node, &inputs),
            "MatMul" => matrix_product(inputs[0], inputs[1], false),
            "Relu" => Array { shape: inputs[0].shape.clone(), values: inputs[0].values.iter().map(|v| v.max(0.0)).collect() },
            op_type => elementwise(op_type, inputs[0], inputs[1]),
        };
        values.insert(node.output[0].clone(), result);
    }
    values
}

/// `[n, c, h, w]` by `[out, c / group, kh, kw]`, with the same padding on all sides.
fn conv(node: &NodeProto, inputs: &[&Array]) -> Array {
    let (x, w) = (inputs[0], inputs[1]);
    let group = node.int("group", 1) as usize;
    let pad = node.attribute("pads").map_or(0, |pads| pads.ints[0] as usize);
    let [n, c, h, wide] = x.shape[..] else { panic!("{:?}", x.shape) };
    let [out, per, kh, kw] = w.shape[..] else { panic!("{:?}", w.shape) };
    let (oh, ow) = (h + 2 * pad + 1 - kh, wide + 2 * pad + 1 - kw);
    let mut y = Array { shape: vec![n, out, oh, ow], values: Vec::new() };
    for (b, o, i, j) in places(&[n, out, oh, ow]) {
        let mut sum = inputs.get(2).map_or(0.0, |bias| bias.values[o]);
        for (_, k, p, q) in places(&[1, per, kh, kw]) {
            let (row, column) = ((i + p).wrapping_sub(pad), (j + q).wrapping_sub(pad));
            if row < h && column < wide {
                let channel = o / (out / group) * per + k;
                sum += x.values[((b * c + channel) * h + row) * wide + column] * w.values[((o * per + k) * kh + p) * kw + q];
            }
        }
        y.values.push(sum);
    }
    y
}

/// `[n, c, h, w]` by `[c, out / group, kh, kw]`.
fn conv_transpose(node: &NodeProto, inputs: &[&Array]) -> Array {
    let (x, w) = (inputs[0], inputs[1]);
    let group = node.int("group", 1) as usize;
    let [n, c, h, wide] = x.shape[..] else { panic!("{:?}", x.shape) };
    let [_, per, kh, kw] = w.shape[..] else { panic!("{:?}", w.shape) };
    let (out, oh, ow) = (per * group, h + kh - 1, wide + kw - 1);
    let bias = |o: usize| inputs.get(2).map_or(0.0, |bias| bias.values[o]);
    let mut y = Array { shape: vec![n, out, oh, ow], values: places(&[n, out, oh, ow]).map(|(_, o, ..)| bias(o)).collect() };
    for (b, channel, i, j) in places(&[n, c, h, wide]) {
        for (_, k, p, q) in places(&[1, per, kh, kw]) {
            let o = channel / (c / group) * per + k;
            y.values[((b * out + o) * oh + i + p) * ow + j + q] +=
                x.values[((b * c + channel) * h + i) * wide + j] * w.values[((channel * per + k) * kh + p) * kw + q];
        }
    }
    y
}

fn batch_normalization(node: &NodeProto, inputs: &[&Array]) -> Array {
    let (x, epsilon) = (inputs[0], f64::from(node.float("epsilon", 1e-5)));
    let inner: usize = x.shape[2..].iter().product();
    let normalize = |(i, value): (usize, &f64)| {
        let c = i / inner % x.shape[1];
        let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|input| inputs[input].values[c]);
        (value - mean) / (variance + epsilon).sqrt() * scale + bias
    };
    Array { shape: x.shape.clone(), values: x.values.iter().enumerate().map(normalize).collect() }
}

fn gemm(node: &NodeProto, inputs: &[&Array]) -> Array {
    let mut y = matrix_product(inputs[0], inputs[1], node.int("transB", 0) != 0);
    let (alpha, beta) = (f64::from(node.float("alpha", 1.0)), f64::from(node.float("beta", 1.0)));
    y.values.iter_mut().for_each(|value| *value *= alpha);
    match inputs.get(2) {
        None => y,
        Some(c) => elementwise("Add", &y, &Array { shape: c.shape.clone(), values: c.values.iter().map(|c| c * beta).collect() }),
    }
}

fn matrix_product(a: &Array, b: &Array, transposed: bool) -> Array {
    let (m, k) = (a.shape[0], a.shape[1]);
    let n = if transposed { b.shape[0] } else { b.shape[1] };
    let at = |i: usize, j: usize| if transposed { b.values[j * k + i] } else { b.values[i * n + j] };
    let value = |i: usize, j: usize| (0..k).map(|l| a.values[i * k + l] * at(l, j)).sum();
    Array { shape: vec![m, n], values: (0..m * n).map(|p| value(p / n, p % n)).collect() }
}

fn elementwise(op_type: &str, a: &Array, b: &Array) -> Array {
    let rank = a.shape.len().max(b.shape.len());
    let padded = |shape: &[usize]| [vec![1; rank - shape.len()], shape.to_vec()].concat();
    let (p, q) = (padded(&a.shape), padded(&b.shape));
    let shape: Vec<usize> = p.iter().zip(&q).map(|(x, y)| *x.max(y)).collect();
    let place = |own: &[usize], mut at: usize| {
        let mut coordinates = vec![0; rank];
        for axis in (0..rank).rev() {
            coordinates[axis] = at % shape[axis];
            at /= shape[axis];
        }
        own.iter().zip(&coordinates).fold(0, |place, (size, i)| place * size + if *size == 1 { 0 } else { *i })
    };
    let compute = |i: usize| {
        let (x, y) = (a.values[place(&p, i)], b.values[place(&q, i)]);
        match op_type {
            "Add" => x + y,
            "Sub" => x - y,
            "Mul" => x * y,
            "Div" => x / y,
            other => panic!("{other}"),
        }
    };
    Array { values: (0..shape.iter().product()).map(compute).collect(), shape }
}

fn places(shape: &[usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<> {
    let [_, b, c, d] = *shape;
    (0..shape.iter().product()).map(move |i: usize| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}
