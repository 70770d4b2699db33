//! `--format compressed-tensors`: what is stored, by hand; presets; what is refused. `tests/interop` loads it with transformers.

use crate::support::model::{self, Tensor};
use crate::support::{Random, Workdir};
use serde_json::json;

/// A directory `m` with two layers' worth of Linear modules, an embedding, a head and a norm.
fn checkpoint() -> Workdir {
    let dir = Workdir::new();
    let mut random = Random(3);
    let mut tensors = vec![Tensor::weights("model.embed_tokens.weight", &[40, 64], &mut random)];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        tensors.push(Tensor::weights(&format!("model.layers.0.{name}.weight"), &[24, 64], &mut random));
    }
    tensors.push(Tensor::weights("model.layers.0.block.gate.weight", &[8, 64], &mut random));
    tensors.push(Tensor::weights("model.layers.0.odd.weight", &[32, 60], &mut random));
    tensors.push(Tensor::f32("model.norm.weight", &[64], &[1.0; 64]));
    tensors.push(Tensor::weights("lm_head.weight", &[40, 64], &mut random));
    dir.write("m/model.safetensors", model::file(&tensors));
    dir.write("m/config.json", r#"{"model_type": "llama", "rope": 1e-05, "tie_word_embeddings": false}"#);
    dir
}

const SCHEMES: &[&str] = &["w8a8", "w8a16", "w8a16-group", "w4a16", "w4a16-asym"];

#[test]
fn every_preset_is_stored_whatever_the_threads_and_comes_back() {
    for scheme in SCHEMES {
        let dir = checkpoint();
        let groups = if scheme.contains("w4") || scheme.contains("group") { "--granularity per-group:32" } else { "" };
        dir.ok(&format!("quantize m --scheme {scheme} {groups} -o q --threads 1"));
        dir.ok(&format!("quantize m --scheme {scheme} {groups} -o again --threads 3"));
        dir.ok("quantize m --format compressed-tensors --recipe q/qtool.json -o recipe");
        for other in ["again", "recipe"] {
            assert_eq!(dir.read(format!("{other}/model.safetensors")), dir.read("q/model.safetensors"), "{scheme}");
            assert_eq!(dir.read(format!("{other}/config.json")), dir.read("q/config.json"), "{scheme}");
        }
        dir.ok("verify q");
        let config = dir.json("q/config.json");
        assert_eq!(config["rope"], 1e-5);
        let quantization = &config["quantization_config"];
        let odd = if *scheme == "w8a8" || *scheme == "w8a16" { vec![] } else { vec!["model.layers.0.odd"] };
        let ignored: Vec<&str> = ["lm_head", "model.layers.0.block.gate"].into_iter().chain(odd).collect();
        assert_eq!(quantization["ignore"], json!(ignored), "{scheme}");
        dir.ok("dequantize q -o back");
        assert_eq!(dir.json("back/config.json"), dir.json("m/config.json"));
        let (before, after) = (model::tensors(&dir.read("m/model.safetensors")), model::tensors(&dir.read("back/model.safetensors")));
        assert!(before.keys().eq(after.keys()), "{scheme}");
        assert_eq!(before["lm_head.weight"], after["lm_head.weight"]);
        // Of directories that others wrote, names and dimensions tell as much.
        std::fs::rename(dir.path("q/qtool.json"), dir.path("aside.json")).unwrap();
        dir.ok("dequantize q -o without");
        assert_eq!(dir.read("without/model.safetensors"), dir.read("back/model.safetensors"), "{scheme}");
        dir.ok("compare m q --min-sqnr 14");
        std::fs::rename(dir.path("aside.json"), dir.path("q/qtool.json")).unwrap();
        let floor = if scheme.contains("w4") { "14" } else { "35" };
        dir.ok(&format!("compare m q --min-sqnr {floor}"));
    }
}

