//! The library from the outside: the examples do what they say, and blocks of the documents run.

use crate::support::model::{self, Tensor};
use crate::support::{QTOOL, Random, Workdir, finish};
use std::collections::BTreeMap;

#[allow(dead_code, reason = "main is for `cargo run --example`")]
#[path = "../examples/custom_observer.rs"]
mod custom_observer;
#[allow(dead_code, reason = "main is for `cargo run --example`")]
#[path = "../examples/custom_output.rs"]
mod custom_output;
#[allow(dead_code, reason = "main is for `cargo run --example`")]
#[path = "../examples/quantize_tensor.rs"]
mod quantize_tensor;

#[test]
fn a_tensor_in_memory_becomes_what_the_program_makes_of_it() {
    let weights = Tensor::weights("a.weight", &[16, 100], &mut Random(3));
    let dir = Workdir::with_model(&model::file(std::slice::from_ref(&weights)));
    dir.ok("quantize model.safetensors --observer mse");
    let values: Vec<f32> = weights.values().iter().map(|value| *value as f32).collect();
    let done = quantize_tensor::quantize_rows(&values, 100).unwrap();
    assert_eq!(model::tensors(&dir.read("model.int8.safetensors"))["a.weight"].bytes, done.codes);
    let record = &dir.json("model.int8.json")["tensors"]["a.weight"];
    let scales: Vec<f32> = record["scale"].as_array().unwrap().iter().map(|scale| scale.as_f64().unwrap() as f32).collect();
    assert_eq!(scales, done.scales);
    assert!(done.error.metrics().sqnr_db.unwrap() > 35.0);
}

