//! Models made on the spot, and what is in the files that were written: an implementation of the formats that shares no
//! code with the program's.

use super::Random;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A tensor to be stored, or one that was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Tensor { name: name.into(), dtype: dtype.into(), shape: shape.into(), bytes }
    }

    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Tensor::new(name, "F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Pseudorandom weights, normally distributed, a different magnitude for each of the outermost rows.
    pub(crate) fn weights(name: &str, shape: &[usize], random: &mut Random) -> Self {
        let rows = shape[0];
        let row: usize = shape[1..].iter().product();
        let values: Vec<f32> = (0..rows)
            .flat_map(|_| {
                let magnitude = 0.01 + 0.1 * (random.bits() as u8) as f32 / 255.0;
                (0..row).map(|_| random.normal() * magnitude).collect::<Vec<_>>()
            })
            .collect();
        Tensor::f32(name, shape, &values)
    }

    /// The values of a float tensor, exactly.
    pub(crate) fn values(&self) -> Vec<f64> {
        decode(&self.dtype, &self.bytes)
    }
}

/// A safetensors file of these tensors, in this order.
pub(crate) fn file(tensors: &[Tensor]) -> Vec<u8> {
    file_with_metadata(tensors, "")
}

/// As [`file`], with the text of a first header member such as `"__metadata__":{}`.
pub(crate) fn file_with_metadata(tensors: &[Tensor], member: &str) -> Vec<u8> {
    let mut members: Vec<String> = if member.is_empty() { vec![] } else { vec![member.to_owned()] };
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes.len();
        let Tensor { name, dtype, shape, .. } = tensor;
        members.push(format!("{}:{}", json!(name), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})));
    }
    let header = format!("{{{}}}", members.join(","));
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|tensor| content.extend_from_slice(&tensor.bytes));
    content
}

/// The tensors of a safetensors file, by name, as the reference reader sees them.
pub(crate) fn tensors(content: &[u8]) -> BTreeMap<String, Tensor> {
    let file = safetensors::SafeTensors::deserialize(content).expect("the reference reader accepts the file");
    let stored = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let tensor = Tensor::new(&name, &view.dtype().to_string(), view.shape(), view.data().to_vec());
        (name, tensor)
    };
    file.tensors().into_iter().map(|(name, view)| stored((name.to_string(), view))).collect()
}

/// The JSON header of a safetensors file.
pub(crate) fn header(content: &[u8]) -> Map<String, Value> {
    serde_json::from_str(header_text(content)).unwrap()
}

/// Names of the tensors in the order in which the header lists them.
pub(crate) fn header_order(content: &[u8]) -> Vec<String> {
    let text = header_text(content);
    let place = |name: &String| text.find(&format!("{}:{{", json!(name))).unwrap();
    let mut names: Vec<String> = header(content).keys().filter(|name| *name != "__metadata__").cloned().collect();
    names.sort_by_key(place);
    names
}

fn header_text(content: &[u8]) -> &str {
    let length = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
    std::str::from_utf8(&content[8..8 + length]).unwrap()
}

/// Floats as they are stored: bits of the exponent, of the mantissa, and whether there are infinities.
const FLOATS: &[(&str, u32, u32, bool)] = &[
    ("F64", 11, 52, true),
    ("F32", 8, 23, true),
    ("BF16", 8, 7, true),
    ("F16", 5, 10, true),
    ("F8_E4M3", 4, 3, false),
    ("F8_E5M2", 5, 2, true),
];