#[test]
fn four_bits_are_packed_from_the_lowest_with_eight_added() {
    let dir = checkpoint();
    dir.ok("quantize m --scheme w4a16-asym --granularity per-group:32 -o q");
    let stored = model::tensors(&dir.read("q/model.safetensors"));
    let source = model::tensors(&dir.read("m/model.safetensors"));
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensor = |suffix: &str| &stored[&format!("{name}{suffix}")];
    assert_eq!((tensor("_packed").shape.as_slice(), tensor("_packed").dtype.as_str()), (&[24, 8][..], "I32"));
    assert_eq!((tensor("_scale").shape.as_slice(), tensor("_zero_point").shape.as_slice()), (&[24, 2][..], &[3, 2][..]));
    assert_eq!(tensor("_shape").bytes, [24i64, 64].map(i64::to_le_bytes).concat());
    assert!(!stored.contains_key(name));
    let word = |tensor: &Tensor, i: usize| u32::from_le_bytes(tensor.bytes[4 * i..4 * i + 4].try_into().unwrap());
    let (values, scales) = (source[name].values(), tensor("_scale").values());
    for (row, column) in (0..24).flat_map(|row| (0..64).map(move |column| (row, column))) {
        let group = 2 * row + column / 32;
        let code = word(tensor("_packed"), row * 8 + column / 8) >> (column % 8 * 4) & 15;
        let zero_point = word(tensor("_zero_point"), row / 8 * 2 + column / 32) >> (row % 8 * 4) & 15;
        let error = (f64::from(code) - f64::from(zero_point)) * scales[group] - values[row * 64 + column];
        assert!(error.abs() <= 0.501 * scales[group], "{row}, {column}: {error}");
    }
}

#[test]
fn what_the_form_cannot_hold_is_refused_and_nothing_is_written() {
    let dir = checkpoint();
    dir.write("split.toml", "[[rule]]\nmatch = \"*.k_proj\"\nweights = \"keep\"\n");
    for (options, code) in [
        ("--scheme w8a8 --recipe split.toml", 2),
        ("--format compressed-tensors --mode static", 2),
        ("--format compressed-tensors --weights uint8", 2),
        ("--format compressed-tensors --granularity per-tensor", 2),
        ("--format compressed-tensors --mode dynamic --asymmetric", 2),
        ("--format compressed-tensors --axis 1", 2),
    ] {
        dir.fails(&format!("quantize m {options} -o q"), code).expect_one_error();
    }
    dir.fails("quantize m/model.safetensors --scheme w8a8 -o q.safetensors", 1).expect_one_error();
    for (config, code) in [
        ("", 1),
        ("[]", 1),
        ("{", 1),
        (r#"{"a": 1, "a": 2}"#, 1),
        (r#"{"model_type": "gpt2"}"#, 1),
        (r#"{"quantization_config": {"quant_method": "gptq"}}"#, 1),
    ] {
        dir.write("m/config.json", config);
        dir.fails("quantize m --scheme w8a8 -o q", code).expect_one_error();
    }
    std::fs::remove_file(dir.path("m/config.json")).unwrap();
    dir.fails("quantize m --scheme w8a8 -o q", 4).expect_one_error();
    assert!(!dir.exists("q") && !dir.exists("q.safetensors"));
}

#[test]
fn a_sidecar_that_does_not_fit_is_an_error() {
    let dir = checkpoint();
    dir.ok("quantize m --scheme w4a16-asym --granularity per-group:32 -o q");
    let original = dir.json("q/qtool.json");
    let name = "model.layers.0.mlp.up_proj.weight";
    for (field, value) in [
        ("shape", json!([24, 128])),
        ("shape", json!([24])),
        ("shape", json!([4_294_967_296_u64, 4_294_967_296_u64])),
        ("shape", json!([0, 64])),
        ("group_size", json!(0)),
        ("group_size", json!(64)),
        ("dtype", json!("int16")),
        ("dtype", json!("int8")),
        ("zero_point", json!({"tensor": "model.norm.weight"})),
        ("zero_point", json!({"tensor": "nothing"})),
        ("scale", json!({"tensor": "nothing"})),
        ("source_dtype", json!("I8")),
    ] {
        let mut sidecar = original.clone();
        sidecar["tensors"][name][field] = value.clone();
        dir.write("q/qtool.json", sidecar.to_string());
        let run = dir.fails("dequantize q -o back", 1);
        run.expect_one_error();
        assert!(!dir.exists("back"), "{field} {value}");
    }
}