#[test]
fn a_registered_observer_chooses_ranges_and_is_recorded_by_name() {
    let dir = Workdir::with_fixture();
    let report = custom_observer::quantize(&dir.path("model.safetensors")).unwrap();
    assert_eq!(report.output, dir.path("model.int8.safetensors"));
    let record = &dir.json("model.int8.json")["tensors"]["conv1.weight"];
    assert_eq!(record["observer"], "three-sigma");
    let stored = &model::tensors(&dir.read("model.safetensors"))["conv1.weight"];
    let scales = record["scale"].as_array().unwrap();
    for (channel, scale) in stored.values().chunks(129 * 3).zip(scales) {
        let count = channel.len() as f64;
        let mean = channel.iter().sum::<f64>() / count;
        let reach = 3.0 * (channel.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
        let low = channel.iter().copied().fold(f64::INFINITY, f64::min).max(mean - reach);
        let high = channel.iter().copied().fold(f64::NEG_INFINITY, f64::max).min(mean + reach);
        let (expected, found) = ((-low).max(high) / 127.5, scale.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-5 * expected, "{found}, expected {expected}");
    }
    // The program does not know it, and says so.
    let run = dir.fails("quantize model.safetensors --force --recipe model.int8.json", 2);
    assert!(run.stderr.contains("three-sigma"), "{run}");
}

#[test]
fn a_registered_observer_that_names_no_range_is_an_error() {
    struct Wrong(f32, f32);
    impl qtool::Observer for Wrong {
        fn observe(&mut self, _batch: qtool::Batch<'_>) {}

        fn range(&self) -> qtool::Range {
            qtool::Range { min: self.0, max: self.1 }
        }
    }
    for (min, max) in [(1.0, 0.5), (f32::NAN, 1.0), (0.0, f32::INFINITY)] {
        for model in ["model.safetensors", "model.onnx"] {
            let dir = if model == "model.onnx" { crate::onnx_quantize::small() } else { Workdir::with_fixture() };
            let before = dir.names();
            let mut request = qtool::Request::new(dir.path(model));
            request.recipe.observers.register("wrong", move |_| Box::new(Wrong(min, max))).unwrap();
            if model == "model.onnx" {
                request.calibration.samples = vec![dir.path("samples")].into();
                request.recipe.activations.observer = "wrong".parse().unwrap();
            } else {
                request.recipe.settings.observer = "wrong".parse().unwrap();
            }
            let error = qtool::Prepared::new(request).unwrap().run(&qtool::Silent).expect_err("it is no range");
            let text = error.to_string();
            assert!(error.exit_code() == 1 && text.contains("observer \"wrong\": range of group 0"), "{text}");
            assert!(text.contains("tensor \"") || text.contains("value \""), "{text}");
            assert_eq!(dir.names(), before);
        }
    }
    let mut recipe = qtool::Recipe::default();
    recipe.observers.register("wrong", |_| Box::new(Wrong(0.0, 0.0))).unwrap();
    for name in ["wrong", "mse", "Wrong", ""] {
        assert!(recipe.observers.register(name, |_| Box::new(Wrong(0.0, 0.0))).is_err(), "{name}");
    }
}

#[test]
fn an_output_of_ones_own_holds_codes_and_scales() {
    let dir = Workdir::with_fixture();
    let header = custom_output::c_header(&dir.path("model.safetensors")).unwrap();
    let record = &dir.json("model.int8.json")["tensors"]["conv2.weight"];
    let codes = &model::tensors(&dir.read("model.int8.safetensors"))["conv2.weight"].bytes;
    let numbers: Vec<String> = codes.iter().map(|code| (*code as i8).to_string()).collect();
    assert!(header.contains(&format!("static const int8_t conv2_weight[{}] = {{{}}};", codes.len(), numbers.join(","))));
    let line = header.lines().find(|line| line.contains("conv2_weight_scale")).unwrap();
    let scale: f32 = line.rsplit(' ').next().unwrap().trim_end_matches("f;").parse().unwrap();
    assert_eq!(scale, record["scale"][0].as_f64().unwrap() as f32);
}

/// Fenced blocks of a document: language, title, text.
fn blocks(text: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut parts = text.split("\n```");
    parts.next();
    while let (Some(block), _) = (parts.next(), parts.next()) {
        let (head, body) = block.split_once('\n').unwrap();
        let (language, title) = head.split_once(' ').unwrap_or((head, ""));
        let title = title.trim_start_matches("title=\"").trim_end_matches('"');
        found.push((language.to_owned(), title.to_owned(), format!("{body}\n")));
    }
    found
}

#[test]
fn blocks_of_the_document_on_custom_observers_run() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/custom-observers.md")).unwrap();
    let dir = Workdir::with_fixture();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut commands = Vec::new();
    for (language, title, body) in blocks(&text) {
        *seen.entry(language.clone()).or_default() += 1;
        match (language.as_str(), title.as_str()) {
            ("toml", title) if !title.is_empty() => dir.write(title, body),
            ("sh", "") => commands.push(body),
            // Written by another process, or a test that forks meanwhile would keep it open: busy files cannot be run.
            ("sh", title) => {
                let write = "printf '%s' \"$1\" > \"$0\" && chmod +x \"$0\"";
                assert!(dir.command("sh").args(["-c", write, title, &body]).status().unwrap().success());
            }
            ("json", "") => {
                let answer = format!("echo '{}'\n", body.trim());
                dir.write("answer.sh", answer);
                dir.write("answer.toml", "[[observer]]\nname = \"answer\"\ncommand = [\"sh\", \"./answer.sh\"]\n");
                let model = model::file(&[Tensor::weights("two.weight", &[2, 600], &mut Random(1))]);
                dir.write("two.safetensors", model);
                dir.ok("quantize two.safetensors --recipe answer.toml --observer answer --allow-commands");
            }
            // tests/interop/test_custom_observers.py runs it.
            ("python", "clip3sigma.py") => {}
            other => panic!("a block of another kind: {other:?}"),
        }
    }
    assert_eq!(seen, [("json", 1), ("python", 1), ("sh", 2), ("toml", 1)].map(|(name, n)| (name.to_owned(), n)).into());
    for line in commands.iter().flat_map(|body| body.lines()) {
        let line = line.replacen("qtool", QTOOL, 1);
        finish(dir.command("sh").args(["-c", &line])).expect(0);
    }
    // The last one was per tensor.
    let record = &dir.json("model.int8.json")["tensors"]["conv1.weight"];
    assert_eq!(record["observer"], "clip3sigma");
    let values = model::tensors(&dir.read("model.safetensors"))["conv1.weight"].values();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let reach = 3.0 * (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
    let largest = values.iter().map(|value| value.clamp(mean - reach, mean + reach).abs()).fold(0.0, f64::max);
    let found = record["scale"][0].as_f64().unwrap();
    assert!((found - largest / 127.5).abs() < 1e-4 * found, "{found}, expected {}", largest / 127.5);
}
