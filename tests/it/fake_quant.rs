//! `--fake-quant`: the floats that codes stand for, in the place of the weights, and nothing else changed.

use crate::onnx_quantize::{count, small};
use crate::support::model::{self, Tensor};
use crate::support::{Random, Workdir};
use serde_json::json;

/// A model with weights of every float type and tensors that are kept, with free text.
fn every_type() -> Vec<u8> {
    let mut random = Random(5);
    let weights = Tensor::weights("f32.weight", &[24, 50], &mut random);
    let tops: Vec<u8> = weights.bytes.chunks(4).flat_map(|value| [value[2], value[3]]).collect();
    let half = |random: &mut Random| {
        let bits = random.bits();
        ((bits as u16) & 0x83ff | (5 + (bits >> 20) as u16 % 12) << 10).to_le_bytes()
    };
    let halves: Vec<u8> = (0..1200).flat_map(|_| half(&mut random)).collect();
    let doubles: Vec<u8> = weights.values().iter().flat_map(|value| (value * 1.000_000_1).to_le_bytes()).collect();
    model::file_with_metadata(
        &[
            Tensor::new("f64.weight", "F64", &[24, 50], doubles),
            Tensor::weights("conv.weight", &[20, 6, 3, 4], &mut random),
            weights,
            Tensor::f32("f32.bias", &[24], &[0.5; 24]),
            Tensor::new("steps", "I64", &[2], vec![7; 16]),
            Tensor::new("bf16.weight", "BF16", &[24, 50], tops),
            Tensor::new("f16.weight", "F16", &[24, 50], halves),
        ],
        r#""__metadata__":{"origin":"here","a":"b"}"#,
    )
}

const SCHEMES: &[&str] = &[
    "",
    "--weights uint8 --asymmetric",
    "--weights int4 --observer mse",
    "--weights uint4 --asymmetric --granularity per-group:7",
    "--granularity per-group:16",
    "--granularity per-tensor",
    "--axis -1",
    "--axis 1 --weights int4 --observer mse",
    "--convention ort --asymmetric",
    "--convention compressed-tensors --weights int4",
];

#[test]
fn values_are_those_of_the_codes_to_the_bit() {
    for options in SCHEMES {
        let dir = Workdir::with_model(&every_type());
        dir.ok(&format!("quantize model.safetensors -o q.safetensors {options}"));
        dir.ok("dequantize q.safetensors -o back.safetensors");
        dir.ok(&format!("quantize model.safetensors -o fake.safetensors --fake-quant {options}"));
        let [given, back, fake] = ["model", "back", "fake"].map(|name| dir.read(format!("{name}.safetensors")));
        let length = 8 + u64::from_le_bytes(given[..8].try_into().unwrap()) as usize;
        assert_eq!(fake[..length], given[..length], "header with {options}");
        let (given, back, fake) = (model::tensors(&given), model::tensors(&back), model::tensors(&fake));
        assert_eq!(fake, back, "{options}");
        for (name, tensor) in &given {
            assert_eq!(*tensor == fake[name], !name.ends_with("weight"), "{name} with {options}");
        }
        // Parameters are what they are for codes, but for where they are.
        let (codes, floats) = (dir.json("q.json"), dir.json("fake.json"));
        for (name, record) in floats["tensors"].as_object().unwrap() {
            let ordinary = &codes["tensors"][name];
            assert_eq!((&record["error"], &record["observer"]), (&ordinary["error"], &ordinary["observer"]), "{name} with {options}");
            assert!(record["scale"].is_array() && record["zero_point"].is_array(), "{name} with {options}");
            if ordinary["scale"].is_array() {
                assert_eq!(
                    (&record["scale"], &record["zero_point"]),
                    (&ordinary["scale"], &ordinary["zero_point"]),
                    "{name} with {options}"
                );
            }
        }
        assert_eq!(floats["output"]["form"], "fake-quant");
        crate::schema::expect_valid(&floats, options);
    }
}

