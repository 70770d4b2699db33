//! `verify` finds whatever is not as it was written, and is not led astray by a sidecar of strangers.

use crate::support::model::{self, Tensor};
use crate::support::{Random, Run, Workdir};
use serde_json::{Value, json};
use std::fs;

/// A small quantized model, per group so that parameters are in the weights too.
fn quantized() -> Workdir {
    let mut random = Random(5);
    let tensors = [Tensor::weights("a.weight", &[40, 32], &mut random), Tensor::weights("b.weight", &[33, 32], &mut random)];
    let dir = Workdir::with_model(&model::file(&tensors));
    dir.ok("quantize model.safetensors -o q.safetensors --granularity per-group:16 --asymmetric");
    dir
}

/// Fails as a check or as bad input, in one line.
fn refused(dir: &Workdir, output: &str) -> Run {
    let run = dir.run(["verify", output]);
    assert!(matches!(run.status.code(), Some(1 | 3)), "{run}");
    run.expect_one_error();
    run
}

/// The sidecar as JSON, to be edited: without its own hash, which would tell of that before anything else.
fn editable(dir: &Workdir, sidecar: &str) -> Value {
    let mut document = dir.json(sidecar);
    document.as_object_mut().unwrap().remove("blake3").expect("sidecars hold their own hash");
    document
}

#[test]
fn every_flipped_bit_of_the_weights_is_found() {
    let dir = quantized();
    let weights = dir.read("q.safetensors");
    let mut random = Random(6);
    for _ in 0..250 {
        let (byte, bit) = (random.below(weights.len()), random.below(8));
        let mut changed = weights.clone();
        changed[byte] ^= 1 << bit;
        dir.write("q.safetensors", &changed);
        let run = refused(&dir, "q.json");
        assert!(run.stderr.contains("q.safetensors"), "byte {byte} bit {bit}: {run}");
    }
    dir.write("q.safetensors", weights);
    dir.ok("verify q.json");
}

/// Scales are nowhere but in the sidecar: a bit of it counts as much as one of the weights.
#[test]
fn every_flipped_bit_of_the_sidecar_is_found() {
    let dir = quantized();
    let sidecar = dir.read("q.json");
    let mut random = Random(7);
    for _ in 0..300 {
        let (byte, bit) = (random.below(sidecar.len()), random.below(8));
        let mut changed = sidecar.clone();
        changed[byte] ^= 1 << bit;
        dir.write("q.json", &changed);
        let run = refused(&dir, "q.json");
        assert!(run.stderr.contains("q.json"), "byte {byte} bit {bit}: {run}");
    }
    dir.write("q.json", &sidecar);
    dir.ok("verify q.json");
    // Whoever edits it says so.
    dir.write("q.json", dir.json("q.json").to_string());
    refused(&dir, "q.json");
    dir.write("q.json", editable(&dir, "q.json").to_string());
    dir.ok("verify q.json");
}

#[test]
fn every_truncation_and_growth_is_found() {
    let dir = quantized();
    for file in ["q.safetensors", "q.json"] {
        let content = dir.read(file);
        for len in [0, 1, 7, 8, 9, content.len() / 2, content.len() - 2] {
            dir.write(file, &content[..len]);
            refused(&dir, "q.json");
        }
        dir.write(file, [&content[..], b"x"].concat());
        refused(&dir, "q.json");
        dir.write(file, content);
    }
    dir.ok("verify q.safetensors");
    fs::remove_file(dir.path("q.safetensors")).unwrap();
    let run = refused(&dir, "q.json");
    assert!(run.stderr.contains("q.safetensors"), "{run}");
}

