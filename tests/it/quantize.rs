//! `qtool quantize` on weights: what is stored follows the formulas, what is reported is true, and the way back ends at
//! the same values.
//!
//! The judge is a plain implementation in f64 that shares no code with the program's, with `x` a value, `s` and `z` its
//! scale and zero point:
//!
//! ```text
//! code = clamp(round(x / s) + z, qmin, qmax)      |x - (code - z) s| <= s / 2 inside the grid
//! ```

use crate::support::model::{self, Quantized, Tensor};
use crate::support::{Random, Workdir};
use serde_json::Value;
use std::collections::BTreeMap;

/// Half a step, and what a quotient of up to 256 loses in f32 by two roundings (of 1 / s and of the product): nearly
/// half-way values may go to either side.
const HALF: f64 = 0.5 + 256.0 * f32::EPSILON as f64;

/// What a run left in a directory: the source, the stored tensors, the sidecar.
struct Output {
    source: BTreeMap<String, Tensor>,
    stored: BTreeMap<String, Tensor>,
    sidecar: Value,
}

impl Output {
    fn read(dir: &Workdir, weights: &str, sidecar: &str) -> Self {
        Output {
            source: model::tensors(&dir.read("model.safetensors")),
            stored: model::tensors(&dir.read(weights)),
            sidecar: dir.json(sidecar),
        }
    }

    fn records(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.sidecar["tensors"].as_object().unwrap().iter()
    }
}

/// Every group's scale and zero point follow from its smallest and largest value, and every code from them. Returns the
/// error by the definitions: sum of squares, sum of squared values, largest magnitude.
fn check_codes(tensor: &Tensor, quantized: &Quantized, convention: &str, symmetric: bool) -> [f64; 3] {
    let name = &tensor.name;
    // The references compute in f32, where F64 is rounded first.
    let values: Vec<f64> = tensor.values().into_iter().map(|value| f64::from(value as f32)).collect();
    assert_eq!(quantized.shape, tensor.shape, "{name}");
    assert_eq!(quantized.codes.len(), values.len(), "{name}");
    let mut ranges = vec![(0f64, 0f64); quantized.scales.len()];
    for (index, value) in values.iter().enumerate() {
        let range = &mut ranges[quantized.group(index)];
        *range = (range.0.min(*value), range.1.max(*value));
    }
    let (qmin, qmax) = (f64::from(quantized.qmin), f64::from(quantized.qmax));
    for (group, (low, high)) in ranges.iter().enumerate() {
        let (scale, zero_point) = (f64::from(quantized.scales[group]), f64::from(quantized.zero_points[group]));
        let what = format!("{name} group {group}: range {low}..{high}, scale {scale}, zero point {zero_point}");
        let exact = if symmetric { 2.0 * high.max(-low) / (qmax - qmin) } else { (high - low) / (qmax - qmin) };
        if convention == "ort" && exact < f64::from(f32::MIN_POSITIVE) {
            // A range without extent: any scale does; the zero point is 0, or for groups the middle of unsigned codes.
            let middle = if qmin < 0.0 { 0.0 } else { (qmin + qmax + 1.0) / 2.0 };
            assert!(scale == 1.0 && (zero_point == 0.0 || (symmetric && zero_point == middle)), "{what}");
            continue;
        }
        let floor = if convention == "torch" { f64::from(f32::EPSILON) } else { 0.0 };
        assert!((scale / exact.max(floor) - 1.0).abs() < 1e-6, "{what}: expected scale {exact}");
        assert!((qmin..=qmax).contains(&zero_point), "{what}");
        let expected = if symmetric { if qmin < 0.0 { 0.0 } else { (qmin + qmax + 1.0) / 2.0 } } else { qmin - low / scale };
        let tolerance = if symmetric && convention == "torch" { 0.0 } else { 0.5 + 1e-4 };
        assert!((zero_point - expected).abs() <= tolerance, "{what}: expected zero point {expected}");
    }
    let mut sums = [0f64; 3];
    for (index, value) in values.iter().enumerate() {
        let group = quantized.group(index);
        let (code, scale, zero_point) = (quantized.codes[index], f64::from(quantized.scales[group]), quantized.zero_points[group]);
        let distance = value / scale + f64::from(zero_point) - f64::from(code);
        let (low, high) = match code {
            code if code == quantized.qmin => (-f64::INFINITY, HALF),
            code if code == quantized.qmax => (-HALF, f64::INFINITY),
            _ => (-HALF, HALF),
        };
        let fits = (quantized.qmin..=quantized.qmax).contains(&code) && low <= distance && distance <= high;
        assert!(fits, "{name}[{index}] = {value}, scale {scale}, zero point {zero_point}: code {code} is {distance} off");
        let error = value - quantized.value(index);
        sums = [sums[0] + error * error, sums[1] + value * value, sums[2].max(error.abs())];
    }
    sums
}

