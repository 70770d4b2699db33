//! Values that are hard to quantize: none, one, all alike, tiny, huge, and those that are no numbers.

use crate::support::Workdir;
use crate::support::model::{self, Quantized, Tensor};

/// Every scheme that treats ranges differently.
fn schemes() -> Vec<String> {
    let mut schemes = Vec::new();
    for convention in ["torch", "ort", "compressed-tensors"] {
        for symmetry in ["--symmetric", "--asymmetric"] {
            for weights in ["int8", "uint4"] {
                for granularity in ["per-tensor", "per-channel", "per-group:3"] {
                    schemes.push(format!("--convention {convention} {symmetry} --weights {weights} --granularity {granularity}"));
                }
            }
        }
    }
    schemes
}

fn constant(value: f32) -> Tensor {
    Tensor::f32("w", &[4, 8], &[value; 32])
}

/// A finite positive scale, zero stays zero, and no value is further off than the scheme allows.
#[test]
fn every_finite_tensor_has_a_finite_positive_scale_and_keeps_zero() {
    let alternating = |a: f32, b: f32| Tensor::f32("w", &[4, 8], &[[a, b]; 16].concat());
    let cases = [
        ("all zero", constant(0.0)),
        ("all minus zero", constant(-0.0)),
        ("constant", constant(0.37)),
        ("negative constant", constant(-2.5)),
        ("one channel zero", Tensor::f32("w", &[2, 4], &[0.0, 0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.0])),
        ("smallest subnormals", alternating(1e-45, -1e-45)),
        ("largest subnormals", alternating(1.17e-38, -1e-39)),
        ("whole range", alternating(f32::MAX, f32::MIN)),
        ("largest only", constant(f32::MAX)),
        ("lowest only", constant(f32::MIN)),
        ("largest and zero", alternating(f32::MAX, 0.0)),
        ("one outlier", Tensor::f32("w", &[2, 3], &[1e-3, 2e-3, 1e6, 0.0, 1.0, -1.0])),
        ("one element", Tensor::f32("w", &[1, 1], &[0.5])),
        ("rows of one", Tensor::f32("w", &[7, 1], &[1.0, -2.0, 0.0, 3.0, 1e-30, -1e30, 5.0])),
    ];
    for (what, tensor) in cases {
        let dir = Workdir::with_model(&model::file(std::slice::from_ref(&tensor)));
        let values = tensor.values();
        for scheme in schemes() {
            let what = format!("{what}, {scheme}");
            dir.ok(&format!("quantize model.safetensors -o q.safetensors --include w --force --quiet --durability none {scheme}"));
            let sidecar = dir.json("q.json");
            let record = &sidecar["tensors"]["w"];
            let quantized = Quantized::read("w", record, &model::tensors(&dir.read("q.safetensors")));
            assert!(quantized.scales.iter().all(|scale| scale.is_finite() && *scale > 0.0), "{what}: {:?}", quantized.scales);
            for (index, value) in values.iter().enumerate() {
                let (restored, scale) = (quantized.value(index), f64::from(quantized.scales[quantized.group(index)]));
                if *value == 0.0 {
                    assert_eq!(restored, 0.0, "{what}: zero at {index}");
                }
                // One and a half steps: half by rounding, and one at the end that a symmetric grid of -128 to 127 lacks or
                // that rounding the zero point moves.
                assert!((restored - value).abs() <= 1.5001 * scale, "{what}: {value} at {index} became {restored}, scale {scale}");
            }
            for key in ["max_abs", "mse"] {
                let error = record["error"][key].as_f64().unwrap_or_else(|| panic!("{what}: {record}"));
                assert!(error.is_finite() && error >= 0.0, "{what}: {record}");
            }
            dir.ok("verify q.safetensors");
            let _ = std::fs::remove_file(dir.path("back.safetensors"));
            dir.ok("dequantize q.safetensors -o back.safetensors --durability none");
            let back = model::tensors(&dir.read("back.safetensors"))["w"].values();
            for (index, value) in back.iter().enumerate() {
                // The code -128 of a range that ends at the largest f32 lies beyond it.
                let overflows = quantized.value(index).abs() > f64::from(f32::MAX);
                assert!(value.is_finite() || overflows, "{what}: {value} at {index}");
            }
        }
    }
}