#[test]
fn a_sidecar_of_another_run_does_not_fit() {
    let dir = quantized();
    dir.ok("quantize model.safetensors -o r.safetensors --granularity per-group:16");
    fs::rename(dir.path("r.json"), dir.path("q.json")).unwrap();
    refused(&dir, "q.safetensors");
    // Under the right name, but with the wrong content.
    fs::rename(dir.path("q.safetensors"), dir.path("r.safetensors")).unwrap();
    let run = refused(&dir, "q.json");
    assert!(run.stderr.contains("BLAKE3") || run.stderr.contains("bytes"), "{run}");
}

/// A model in two shards of the same shapes, quantized as a directory.
fn shards() -> Workdir {
    let mut random = Random(8);
    let dir = Workdir::new();
    let mut weight_map = serde_json::Map::new();
    for name in ["a", "b"] {
        dir.write(format!("m/{name}.safetensors"), model::file(&[Tensor::weights(name, &[40, 32], &mut random)]));
        weight_map.insert(name.into(), format!("{name}.safetensors").into());
    }
    dir.write("m/model.safetensors.index.json", json!({"weight_map": weight_map}).to_string());
    dir.write("m/config.json", "{}");
    dir.ok("quantize m -o q");
    dir
}

#[test]
fn every_member_of_a_directory_counts() {
    let dir = shards();
    dir.ok("verify q");
    for member in ["a.safetensors", "b.safetensors", "model.safetensors.index.json", "config.json"] {
        let path = dir.path(format!("q/{member}"));
        fs::rename(&path, dir.path("hidden")).unwrap();
        let run = refused(&dir, "q");
        assert!(run.stderr.contains(member), "{run}");
        fs::rename(dir.path("hidden"), &path).unwrap();
    }
    dir.ok("verify q");
    let (a, b) = (dir.read("q/a.safetensors"), dir.read("q/b.safetensors"));
    assert_eq!(a.len(), b.len());
    dir.write("q/a.safetensors", &b);
    dir.write("q/b.safetensors", &a);
    refused(&dir, "q");
    dir.write("q/a.safetensors", a);
    dir.write("q/b.safetensors", b);
    dir.ok("verify q");
    fs::remove_file(dir.path("q/qtool.json")).unwrap();
    dir.fails("verify q", 4);
}

/// A file that the user's own bounds keep from being read is not called damaged.
#[test]
fn what_is_not_read_is_not_judged() {
    let dir = quantized();
    dir.ok("verify q.json");
    dir.fails("verify q.json --limit header-bytes=8", 6);
}

