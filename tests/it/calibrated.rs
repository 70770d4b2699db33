//! Checkpoints with recorded inputs: statistics, algorithms, activation parameters; what is refused.

use crate::support::model::{self, Tensor};
use crate::support::{QTOOL, Random, Workdir};
use serde_json::{Value, json};

const FEATURES: usize = 96;
const ROWS: usize = 40;
const LAYERS: &[&str] = &["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"];

/// Inputs that depend on each other: mixtures of fewer sources, of several magnitudes.
fn inputs(rows: usize, random: &mut Random) -> Vec<f32> {
    let mixing: Vec<f32> = (0..FEATURES * 24).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i % 5) as f32)).collect();
    (0..rows)
        .flat_map(|_| {
            let sources: Vec<f32> = (0..24).map(|_| random.normal()).collect();
            let noise: Vec<f32> = (0..FEATURES).map(|_| 0.3 * random.normal()).collect();
            let value = |j: usize| (0..24).map(|s| sources[s] * mixing[j * 24 + s]).sum::<f32>() + noise[j] + 0.5;
            (0..FEATURES).map(value).collect::<Vec<f32>>()
        })
        .collect()
}

/// A directory `m` in Hugging Face layout, and three files of recorded inputs in `s`.
pub(crate) fn checkpoint() -> Workdir {
    let dir = Workdir::new();
    let mut random = Random(11);
    let mut tensors: Vec<Tensor> =
        LAYERS.iter().map(|name| Tensor::weights(&format!("{name}.weight"), &[ROWS, FEATURES], &mut random)).collect();
    tensors.push(Tensor::weights("lm_head.weight", &[ROWS, FEATURES], &mut random));
    dir.write("m/model.safetensors", model::file(&tensors));
    dir.write("m/config.json", r#"{"model_type": "llama"}"#);
    for file in 0..3 {
        let recorded: Vec<Tensor> = (LAYERS.iter().enumerate())
            .map(|(i, name)| {
                let suffix = if i == 1 { ".input" } else { "" };
                Tensor::f32(&format!("{name}{suffix}"), &[2, 50, FEATURES], &inputs(100, &mut random))
            })
            .collect();
        dir.write(format!("s/{file}.safetensors"), model::file(&recorded));
    }
    dir
}

/// The mean square of what quantization changes of a layer's outputs on the samples.
fn output_error(dir: &Workdir, quantized: &str, layer: &str) -> f64 {
    std::fs::remove_dir_all(dir.path("back")).ok();
    dir.ok(&format!("dequantize {quantized} -o back"));
    let name = format!("{layer}.weight");
    let before = model::tensors(&dir.read("m/model.safetensors"))[&name].values();
    let after = model::tensors(&dir.read("back/model.safetensors"))[&name].values();
    let error: Vec<f64> = before.iter().zip(&after).map(|(before, after)| before - after).collect();
    let mut sum = 0.0;
    for file in 0..3 {
        let recorded = model::tensors(&dir.read(format!("s/{file}.safetensors")));
        let values = recorded.get(layer).unwrap_or_else(|| &recorded[&format!("{layer}.input")]).values();
        for (row, x) in error.chunks(FEATURES).flat_map(|row| values.chunks(FEATURES).map(move |x| (row, x))) {
            sum += row.iter().zip(x).map(|(e, x)| e * x).sum::<f64>().powi(2);
        }
    }
    sum
}

#[test]
fn calibrated_methods_change_outputs_less_than_the_nearest_codes() {
    let dir = checkpoint();
    let form = "--format compressed-tensors --mode weight-only --weights int4 --samples s";
    for granularity in ["per-channel", "per-group:32"] {
        let error = |options: &str| {
            dir.ok(&format!("quantize m {form} --granularity {granularity} {options} -o q --force"));
            LAYERS.iter().map(|layer| output_error(&dir, "q", layer)).collect::<Vec<f64>>()
        };
        let nearest = error("--observer mse");
        let cases = [
            ("--observer output-mse", 0.95),
            ("--observer mse --rounding gptq-in-order", 0.6),
            ("--observer mse --rounding gptq", 0.5),
            ("--observer mse --rounding adaround:8", 0.45),
        ];
        for (options, share) in cases {
            for (found, nearest) in error(options).iter().zip(&nearest) {
                assert!(*found < share * nearest, "{granularity} {options}: {found} of {nearest}");
            }
        }
    }
}

#[test]
fn samples_statistics_parts_and_threads_give_the_same_bytes() {
    let dir = checkpoint();
    for part in 0..2 {
        dir.ok(&format!("calibrate m --samples s --part {part}/2 -o part{part}.safetensors"));
    }
    dir.ok("merge part1.safetensors part0.safetensors -o merged.safetensors");
    dir.ok("calibrate m --samples s -o all.safetensors --threads 3");
    assert_eq!(dir.read("merged.safetensors"), dir.read("all.safetensors"));
    for options in [
        "--scheme w4a16 --granularity per-group:32 --observer output-mse --rounding adaround:2",
        "--scheme w8a8-static-asym --rounding gptq",
    ] {
        dir.ok(&format!("quantize m {options} --samples s -o q --threads 1 --force"));
        dir.ok(&format!("quantize m {options} --stats merged.safetensors -o stats --threads 3 --force"));
        dir.ok("quantize m --format compressed-tensors --recipe q/qtool.json --samples s -o again --force");
        dir.ok("verify q");
        for other in ["stats", "again"] {
            assert_eq!(dir.read("q/model.safetensors"), dir.read(format!("{other}/model.safetensors")), "{options}: {other}");
            assert_eq!(dir.json("q/qtool.json")["calibration"], dir.json(format!("{other}/qtool.json"))["calibration"]);
        }
        assert_eq!(dir.json("q/qtool.json")["calibration"]["samples"], 3);
        for simd in ["scalar", "avx2"] {
            let arguments = format!("quantize m {options} --samples s -o simd --force");
            let run = dir.command(QTOOL).env("QTOOL_SIMD", simd).args(arguments.split_whitespace()).output().unwrap();
            assert!(run.status.success());
            assert_eq!(dir.read("q/model.safetensors"), dir.read("simd/model.safetensors"), "{options}: {simd}");
        }
    }
}

#[test]
fn activations_of_known_range_have_their_scale_in_the_file() {
    let dir = checkpoint();
    for (scheme, symmetric) in [("w8a8-static", true), ("w8a8-static-asym", false)] {
        dir.ok(&format!("quantize m --scheme {scheme} --samples s -o {scheme}"));
        let stored = model::tensors(&dir.read(format!("{scheme}/model.safetensors")));
        let sidecar = dir.json(format!("{scheme}/qtool.json"));
        for layer in LAYERS {
            let record = &sidecar["activations"][layer];
            let scale = stored[&format!("{layer}.input_scale")].values()[0];
            assert_eq!(record["scale"].as_f64().unwrap() as f32, scale as f32);
            let (min, max) = (record["min"].as_f64().unwrap(), record["max"].as_f64().unwrap());
            let expected = if symmetric { max.max(-min) / 127.5 } else { (max - min) / 255.0 };
            assert!((scale - expected).abs() < 1e-6 * expected, "{layer}: {scale} {expected}");
            let zero_point = stored.get(&format!("{layer}.input_zero_point"));
            assert_eq!(zero_point.is_none(), symmetric);
            if let Some(zero_point) = zero_point {
                assert_eq!(i64::from(zero_point.bytes[0] as i8), record["zero_point"].as_i64().unwrap());
            }
        }
        let config = &dir.json(format!("{scheme}/config.json"))["quantization_config"]["config_groups"]["group_0"]["input_activations"];
        assert_eq!((&config["strategy"], &config["dynamic"], &config["symmetric"]), (&json!("tensor"), &json!(false), &json!(symmetric)));
        dir.ok(&format!("compare m {scheme} --min-sqnr 35"));
    }
    dir.ok("quantize m --samples s -o plain");
    let plain = dir.json("plain/qtool.json");
    assert_eq!((&plain["output"]["form"], &plain["activations"][LAYERS[0]]["dtype"]), (&json!("sidecar"), &json!("uint8")));
}

#[test]
fn a_layer_without_samples_is_quantized_without_and_reported() {
    let dir = checkpoint();
    let mut random = Random(2);
    dir.write("one.safetensors", model::file(&[Tensor::f32(LAYERS[0], &[100, FEATURES], &inputs(100, &mut random))]));
    let run = dir.ok(
        "quantize m --scheme w4a16 --granularity per-group:32 --observer output-mse --rounding gptq --samples one.safetensors -o q --json",
    );
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(report["notes"][0].as_str().unwrap().contains("down_proj"), "{report}");
    let tensors = &dir.json("q/qtool.json")["tensors"];
    let method =
        |layer: &str| (tensors[format!("{layer}.weight")]["observer"].clone(), tensors[format!("{layer}.weight")]["rounding"].clone());
    assert_eq!(method(LAYERS[0]), (json!("output-mse"), json!("gptq:0.01")));
    assert_eq!(method(LAYERS[1]), (json!("mse"), json!("nearest")));
}

#[test]
fn a_layer_that_nothing_came_to_counts_as_one_without_samples() {
    let dir = checkpoint();
    let mut random = Random(2);
    let some = Tensor::f32(LAYERS[0], &[100, FEATURES], &inputs(100, &mut random));
    dir.write("some.safetensors", model::file(&[some.clone(), Tensor::f32(LAYERS[1], &[4, 0, FEATURES], &[])]));
    dir.write("none.safetensors", model::file(&[Tensor::f32(LAYERS[1], &[0, FEATURES], &[])]));
    dir.ok("calibrate m --samples some.safetensors -o some.stats");
    let options = "--scheme w4a16 --granularity per-group:32 --rounding gptq";
    for (calibration, output) in [("--stats some.stats", "a"), ("--samples some.safetensors", "b")] {
        let run = dir.ok(&format!("quantize m {options} {calibration} -o {output}"));
        assert!(run.stdout.contains(LAYERS[1]), "{run}");
    }
    assert!(dir.read("a/model.safetensors") == dir.read("b/model.safetensors"));
    let run = dir.fails("calibrate m --samples none.safetensors -o none.stats", 2);
    assert!(run.stderr.contains("expected recorded inputs of layers, found none"), "{run}");
}

#[test]
fn wrong_samples_are_refused_and_nothing_is_written() {
    let dir = checkpoint();
    let mut random = Random(5);
    let values = inputs(2, &mut random);
    let write = |name: &str, tensor: Tensor| dir.write(name, model::file(&[tensor]));
    write("unknown.safetensors", Tensor::f32("model.layers.7.mlp.up_proj", &[2, FEATURES], &values));
    write("shape.safetensors", Tensor::f32(LAYERS[0], &[FEATURES, 2], &values));
    write("dtype.safetensors", Tensor::new(LAYERS[0], "I8", &[2, FEATURES], vec![0; 2 * FEATURES]));
    let mut broken = values.clone();
    broken[5] = f32::NAN;
    write("nan.safetensors", Tensor::f32(LAYERS[0], &[2, FEATURES], &broken));
    broken[5] = 1e38;
    write("large.safetensors", Tensor::f32(LAYERS[0], &[2, FEATURES], &broken));
    dir.write("text.safetensors", "nothing");
    let gptq = "quantize m --scheme w4a16 --granularity per-group:32 --rounding gptq -o q";
    for (file, expected) in [
        ("unknown", "expected LAYER or LAYER.input"),
        ("shape", "expected [..., 96]"),
        ("dtype", "expected floats, found I8"),
        ("nan", "expected finite numbers"),
        ("large", "expected squares whose sum"),
        ("text", ""),
    ] {
        let run = dir.fails(&format!("{gptq} --samples {file}.safetensors"), 1);
        assert!(run.stderr.contains(expected), "{file}: {}", run.stderr);
    }
    dir.fails(&format!("{gptq} --samples unknown.safetensors --ignore-unused"), 2);
    dir.fails(gptq, 2);
    dir.fails("quantize m --rounding gptq:2 --samples s -o q", 2);
    dir.fails("quantize m --rounding nearest:1 -o q", 2);
    dir.fails("quantize m --rounding best -o q", 2);
    dir.ok("calibrate m --samples s --ranges-only -o ranges.safetensors");
    dir.fails(&format!("{gptq} --stats ranges.safetensors"), 2);
    dir.ok("quantize m --scheme w8a8-static --stats ranges.safetensors -o static");
    dir.write("m/model.safetensors", model::file(&[Tensor::weights(&format!("{}.weight", LAYERS[0]), &[ROWS, FEATURES], &mut random)]));
    dir.fails("quantize m --scheme w8a8-static --stats ranges.safetensors -o q", 1);
    assert!(!dir.exists("q"));
}

/// A decoder of one block in `m`, with biases, whose norm gives a few features far more than others, and recorded inputs.
fn decoder() -> Workdir {
    let dir = Workdir::new();
    let mut random = Random(4);
    let block = "model.layers.0";
    let mut tensors = Vec::new();
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"] {
        tensors.push(Tensor::weights(&format!("{block}.{name}.weight"), &[ROWS, FEATURES], &mut random));
    }
    tensors.push(Tensor::weights(&format!("{block}.self_attn.q_proj.bias"), &[ROWS], &mut random));
    tensors.push(Tensor::weights(&format!("{block}.mlp.down_proj.weight"), &[FEATURES, ROWS], &mut random));
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push(Tensor::f32(&format!("{block}.{norm}.weight"), &[FEATURES], &[1.0; FEATURES]));
    }
    dir.write("m/model.safetensors", model::file(&tensors));
    dir.write("m/config.json", r#"{"model_type": "llama"}"#);
    let mut normed = inputs(200, &mut random);
    normed.chunks_mut(FEATURES).for_each(|row| (row[3], row[50]) = (row[3] * 40.0, row[50] * 60.0));
    let mut recorded: Vec<Tensor> = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
        .iter()
        .map(|name| Tensor::f32(&format!("{block}.{name}"), &[200, FEATURES], &normed))
        .collect();
    let hidden: Vec<f32> = normed.chunks(FEATURES).flat_map(|row| row[..ROWS].to_vec()).collect();
    recorded.push(Tensor::f32(&format!("{block}.mlp.down_proj"), &[200, ROWS], &hidden));
    dir.write("s/0.safetensors", model::file(&recorded));
    dir
}