/// The values of stored floats, by the definition of the formats: `±2^(exponent - bias) · 1.mantissa`.
pub(crate) fn decode(dtype: &str, bytes: &[u8]) -> Vec<f64> {
    let &(_, exponent_bits, mantissa_bits, infinities) = FLOATS.iter().find(|float| float.0 == dtype).expect("a float type");
    let width = (1 + exponent_bits + mantissa_bits) as usize / 8;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let value = |stored: &[u8]| {
        let bits = stored.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let mantissa = bits & ((1 << mantissa_bits) - 1);
        let exponent = (bits >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
        let sign = if bits >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
        let fraction = mantissa as f64 / (1u64 << mantissa_bits) as f64;
        let largest = exponent == (1 << exponent_bits) - 1;
        sign * match (largest, mantissa) {
            (true, 0) if infinities => f64::INFINITY,
            (true, _) if infinities => f64::NAN,
            (true, mantissa) if mantissa == (1 << mantissa_bits) - 1 => f64::NAN,
            _ if exponent == 0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
        }
    };
    bytes.chunks(width).map(value).collect()
}

/// How one tensor was quantized, from its sidecar record and the tensors that go with it.
pub(crate) struct Quantized {
    pub shape: Vec<usize>,
    /// One a value, in row-major order.
    pub codes: Vec<i32>,
    /// One a group.
    pub scales: Vec<f32>,
    /// One a group.
    pub zero_points: Vec<i32>,
    pub qmin: i32,
    pub qmax: i32,
    granularity: String,
    axis: usize,
    group_size: usize,
}

impl Quantized {
    /// Reads the tensor `name` of an output.
    pub(crate) fn read(name: &str, record: &Value, stored: &BTreeMap<String, Tensor>) -> Self {
        let shape: Vec<usize> = serde_json::from_value(record["shape"].clone()).unwrap();
        let elements: usize = shape.iter().product();
        let (bits, signed) = match record["dtype"].as_str().unwrap() {
            "int8" => (8, true),
            "uint8" => (8, false),
            "int4" => (4, true),
            "uint4" => (4, false),
            other => panic!("{other}"),
        };
        let codes = unpack(&stored[name], bits, signed, elements);
        let numbers = |value: &Value| match value {
            Value::Array(numbers) => numbers.iter().map(|number| number.as_f64().unwrap()).collect::<Vec<f64>>(),
            other => {
                let tensor = &stored[other["tensor"].as_str().unwrap()];
                match tensor.dtype.as_str() {
                    "F32" => tensor.values(),
                    "I8" => tensor.bytes.iter().map(|byte| f64::from(*byte as i8)).collect(),
                    _ => tensor.bytes.iter().map(|byte| f64::from(*byte)).collect(),
                }
            }
        };
        let scales: Vec<f32> = numbers(&record["scale"]).into_iter().map(|scale| scale as f32).collect();
        let mut zero_points: Vec<i32> = numbers(&record["zero_point"]).into_iter().map(|zero_point| zero_point as i32).collect();
        if zero_points.len() == 1 {
            zero_points = vec![zero_points[0]; scales.len()];
        }
        let number = |key: &str| record[key].as_i64().unwrap_or(0);
        Quantized {
            codes,
            scales,
            zero_points,
            qmin: number("qmin") as i32,
            qmax: number("qmax") as i32,
            granularity: record["granularity"].as_str().unwrap().to_owned(),
            axis: number("axis") as usize,
            group_size: number("group_size") as usize,
            shape,
        }
    }

    /// The group of the value at a row-major index.
    pub(crate) fn group(&self, index: usize) -> usize {
        match self.granularity.as_str() {
            "per_tensor" => 0,
            "per_channel" => {
                let inner: usize = self.shape[self.axis + 1..].iter().product();
                index / inner % self.shape[self.axis]
            }
            "per_group" => {
                let row = *self.shape.last().unwrap();
                index / row * row.div_ceil(self.group_size) + index % row / self.group_size
            }
            other => panic!("{other}"),
        }
    }

    /// The value that a code stands for.
    pub(crate) fn value(&self, index: usize) -> f64 {
        let group = self.group(index);
        f64::from(self.codes[index] - self.zero_points[group]) * f64::from(self.scales[group])
    }
}

/// Stored codes as integers; of four bits, two to a byte, the low ones first.
fn unpack(tensor: &Tensor, bits: u32, signed: bool, elements: usize) -> Vec<i32> {
    let fields: Vec<u8> = match bits {
        8 => tensor.bytes.clone(),
        _ => tensor.bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).take(elements).collect(),
    };
    assert_eq!(fields.len(), elements, "{}", tensor.name);
    assert_eq!(tensor.bytes.len(), (elements * bits as usize).div_ceil(8), "{}", tensor.name);
    let wrap = if signed { 1i32 << (bits - 1) } else { 1 << bits };
    fields.into_iter().map(|field| if i32::from(field) >= wrap { i32::from(field) - 2 * wrap } else { field.into() }).collect()
}