#[test]
fn tensors_without_rows_and_columns_are_copied() {
    let tensors = [
        Tensor::f32("empty", &[0, 16], &[]),
        Tensor::f32("empty_inside", &[4, 0, 2], &[]),
        Tensor::f32("scalar", &[], &[1.5]),
        Tensor::f32("vector", &[2048], &[0.25; 2048]),
        Tensor::new("count", "I64", &[2, 600], vec![7; 9600]),
        Tensor::new("mask", "BOOL", &[40, 40], vec![1; 1600]),
        Tensor::new("done", "I8", &[40, 40], vec![200; 1600]),
    ];
    let dir = Workdir::with_model(&model::file(&tensors));
    dir.ok("quantize model.safetensors");
    let stored = model::tensors(&dir.read("model.int8.safetensors"));
    for tensor in &tensors {
        assert_eq!(&stored[&tensor.name], tensor);
    }
    let sidecar = dir.json("model.int8.json");
    let reasons = [
        ("empty", "no elements"),
        ("empty_inside", "no elements"),
        ("scalar", "rank 0"),
        ("vector", "rank 1"),
        ("count", "integer dtype I64"),
        ("mask", "boolean dtype BOOL"),
        ("done", "quantized already"),
    ];
    for (name, reason) in reasons {
        assert!(sidecar["kept"][name].as_str().unwrap().contains(reason), "{name}: {}", sidecar["kept"][name]);
    }
    assert_eq!(sidecar["tensors"], serde_json::json!({}));
}

/// A model whose weight `w` of 48 × 64 has `value` at `index`, beside a sound one.
fn with_value(dtype: &str, index: usize, stored: &[u8]) -> Vec<u8> {
    let width = stored.len();
    let mut bytes = vec![0u8; 48 * 64 * width];
    bytes[index * width..][..width].copy_from_slice(stored);
    model::file(&[Tensor::f32("sound", &[40, 40], &[0.5; 1600]), Tensor::new("w", dtype, &[48, 64], bytes)])
}

#[test]
fn weights_that_are_no_numbers_are_refused_or_kept_on_request() {
    let cases: &[(&str, &[u8], &str)] = &[
        ("F32", &f32::NAN.to_le_bytes(), "NaN"),
        ("F32", &0xff80_0001u32.to_le_bytes(), "NaN"),
        ("F32", &f32::INFINITY.to_le_bytes(), "Inf"),
        ("F32", &f32::NEG_INFINITY.to_le_bytes(), "Inf"),
        ("F16", &0x7c00u16.to_le_bytes(), "Inf"),
        ("BF16", &0x7fc0u16.to_le_bytes(), "NaN"),
        ("F64", &1e300f64.to_le_bytes(), "range"),
        ("F64", &f64::NAN.to_le_bytes(), "NaN"),
    ];
    for (dtype, stored, kind) in cases {
        for (index, granularity) in [(0, "per-channel"), (48 * 64 - 1, "per-tensor"), (1000, "per-channel --axis 1"), (77, "per-group:16")]
        {
            let dir = Workdir::with_model(&with_value(dtype, index, stored));
            let what = format!("{dtype} {kind} at {index}, {granularity}");
            let run = dir.fails(&format!("quantize model.safetensors --granularity {granularity}"), 1);
            let wanted =
                ["model.safetensors", "\"w\"", kind, &format!("found 1 {}", if *kind == "range" { "values out of f32" } else { kind })];
            assert!(wanted.iter().all(|part| run.stderr.contains(part)), "{what}: {run}");
            assert!(run.stderr.contains(&format!("first at index {index}\n")), "{what}: {run}");
            assert_eq!(dir.names(), ["model.safetensors"], "{what}");
            dir.ok(&format!("quantize model.safetensors --allow-non-finite --granularity {granularity}"));
            let (source, stored) = (model::tensors(&dir.read("model.safetensors")), model::tensors(&dir.read("model.int8.safetensors")));
            assert_eq!(stored["w"], source["w"], "{what}");
            assert_eq!(stored["sound"].dtype, "I8", "{what}");
            assert_eq!(dir.json("model.int8.json")["kept"]["w"], "NaN or Inf", "{what}");
        }
    }
}

/// Weights too small to be quantized are still looked at: a NaN in a bias-sized matrix is a broken model.
#[test]
fn a_small_weight_with_nan_is_refused_but_a_vector_is_not_a_weight() {
    let nan = Tensor::f32("w", &[2, 2], &[0.0, f32::NAN, 1.0, 2.0]);
    let dir = Workdir::with_model(&model::file(&[nan]));
    assert!(dir.fails("quantize model.safetensors", 1).stderr.contains("first at index 1\n"));
    let mask = Tensor::f32("mask", &[4], &[0.0, f32::NEG_INFINITY, 1.0, 2.0]);
    let dir = Workdir::with_model(&model::file(std::slice::from_ref(&mask)));
    dir.ok("quantize model.safetensors");
    assert_eq!(model::tensors(&dir.read("model.int8.safetensors"))["mask"], mask);
}