/// The files that a sidecar names are opened only if they lie in its own directory.
#[test]
fn names_that_lead_elsewhere_are_refused_unopened() {
    let dir = quantized();
    fs::create_dir(dir.path("in")).unwrap();
    fs::rename(dir.path("q.safetensors"), dir.path("secret.safetensors")).unwrap();
    let original = editable(&dir, "q.json");
    let absolute = dir.path("secret.safetensors").display().to_string();
    for name in ["../secret.safetensors", &absolute, "in/../../secret.safetensors", "", ".", "..", "a\0b"] {
        let mut sidecar = original.clone();
        sidecar["output"]["files"][0]["name"] = name.into();
        dir.write("in/q.json", sidecar.to_string());
        let run = refused(&dir, "in/q.json");
        assert!(!run.stdout.contains("intact") || !run.stdout.contains("secret"), "{run}");
        for command in ["dequantize", "compare ../model.safetensors"] {
            let mut arguments: Vec<&str> = command.split(' ').collect();
            arguments.push("q.json");
            let run = crate::support::finish(dir.command(crate::support::QTOOL).current_dir(dir.path("in")).args(arguments));
            assert_eq!(run.status.code(), Some(1), "{name:?}: {run}");
            run.expect_one_error();
        }
        let tracer = dir.command("strace").arg("-V").output();
        if tracer.is_ok_and(|done| done.status.success()) && !name.contains('\0') {
            let mut command = dir.command("strace");
            let run = crate::support::finish(command.args(["-f", "-e", "trace=file", crate::support::QTOOL, "verify", "in/q.json"]));
            let opened = run.stderr.lines().any(|line| line.contains("secret.safetensors") && line.contains("open"));
            assert!(!opened, "{name:?}: {run}");
        }
    }
    assert_eq!(crate::support::names(&dir.path("in")), ["q.json"]);
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let mut random = Random(9);
    let dir = Workdir::with_model(&model::file(&[Tensor::weights("w", &[40, 32], &mut random)]));
    dir.ok("quantize model.safetensors -o q.safetensors");
    let original = editable(&dir, "q.json");
    let edits: &[(&str, Value)] = &[
        ("scale", json!([1.0])),
        ("scale", json!(vec![0.0; 40])),
        ("scale", json!(vec![-1.0; 40])),
        ("scale", json!({"tensor": "nowhere"})),
        ("zero_point", json!(vec![1000; 40])),
        ("zero_point", json!([0, 0])),
        ("shape", json!([32, 40])),
        ("shape", json!([u64::MAX, 40])),
        ("shape", json!([])),
        ("dtype", json!("uint4")),
        ("axis", json!(2)),
        ("granularity", json!("per_row")),
        ("source_dtype", json!("I32")),
        ("unknown", json!(1)),
    ];
    for (field, value) in edits {
        let mut sidecar = original.clone();
        sidecar["tensors"]["w"][field] = value.clone();
        dir.write("q.json", sidecar.to_string());
        refused(&dir, "q.json");
        dir.fails("dequantize q.safetensors", 1);
    }
    for (field, value) in [("format", json!("other")), ("version", json!(2)), ("tensors", json!({"v": original["tensors"]["w"]}))] {
        let mut sidecar = original.clone();
        sidecar[field] = value;
        dir.write("q.json", sidecar.to_string());
        refused(&dir, "q.json");
        dir.fails("dequantize q.safetensors", 1);
    }
    assert_eq!(dir.names(), ["model.safetensors", "q.json", "q.safetensors"]);
}

#[test]
fn a_sidecar_that_is_no_file_or_lists_nothing_is_no_proof() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    let mut document = editable(&dir, "model.int8.json");
    document["output"]["files"] = serde_json::json!([]);
    dir.write("model.int8.json", document.to_string());
    dir.fails("verify model.int8.safetensors", 3);
    std::fs::remove_file(dir.path("model.int8.json")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path("model.int8.json"), rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    dir.fails("verify model.int8.safetensors", 1);
    dir.fails("dequantize model.int8.safetensors", 1);
}

#[test]
fn a_tensor_cannot_be_hidden_among_the_parameters() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors -o q.safetensors --granularity per-group:64");
    let mut document = editable(&dir, "q.json");
    assert!(document["kept"].as_object_mut().unwrap().remove("conv1.bias").is_some());
    dir.write("q.json", document.to_string());
    let run = dir.fails("dequantize q.safetensors", 1);
    assert!(run.stderr.contains("conv1.bias"), "{run}");
}