#[test]
fn smoothing_moves_factors_from_inputs_to_weights_and_changes_nothing_else() {
    let dir = decoder();
    dir.ok("quantize m --scheme w8a8-static --samples s -o plain");
    let run = dir.ok("quantize m --scheme w8a8-static --transform smooth-quant --samples s -o q");
    assert!(run.stdout.contains("smooth-quant: changed"), "{}", run.stdout);
    dir.ok("dequantize q -o back");
    let (before, after) = (model::tensors(&dir.read("m/model.safetensors")), model::tensors(&dir.read("back/model.safetensors")));
    let block = "model.layers.0";
    let norm = after[&format!("{block}.input_layernorm.weight")].values();
    assert!(norm[3] < 0.5 * norm[4] && norm[50] < 0.5 * norm[4], "{norm:?}");
    for name in ["self_attn.q_proj", "self_attn.v_proj"] {
        let (old, new) = (before[&format!("{block}.{name}.weight")].values(), after[&format!("{block}.{name}.weight")].values());
        let scale = old.iter().fold(0f64, |max, value| max.max(value.abs()));
        for (i, (old, new)) in old.iter().zip(&new).enumerate() {
            assert!((old - new * norm[i % FEATURES]).abs() < 0.05 * scale, "{name} {i}: {old} {new}");
        }
    }
    // down_proj takes what up_proj gives.
    let (up, down) = (format!("{block}.mlp.up_proj.weight"), format!("{block}.mlp.down_proj.weight"));
    let post = after[&format!("{block}.post_attention_layernorm.weight")].values();
    let ratio = |name: &str, i: usize| after[name].values()[i] / before[name].values()[i];
    let largest = |row: usize| {
        (0..FEATURES)
            .max_by(|a, b| before[&up].values()[row * FEATURES + a].abs().total_cmp(&before[&up].values()[row * FEATURES + b].abs()))
            .unwrap()
    };
    for row in [3, 7] {
        let column = largest(row);
        let given = ratio(&up, row * FEATURES + column) * post[column];
        let place = (0..FEATURES)
            .max_by(|a, b| before[&down].values()[a * ROWS + row].abs().total_cmp(&before[&down].values()[b * ROWS + row].abs()))
            .unwrap();
        let taken = ratio(&down, place * ROWS + row);
        assert!((given * taken - 1.0).abs() < 0.05, "{row}: {given} {taken}");
    }
    let scale = |dir: &Workdir, output: &str| {
        dir.json(format!("{output}/qtool.json"))["activations"][format!("{block}.self_attn.q_proj")]["scale"].as_f64().unwrap()
    };
    assert!(scale(&dir, "q") < 0.5 * scale(&dir, "plain"));
    dir.ok("quantize m --format compressed-tensors --recipe q/qtool.json --samples s -o again");
    assert_eq!(dir.read("q/model.safetensors"), dir.read("again/model.safetensors"));
    dir.ok("calibrate m --samples s -o stats.safetensors");
    dir.ok("quantize m --scheme w8a8 --transform smooth-quant --stats stats.safetensors -o dynamic");
    dir.ok("quantize m --scheme w8a8 --transform smooth-quant --samples s -o sampled");
    assert_eq!(dir.read("dynamic/model.safetensors"), dir.read("sampled/model.safetensors"));
    dir.fails("quantize m --scheme w8a8-static --transform smooth-quant --stats stats.safetensors -o no", 2);
    dir.fails("quantize m --transform smooth-quant -o no", 2);
    dir.fails("quantize m --transform smooth-quant:2 --samples s -o no", 2);
    dir.fails("quantize m --transform bias-correction --transform smooth-quant --samples s -o no", 2);
    dir.write("m/config.json", r#"{"model_type": "gemma"}"#);
    dir.fails("quantize m --transform smooth-quant --samples s -o no", 1);
    assert!(!dir.exists("no"));
}

#[test]
fn biases_take_the_mean_error_of_outputs() {
    let dir = decoder();
    let options = "--format compressed-tensors --mode weight-only --weights int4 --granularity per-channel --samples s";
    dir.ok(&format!("quantize m {options} --transform bias-correction --rounding gptq -o q"));
    dir.ok("dequantize q -o back");
    let (before, after) = (model::tensors(&dir.read("m/model.safetensors")), model::tensors(&dir.read("back/model.safetensors")));
    let name = |kind: &str| format!("model.layers.0.self_attn.q_proj.{kind}");
    let inputs = model::tensors(&dir.read("s/0.safetensors"))["model.layers.0.self_attn.q_proj"].values();
    let mean: Vec<f64> = (0..FEATURES).map(|j| inputs.iter().skip(j).step_by(FEATURES).sum::<f64>() / 200.0).collect();
    let output = |tensors: &std::collections::BTreeMap<String, Tensor>, row: usize| {
        let weights = tensors[&name("weight")].values();
        (0..FEATURES).map(|j| weights[row * FEATURES + j] * mean[j]).sum::<f64>() + tensors[&name("bias")].values()[row]
    };
    let mut moved = 0.0;
    for row in 0..ROWS {
        let (old, new) = (output(&before, row), output(&after, row));
        assert!((old - new).abs() < 1e-4 * (1.0 + old.abs()), "{row}: {old} {new}");
        moved += (before[&name("bias")].values()[row] - after[&name("bias")].values()[row]).abs();
    }
    assert!(moved > 0.01, "{moved}");
}

/// As where experts get tokens in some parts only: a merge has every layer, whatever the order.
#[test]
fn parts_may_lack_layers() {
    let dir = checkpoint();
    let mut random = Random(4);
    let mut recorded = |layer: usize| Tensor::f32(LAYERS[layer], &[100, FEATURES], &inputs(100, &mut random));
    let parts = [[recorded(0), recorded(1)], [recorded(2), recorded(1)]];
    for (number, part) in parts.iter().enumerate() {
        dir.write(format!("parts/{number}.safetensors"), model::file(part));
        dir.ok(&format!("calibrate m --samples parts/{number}.safetensors -o {number}.stats"));
    }
    dir.ok("calibrate m --samples parts -o all.stats");
    for order in ["0.stats 1.stats", "1.stats 0.stats"] {
        dir.ok(&format!("merge {order} -o merged.stats --force"));
        assert!(dir.read("merged.stats") == dir.read("all.stats"), "{order}");
    }
}

#[test]
fn a_command_chooses_ranges_of_recorded_inputs() {
    let dir = checkpoint();
    let answer = r#"command = ["sh", "-c", "cat >/dev/null; echo '{\"min\": -1.275, \"max\": 0.5}'"]"#;
    dir.write("r.toml", format!("[[observer]]\nname = \"mine\"\n{answer}\n[activations]\nobserver = \"mine\"\n"));
    dir.ok("quantize m --scheme w8a8-static --recipe r.toml --allow-commands --samples s -o q");
    let stored = model::tensors(&dir.read("q/model.safetensors"));
    for layer in LAYERS {
        assert!((stored[&format!("{layer}.input_scale")].values()[0] - 0.01).abs() < 1e-8, "{layer}");
    }
    assert_eq!(dir.json("q/qtool.json")["activations"][LAYERS[0]]["observer"], "mine");
}

/// What others wrote, without a sidecar: parameters of activations are read, or refused.
#[test]
fn parameters_of_activations_of_others_are_read() {
    let dir = checkpoint();
    dir.ok("quantize m --scheme w8a8-static-asym --samples s -o q");
    std::fs::remove_file(dir.path("q/qtool.json")).unwrap();
    dir.ok("dequantize q -o back");
    let mut tensors = model::tensors(&dir.read("q/model.safetensors"));
    let scale = format!("{}.input_scale", LAYERS[0]);
    let zero_point = format!("{}.input_zero_point", LAYERS[0]);
    for (name, dtype, bytes) in [(&scale, "I32", 4), (&scale, "I64", 8), (&zero_point, "F32", 4)] {
        let before = tensors.insert(name.clone(), Tensor::new(name, dtype, &[1], vec![1; bytes])).unwrap();
        dir.write("q/model.safetensors", model::file(&tensors.values().cloned().collect::<Vec<_>>()));
        let run = dir.fails("dequantize q -o refused", 1);
        run.expect_one_error();
        assert!(run.stderr.contains(name.as_str()), "{run}");
        tensors.insert(name.clone(), before);
    }
}