#[test]
fn the_output_is_a_float_model_that_is_verified_compared_and_made_again() {
    let dir = Workdir::with_fixture();
    let run = dir.ok("quantize model.safetensors --fake-quant --weights int4 --granularity per-group:32");
    assert!(run.stdout.contains("(the same size)"), "{run}");
    for path in ["model.fake-int4.safetensors", "model.fake-int4.json"] {
        dir.ok(&format!("verify {path}"));
        dir.ok(&format!("dequantize {path} --force -o back.safetensors"));
        assert_eq!(model::tensors(&dir.read("back.safetensors")), model::tensors(&dir.read("model.fake-int4.safetensors")));
    }
    let compared = dir.ok("compare model.safetensors model.fake-int4.safetensors --json").json();
    let recorded = dir.json("model.fake-int4.json")["tensors"]["conv1.weight"]["error"]["sqnr_db"].as_f64().unwrap();
    let found = compared["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "conv1.weight").unwrap();
    assert!((found["sqnr_db"].as_f64().unwrap() - recorded).abs() < 0.1, "{found} {recorded}");
    // The sidecar alone says what to do, whatever the threads.
    for threads in [1, 3] {
        dir.ok(&format!("quantize model.safetensors --recipe model.fake-int4.json -o again.safetensors --force --threads {threads}"));
        assert_eq!(dir.read("again.safetensors"), dir.read("model.fake-int4.safetensors"));
    }
    assert_eq!(dir.json("again.json")["tensors"], dir.json("model.fake-int4.json")["tensors"]);
    // Quantizing it is quantizing a float model: codes that stand for its values as they are.
    dir.ok("quantize model.fake-int4.safetensors --weights int4 --granularity per-group:32 --convention ort -o codes.safetensors");
    dir.ok("compare model.fake-int4.safetensors codes.safetensors --min-sqnr 15");
    let mut changed = dir.read("model.fake-int4.safetensors");
    *changed.last_mut().unwrap() ^= 1;
    dir.write("model.fake-int4.safetensors", changed);
    dir.run(["verify", "model.fake-int4.safetensors"]).expect(3);
}

#[test]
fn shards_index_and_companions_of_a_directory_are_as_they_were() {
    let dir = Workdir::new();
    let mut random = Random(8);
    let index = r#"{"weight_map": {"b.weight": "2.safetensors", "a.weight": "1.safetensors"},
                    "metadata": {"total_size": 1}}"#;
    dir.write("m/1.safetensors", model::file(&[Tensor::weights("a.weight", &[40, 40], &mut random)]));
    dir.write("m/2.safetensors", model::file(&[Tensor::weights("b.weight", &[40, 40], &mut random)]));
    dir.write("m/model.safetensors.index.json", index);
    dir.write("m/config.json", r#"{"model_type": "llama"}"#);
    dir.ok("quantize m --fake-quant");
    let names = ["1.safetensors", "2.safetensors", "config.json", "model.safetensors.index.json", "qtool.json"];
    assert_eq!(crate::support::names(&dir.path("m-fake-int8")), names);
    for name in ["config.json", "model.safetensors.index.json"] {
        assert_eq!(dir.read(format!("m-fake-int8/{name}")), dir.read(format!("m/{name}")));
    }
    dir.ok("verify m-fake-int8");
    dir.ok("compare m m-fake-int8 --min-sqnr 35");
    dir.ok("quantize m -o q");
    dir.ok("dequantize q -o back");
    for name in &names[..2] {
        let read = |at: &str| model::tensors(&dir.read(format!("{at}/{name}")));
        assert_eq!(read("m-fake-int8"), read("back"));
    }
    dir.ok("quantize m --recipe m-fake-int8/qtool.json -o again");
    assert_eq!(dir.read("again/1.safetensors"), dir.read("m-fake-int8/1.safetensors"));
    // Schemes keep layers that this form does not.
    dir.fails("quantize m --fake-quant --scheme w4a16 -o four", 2);
    assert!(!dir.exists("four"));
}

#[test]
fn codes_chosen_by_samples_become_values_too() {
    for options in
        ["--rounding gptq --weights int4", "--transform smooth-quant --granularity per-group:32", "--rounding adaround:4 --weights uint4"]
    {
        let dir = crate::calibrated::checkpoint();
        dir.ok(&format!("quantize m --samples s --mode weight-only {options} -o q"));
        dir.ok("dequantize q -o back");
        dir.ok(&format!("quantize m --samples s --fake-quant {options} -o fake"));
        let read = |at: &str| model::tensors(&dir.read(format!("{at}/model.safetensors")));
        assert_eq!(read("fake"), read("back"), "{options}");
        assert_ne!(read("fake"), read("m"), "{options}");
    }
}

#[test]
fn an_onnx_model_keeps_its_graph() {
    let sizes = ["Constant", "Conv", "BatchNormalization", "Relu", "Clip", "Gemm", "MatMul", "LSTM", "Gather", "Identity"];
    for (options, ordinary) in [
        ("", "--mode weight-only"),
        ("--weights int4 --granularity per-group:16", "--mode weight-only --weights int4 --granularity per-group:16"),
        ("--weights int4 --rounding gptq --samples samples", "--mode weight-only --weights int4 --rounding gptq --samples samples"),
    ] {
        let dir = small();
        dir.ok(&format!("quantize model.onnx --fake-quant {options} -o fake.onnx"));
        let (given, fake) = (dir.read("model.onnx"), dir.read("fake.onnx"));
        assert_eq!(given.len(), fake.len(), "{options}");
        for op_type in sizes {
            assert_eq!(count(&fake, op_type), count(&given, op_type), "{op_type} with {options}");
        }
        assert_eq!(count(&fake, "DequantizeLinear") + count(&fake, "QuantizeLinear"), 0, "{options}");
        dir.ok("verify fake.onnx");
        dir.ok("verify fake.json");
        dir.ok("quantize model.onnx --recipe fake.json --samples samples -o again.onnx");
        assert_eq!(dir.read("again.onnx"), fake, "{options}");
        assert_eq!(dir.json("fake.json")["activations"], json!({}));
        // What it computes is what the ordinary output's weights compute.
        dir.ok(&format!("quantize model.onnx {ordinary} -o q.onnx"));
        dir.ok("dequantize q.onnx -o back.onnx");
        dir.ok("compare back.onnx fake.onnx --samples samples --max-abs 1e-5");
        assert_eq!(dir.json("fake.json")["tensors"].as_object().unwrap().len(), dir.json("q.json")["tensors"].as_object().unwrap().len());
    }
}

#[test]
fn what_the_form_does_not_do_is_refused() {
    let dir = small();
    let run = dir.fails("quantize model.onnx --fake-quant --mode static --samples samples", 2);
    assert!(run.stderr.contains("--mode: expected weight-only with --format fake-quant, found static"), "{run}");
    dir.run(["quantize", "model.onnx", "--fake-quant", "--format", "qdq"]).expect(2);
    dir.ok("quantize model.onnx --fake-quant");
    assert!(dir.exists("model.fake-int8.onnx") && dir.exists("model.fake-int8.json"));
    // More groups than a sidecar takes: two million rows of five groups.
    let rows = 2 << 20;
    dir.write("wide.safetensors", model::file(&[Tensor::new("w", "F16", &[rows, 5], vec![0x2c; rows * 10])]));
    let run = dir.fails("quantize wide.safetensors --fake-quant --granularity per-group:1", 6);
    assert!(run.stderr.contains("groups whose scales are in the sidecar") && run.stderr.contains("qtool dequantize"), "{run}");
    assert!(!dir.exists("wide.fake-int8.safetensors"));
}