#[test]
fn what_changed_since_it_was_written_is_not_read_back() {
    let dir = quantized();
    dir.ok("compare model.safetensors q.safetensors");
    let mut weights = dir.read("q.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    dir.write("q.safetensors", weights);
    for command in ["dequantize q.safetensors -o f.safetensors", "compare model.safetensors q.safetensors"] {
        let run = dir.fails(command, 1);
        assert!(run.stderr.contains("q.safetensors: content: expected BLAKE3") && run.stderr.contains("qtool verify"), "{run}");
    }
    assert!(!dir.path("f.safetensors").exists());
}

#[test]
fn the_quantized_model_is_not_taken_for_the_float_one() {
    let dir = quantized();
    let run = dir.fails("compare q.safetensors model.safetensors", 2);
    assert!(run.stderr.contains("the other way round"), "{run}");
}

#[test]
fn graphs_that_changed_since_they_were_written_are_not_read_back_either() {
    let dir = crate::onnx_quantize::small();
    dir.ok("quantize model.onnx --samples samples -o q.onnx");
    dir.ok("compare model.onnx q.onnx --samples samples");
    dir.fails("dequantize q.onnx -o q.json --force", 2);
    let mut model = dir.read("q.onnx");
    let producer = b"qtool";
    let place = model.windows(producer.len()).position(|window| window == producer);
    let place = place.unwrap_or(model.len() / 2);
    model[place] ^= 1;
    dir.write("q.onnx", model);
    for command in ["dequantize q.onnx -o f.onnx", "compare model.onnx q.onnx --samples samples"] {
        dir.fails(command, 1);
    }
    assert!(!dir.exists("f.onnx"));
}

/// A mask's lowest number: no code stands for an infinity, and what is written can be read.
#[test]
fn the_largest_numbers_of_a_type_stay_numbers() {
    for (dtype, low) in [("F32", f32::MIN.to_le_bytes().to_vec()), ("F16", vec![0xff, 0xfb]), ("BF16", vec![0x7f, 0xff])] {
        let zero = vec![0; low.len()];
        let bytes: Vec<u8> = (0..16 * 128).flat_map(|i| if i / 128 == 4 && i % 2 == 0 { low.clone() } else { zero.clone() }).collect();
        let dir = Workdir::with_model(&model::file(&[Tensor::new("a.weight", dtype, &[16, 128], bytes)]));
        for options in [
            "",
            "--axis 1",
            "--granularity per-tensor",
            "--convention ort",
            "--asymmetric --axis 1",
            "--weights int4 --granularity per-group:32",
        ] {
            dir.ok(&format!("quantize model.safetensors -o q.safetensors --force {options}"));
            dir.ok("verify q.safetensors");
            let sidecar = dir.json("q.json");
            let record = &sidecar["tensors"]["a.weight"];
            let error = &record["error"];
            assert!(error["max_abs"].is_number() && error["mse"].is_number(), "{dtype} {options}: {error}");
            dir.ok("compare model.safetensors q.safetensors --min-sqnr 20");
            let stored = model::tensors(&dir.read("q.safetensors"));
            if record["dtype"] == "int8" {
                let (scales, zero_points) = (record["scale"].as_array().unwrap(), record["zero_point"].as_array().unwrap());
                let lowest = stored["a.weight"].bytes.iter().map(|code| f32::from(code.cast_signed())).fold(0.0, f32::min);
                let (scale, zero_point) =
                    (scales.iter().map(|s| s.as_f64().unwrap() as f32).fold(0.0, f32::max), zero_points[0].as_i64().unwrap() as f32);
                assert!(((lowest - zero_point) * scale).is_finite(), "{dtype} {options}: {lowest} {scale}");
            }
        }
    }
}

#[test]
fn a_sidecar_names_each_tensor_once() {
    let dir = quantized();
    let text = String::from_utf8(dir.read("q.json")).unwrap();
    let record = serde_json::to_string(&dir.json("q.json")["tensors"]["a.weight"]).unwrap();
    dir.write("q.json", text.replacen("\"tensors\": {", &format!("\"tensors\": {{\"a.weight\": {record},"), 1));
    let run = dir.fails("verify q.json", 1);
    assert!(run.stderr.contains("expected each name once, found \"a.weight\" twice"), "{run}");
}

/// Found by fuzzing: what stands for the hash may be any text, and the document is written again all the same.
#[test]
fn a_hash_of_another_length_is_text() {
    let dir = quantized();
    let mut sidecar = dir.json("q.json");
    sidecar["blake3"] = json!("12345678");
    dir.write("q.json", sidecar.to_string());
    let path = dir.path("q.json");
    let document = qtool::outputs::document::Document::read(&path).unwrap();
    let again = qtool::outputs::document::Document::parse(&path, &document.to_json()).unwrap();
    assert_eq!(again.blake3.as_deref(), Some("12345678"));
    refused(&dir, "q.json");
}