/// Every quantized tensor is as the formulas say and its reported error as measured; every other is bit-identical.
fn check(output: &Output, convention: &str, symmetric: bool) {
    let mut expected = output.stored.clone();
    for (name, record) in output.records() {
        let quantized = Quantized::read(name, record, &output.stored);
        let [error, signal, largest] = check_codes(&output.source[name], &quantized, convention, symmetric);
        let reported = |key: &str| record["error"][key].as_f64().unwrap_or_else(|| panic!("{name}: {key}"));
        let sqnr = 10.0 * (signal / error).log10();
        assert!((reported("sqnr_db") - sqnr).abs() < 0.01, "{name}: measured {sqnr} dB, {record}");
        assert!((reported("max_abs") / largest - 1.0).abs() < 1e-4, "{name}: measured {largest}, {record}");
        let mse = error / quantized.codes.len() as f64;
        assert!((reported("mse") / mse - 1.0).abs() < 1e-3, "{name}: measured {mse}, {record}");
        assert_eq!(record["source_dtype"], output.source[name].dtype.as_str(), "{name}");
        expected.retain(|stored, _| stored != name && !stored.starts_with(&format!("{name}.")));
    }
    let kept = output.sidecar["kept"].as_object().unwrap();
    assert_eq!(expected.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    for (name, tensor) in &expected {
        assert_eq!(tensor, &output.source[name], "{name} is not what it was");
        assert!(!kept[name].as_str().unwrap().is_empty(), "{name}: no reason");
    }
}

/// What `dequantize` writes is what the codes stand for, and `compare` measures what the sidecar says.
fn check_way_back(dir: &Workdir, output: &Output, weights: &str) {
    dir.ok(&format!("dequantize {weights} -o back.safetensors --durability none"));
    let back = model::tensors(&dir.read("back.safetensors"));
    assert_eq!(back.keys().collect::<Vec<_>>(), output.source.keys().collect::<Vec<_>>());
    for (name, record) in output.records() {
        let quantized = Quantized::read(name, record, &output.stored);
        let values = back[name].values();
        for (index, value) in values.iter().enumerate() {
            let exact = quantized.value(index) as f32;
            assert!((value - f64::from(exact)).abs() <= f64::from(exact.abs()) * 1e-6, "{name}[{index}]: {value}, expected {exact}");
        }
    }
    for against in [weights, "back.safetensors"] {
        let compared = dir.ok(&format!("compare model.safetensors {against} --json")).json();
        let found: BTreeMap<&str, &Value> =
            compared["tensors"].as_array().unwrap().iter().map(|tensor| (tensor["name"].as_str().unwrap(), tensor)).collect();
        assert_eq!(found.len(), output.source.len());
        for (name, record) in output.records() {
            let near = |key: &str| found[name.as_str()][key].as_f64().unwrap() / record["error"][key].as_f64().unwrap() - 1.0;
            let decibels = found[name.as_str()]["sqnr_db"].as_f64().unwrap() - record["error"]["sqnr_db"].as_f64().unwrap();
            assert!(decibels.abs() < 0.01, "{against}: {name}: {} and {record}", found[name.as_str()]);
            assert!(near("max_abs").abs() < 1e-4, "{against}: {name}: {} and {record}", found[name.as_str()]);
        }
    }
}

#[test]
fn every_scheme_follows_the_formulas_on_a_trained_model() {
    let granularities = [
        ("per-tensor", "0"),
        ("per-channel", "0"),
        ("per-channel", "1"),
        ("per-channel", "-1"),
        ("per-group:32", "0"),
        ("per-group:7", "0"),
    ];
    let dir = Workdir::with_fixture();
    for (case, convention) in ["torch", "ort"].into_iter().enumerate() {
        for symmetry in ["symmetric", "asymmetric"] {
            for weights in ["int8", "uint8", "int4", "uint4"] {
                for (granularity, axis) in granularities {
                    let options =
                        format!("--weights {weights} --granularity {granularity} --axis {axis} --convention {convention} --{symmetry}");
                    dir.ok(&format!("quantize model.safetensors -o q.safetensors --force --quiet --durability none {options}"));
                    let output = Output::read(&dir, "q.safetensors", "q.json");
                    assert_eq!(output.records().count(), 7, "{options}");
                    check(&output, convention, symmetry == "symmetric");
                    // The way back does not depend on who chose the scale.
                    if case == 0 {
                        let _ = std::fs::remove_file(dir.path("back.safetensors"));
                        check_way_back(&dir, &output, "q.safetensors");
                    }
                }
            }
        }
    }
}

#[test]
fn defaults_are_int8_per_channel_symmetric_beside_the_input() {
    let dir = Workdir::with_fixture();
    let run = dir.ok("quantize model.safetensors");
    assert!(run.stderr.is_empty() && run.stdout.contains("model.int8.safetensors"), "{run}");
    assert_eq!(dir.names(), ["model.int8.json", "model.int8.safetensors", "model.safetensors"]);
    let output = Output::read(&dir, "model.int8.safetensors", "model.int8.json");
    check(&output, "torch", true);
    let sidecar = &output.sidecar;
    let kept: Vec<_> = sidecar["kept"].as_object().unwrap().keys().collect();
    assert_eq!(kept.len(), 8, "{kept:?}");
    for (name, record) in output.records() {
        let fields = ["dtype", "scheme", "granularity", "observer", "rounding", "convention"].map(|key| record[key].as_str().unwrap());
        assert_eq!(fields, ["int8", "symmetric", "per_channel", "min-max", "nearest", "torch"], "{name}");
        assert_eq!((&record["axis"], &record["qmin"], &record["qmax"]), (&0.into(), &(-128).into(), &127.into()), "{name}");
        let rows = record["shape"][0].as_u64().unwrap() as usize;
        assert_eq!(record["scale"].as_array().unwrap().len(), rows, "{name}");
    }
    let weights = dir.read("model.int8.safetensors");
    assert!(weights.len() < dir.read("model.safetensors").len() * 27 / 100, "{} bytes", weights.len());
    assert_eq!(model::header(&weights)["__metadata__"], serde_json::json!({"format": "pt"}));
    let file = &sidecar["output"]["files"][0];
    assert_eq!(file["name"], "model.int8.safetensors");
    assert_eq!(file["bytes"], weights.len());
    assert_eq!(file["blake3"], blake3::hash(&weights).to_hex().as_str());
    let source = &sidecar["source"]["files"][0];
    assert_eq!(source["name"], "model.safetensors");
    assert_eq!(source["blake3"], blake3::hash(&dir.read("model.safetensors")).to_hex().as_str());
    assert_eq!((&sidecar["format"], &sidecar["version"]), (&"qtool-sidecar".into(), &1.into()));
    dir.ok("verify model.int8.json");
}

/// Pseudorandom stored floats of a type whose values are all finite in f32.
fn random_floats(dtype: &str, width: usize, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(width * count);
    while bytes.len() < width * count {
        // Exponents of a weight's size; any mantissa.
        let stored = match dtype {
            "F64" => (f64::from(random.normal()) * 0.03 + 1e-12).to_le_bytes().to_vec(),
            "F32" => (random.normal() * 0.03).to_le_bytes().to_vec(),
            "BF16" => (random.normal() * 0.03).to_le_bytes()[2..].to_vec(),
            _ => random.bits().to_le_bytes()[..width].to_vec(),
        };
        if model::decode(dtype, &stored)[0].is_finite() {
            bytes.extend(stored);
        }
    }
    bytes
}

#[test]
fn every_float_type_is_read_and_comes_back() {
    let types = [("F64", 8), ("F32", 4), ("BF16", 2), ("F16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1)];
    for (dtype, width) in types {
        let mut random = Random(width as u64);
        let (shape, count) = ([37, 41], 37 * 41);
        let tensor = Tensor::new("layer.weight", dtype, &shape, random_floats(dtype, width, count, &mut random));
        let dir = Workdir::with_model(&model::file(&[tensor]));
        let is_fp8 = dtype.starts_with("F8");
        if is_fp8 {
            // Eight bits already: only when asked for.
            dir.ok("quantize model.safetensors -o kept.safetensors");
            let output = Output::read(&dir, "kept.safetensors", "kept.json");
            assert_eq!(output.stored, output.source, "{dtype}");
            assert!(output.sidecar["kept"]["layer.weight"].as_str().unwrap().contains("8 bits already"));
        }
        let include = if is_fp8 { "--include layer" } else { "" };
        dir.ok(&format!("quantize model.safetensors -o q.safetensors {include}"));
        let output = Output::read(&dir, "q.safetensors", "q.json");
        assert_eq!(output.records().count(), 1, "{dtype}");
        check(&output, "torch", true);
        dir.ok("dequantize q.safetensors -o back.safetensors");
        let back = &model::tensors(&dir.read("back.safetensors"))["layer.weight"];
        assert_eq!((back.dtype.as_str(), back.shape.as_slice()), (dtype, &shape[..]));
        let record = &output.sidecar["tensors"]["layer.weight"];
        let quantized = Quantized::read("layer.weight", record, &output.stored);
        for (index, value) in back.values().into_iter().enumerate() {
            // Half a step of the type at that magnitude, or of its smallest numbers.
            let (relative, absolute) = match dtype {
                "BF16" => (1.0 / 256.0, 1e-38),
                "F16" => (1.0 / 2048.0, 3e-8),
                "F8_E4M3" => (1.0 / 16.0, 1e-3),
                "F8_E5M2" => (1.0 / 8.0, 8e-6),
                _ => (1e-6, 1e-38),
            };
            let exact = quantized.value(index);
            let largest = if dtype == "F8_E4M3" {
                448.0
            } else if dtype == "F8_E5M2" {
                57344.0
            } else {
                f64::INFINITY
            };
            let exact = exact.clamp(-largest, largest);
            assert!((value - exact).abs() <= relative * exact.abs() + absolute, "{dtype}[{index}]: {value}, expected {exact}");
        }
        dir.ok("verify q.safetensors");
    }
}
