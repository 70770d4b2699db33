//! Pairs of int8 weights that could saturate without VNNI: counted as they are, gone after they were changed, the same on any machine.

use crate::onnx_quantize::small;
use crate::schema::expect_valid;
use crate::support::onnx::{Constant, Graph, Node};
use crate::support::{QTOOL, Random, Workdir, finish};
use serde_json::Value;

/// One weight, and how its codes are found in what was written.
struct Weight {
    name: &'static str,
    /// As the model has it.
    dims: [usize; 2],
    values: Vec<f32>,
    /// The axis of output channels.
    channels: usize,
    /// The axes along which elements are pairs.
    pairs: &'static [usize],
    /// Whether codes are stored with their axes swapped.
    transposed: bool,
}

impl Weight {
    fn new(name: &'static str, dims: [usize; 2], channels: usize, pairs: &'static [usize], transposed: bool, random: &mut Random) -> Self {
        let values = (0..dims[0] * dims[1]).map(|_| random.normal() * 0.1).collect();
        Weight { name, dims, values, channels, pairs, transposed }
    }

    /// Rounds as ONNX Runtime's tool does, with the scales of the sidecar: codes in the order of the model's elements.
    fn codes(&self, scales: &[f32]) -> Vec<i8> {
        let channel = |i: usize| if self.channels == 0 { i / self.dims[1] } else { i % self.dims[1] };
        let scale = |i: usize| if scales.len() == 1 { scales[0] } else { scales[channel(i)] };
        self.values.iter().enumerate().map(|(i, value)| (value / scale(i)).round_ties_even() as i8).collect()
    }

    /// Where the element of each stored code is in the model.
    fn stored(&self) -> Vec<usize> {
        let [rows, columns] = self.dims;
        match self.transposed {
            false => (0..rows * columns).collect(),
            true => (0..rows * columns).map(|i| i % rows * columns + i / rows).collect(),
        }
    }

    /// Places of pairs along an axis.
    fn pairs_along(&self, axis: usize) -> Vec<[usize; 2]> {
        let [rows, columns] = self.dims;
        let place = |i: usize, k: usize| if axis == 0 { k * columns + i } else { i * columns + k };
        let (others, len) = if axis == 0 { (columns, rows) } else { (rows, columns) };
        (0..others).flat_map(|i| (0..len / 2).map(move |k| [place(i, 2 * k), place(i, 2 * k + 1)])).collect()
    }

    /// How many pairs could saturate.
    fn possible(&self, codes: &[i8]) -> usize {
        let sum = |pair: &[usize; 2]| i32::from(codes[pair[0]]) + i32::from(codes[pair[1]]);
        self.pairs.iter().flat_map(|axis| self.pairs_along(*axis)).filter(|pair| sum(pair).abs() > 128).count()
    }
}

/// Products of more elements than a piece has (2^18), with odd dimensions; and one weight that two products sum over different axes of.
fn products() -> (Vec<u8>, Vec<Weight>) {
    let mut random = Random(21);
    let weights = vec![
        Weight::new("matmul", [411, 1031], 1, &[0], false, &mut random),
        Weight::new("gemm", [703, 1031], 0, &[1], true, &mut random),
        Weight::new("narrow", [703, 3], 1, &[0], false, &mut random),
        Weight::new("both", [64, 64], 1, &[0, 1], false, &mut random),
    ];
    let node = |op, inputs: &[&str], output: &str, attributes: &[(&'static str, i64)]| Node::new(op, inputs, output, attributes);
    let constants = weights.iter().map(|weight| Constant::floats(weight.name, &weight.dims.map(|dim| dim as u64), &weight.values));
    let graph = Graph {
        nodes: vec![
            node("MatMul", &["x", "matmul"], "h", &[]),
            node("Gemm", &["h", "gemm"], "g", &[("transB", 1)]),
            node("MatMul", &["g", "narrow"], "y", &[]),
            node("MatMul", &["z", "both"], "t", &[]),
            node("Gemm", &["t", "both"], "u", &[("transB", 1)]),
        ],
        constants: constants.collect(),
        inputs: vec![("x".into(), vec![2, 411]), ("z".into(), vec![2, 64])],
        outputs: vec![("y".into(), vec![2, 3]), ("u".into(), vec![2, 64])],
    };
    (graph.model(13), weights)
}

/// The codes of a weight in a file: they stand in `plain` as they were rounded.
fn written(weight: &Weight, rounded: &[i8], plain: &[u8], file: &[u8]) -> Vec<i8> {
    let stored = weight.stored();
    let bytes: Vec<u8> = stored.iter().map(|element| rounded[*element] as u8).collect();
    let place = plain.windows(bytes.len()).position(|window| window == bytes).unwrap_or_else(|| panic!("codes of {}", weight.name));
    let mut codes = vec![0; bytes.len()];
    stored.iter().zip(&file[place..]).for_each(|(element, byte)| codes[*element] = *byte as i8);
    codes
}

fn scales(record: &Value) -> Vec<f32> {
    record["scale"].as_array().unwrap().iter().map(|scale| scale.as_f64().unwrap() as f32).collect()
}

#[test]
fn pairs_are_counted_and_none_is_left_that_could_saturate() {
    let (model, weights) = products();
    let dir = Workdir::new();
    dir.write("model.onnx", model);
    for granularity in ["per-channel", "per-tensor"] {
        let quantize = |options: &str| {
            dir.ok(&format!(
                "quantize model.onnx -o q.onnx --force --durability none --granularity {granularity} --min-elements 1 {options}"
            ));
            expect_valid(&dir.json("q.json"), options);
            (dir.read("q.onnx"), dir.json("q.json")["tensors"].clone())
        };
        let (ignored, records) = quantize("--saturation ignore");
        assert!(weights.iter().all(|weight| records[weight.name].get("saturation").is_none()));
        let (plain, counted) = quantize("");
        assert_eq!(plain, ignored, "counting changes nothing");
        let (nudged, changed) = quantize("--saturation nudge");
        assert_eq!(nudged.len(), plain.len());
        let mut differing = 0;
        for weight in &weights {
            let (before, after) = (&counted[weight.name]["saturation"], &changed[weight.name]["saturation"]);
            let rounded = weight.codes(&scales(&counted[weight.name]));
            let pairs: usize = weight.pairs.iter().map(|axis| weight.pairs_along(*axis).len()).sum();
            for (record, treatment) in [(before, "report"), (after, "nudge")] {
                assert_eq!(record["pairs"], pairs, "{} {granularity}", weight.name);
                assert_eq!(record["possible"], weight.possible(&rounded), "{} {granularity}", weight.name);
                assert_eq!(record["treatment"], treatment);
            }
            let codes = written(weight, &rounded, &plain, &nudged);
            assert_eq!(weight.possible(&codes), 0, "{} {granularity}", weight.name);
            let count = codes.iter().zip(&rounded).filter(|(a, b)| a != b).count();
            assert_eq!((&before["changed"], &after["changed"]), (&0.into(), &count.into()), "{}", weight.name);
            assert!(codes.iter().zip(&rounded).all(|(a, b)| a.unsigned_abs() <= b.unsigned_abs()), "codes move towards 0");
            assert!(count == 0 || after["sqnr_db_before"].as_f64() > changed[weight.name]["error"]["sqnr_db"].as_f64());
            // What is taken both ways is stored both ways.
            differing += count * weight.pairs.len();
        }
        assert!(differing > 0);
        assert_eq!(plain.iter().zip(&nudged).filter(|(a, b)| a != b).count(), differing, "nothing else changes");
    }
}

#[test]
fn the_same_codes_are_changed_on_any_machine() {
    let (model, _) = products();
    let dir = Workdir::new();
    dir.write("model.onnx", model);
    let run = |threads: &str, simd: &str, memory: &str| {
        let mut command = dir.command(QTOOL);
        command.args(["quantize", "model.onnx", "-o", "q.onnx", "--force", "--durability", "none", "--quiet", "--saturation", "nudge"]);
        finish(command.args(["--threads", threads, "--max-memory", memory]).env("QTOOL_SIMD", simd)).expect(0);
        [dir.read("q.onnx"), dir.read("q.json")]
    };
    let expected = run("1", "scalar", "512MiB");
    for (threads, simd, memory) in [("2", "avx2", "16MiB"), ("7", "avx512", "512MiB"), ("64", "scalar", "16MiB")] {
        assert!(run(threads, simd, memory) == expected, "{threads} threads, {simd}, {memory}");
    }
    dir.ok("quantize model.onnx -o again.onnx --recipe q.json --durability none");
    assert!(dir.read("again.onnx") == expected[0], "the sidecar is a recipe that does the same");
}

#[test]
fn every_rounding_and_form_is_checked_afterwards() {
    let dir = small();
    let options = ["", "--rounding gptq", "--rounding adaround", "--observer mse", "--transform bias-correction", "--format qoperator"];
    for option in options {
        let quantize = |how: &str| {
            dir.ok(&format!("quantize model.onnx --samples samples --min-sqnr 0 -o q.onnx --force --saturation {how} {option}"));
            let sidecar = dir.json("q.json");
            expect_valid(&sidecar, option);
            sidecar["tensors"].as_object().unwrap().clone()
        };
        let (counted, nudged, reduced) = (quantize("report"), quantize("nudge"), quantize("7bit"));
        let checked: Vec<&String> = counted.iter().filter(|(_, record)| record.get("saturation").is_some()).map(|(name, _)| name).collect();
        assert!(checked.len() >= 4, "{option}: {checked:?}");
        assert!(checked.iter().any(|name| counted[*name]["saturation"]["possible"].as_u64().unwrap() > 0), "{option}");
        for name in checked {
            let [before, after, least] = [&counted, &nudged, &reduced].map(|records| &records[name]["saturation"]);
            assert_eq!(before["possible"], after["possible"], "{option} {name}");
            assert_eq!(before["samples"], after["samples"], "{option} {name}");
            assert_eq!(least["possible"], 0, "{option} {name}");
            assert_eq!((&reduced[name]["qmin"], &reduced[name]["qmax"]), (&(-64).into(), &64.into()), "{option} {name}");
            if before["possible"] != 0 {
                assert!(after["changed"].as_u64().unwrap() > 0, "{option} {name}");
            }
            if let Some(samples) = before.get("samples") {
                assert!(samples["saturated"].as_u64() <= samples["sums"].as_u64() && samples["sums"] != 0, "{option} {name}");
            }
        }
    }
}

#[test]
fn what_is_not_multiplied_in_integers_is_not_checked() {
    let dir = small();
    for options in [
        "--mode weight-only --saturation nudge",
        "--weights uint8",
        "--target ort-cpu-avx2",
        "--target ort-cpu",
        "--samples samples --min-sqnr 0 --target tensorrt",
        "--fake-quant --saturation 7bit",
    ] {
        dir.ok(&format!("quantize model.onnx -o q.onnx --force {options}"));
        let tensors = dir.json("q.json")["tensors"].clone();
        let records: Vec<&Value> = tensors.as_object().unwrap().values().collect();
        assert!(!records.is_empty() && records.iter().all(|record| record.get("saturation").is_none()), "{options}");
        assert!(records.iter().all(|record| record["qmax"] != 64), "{options}");
    }
    // A target whose kernels saturate, with int8 all the same.
    dir.ok("quantize model.onnx -o q.onnx --force --target ort-cpu-avx2 --weights int8");
    let sidecar = dir.json("q.json");
    assert_eq!(sidecar["recipe"]["saturation"], "7bit");
    let tensors = sidecar["tensors"].as_object().unwrap();
    let checked = || tensors.values().filter(|record| record.get("saturation").is_some());
    assert!(checked().count() > 0 && checked().all(|record| record["qmax"] == 64 && record["saturation"]["possible"] == 0));
    dir.ok("quantize model.onnx -o q.onnx --force --target ort-cpu-avx2 --weights int8 --saturation nudge");
    assert_eq!(dir.json("q.json")["recipe"]["saturation"], "nudge");
    dir.run(["quantize", "model.onnx", "-o", "n.onnx", "--saturation", "6bit"]).expect(2);
}

#[test]
fn reports_say_what_was_found() {
    let (model, _) = products();
    let dir = Workdir::new();
    dir.write("model.onnx", model);
    let report = dir.ok("quantize model.onnx -o q.onnx --saturation nudge --json").json();
    let found = &report["saturation"];
    let of_tensors = |field: &str| -> u64 {
        let tensors = report["tensors"].as_array().unwrap();
        tensors.iter().filter_map(|tensor| tensor.get("saturation")).map(|record| record[field].as_u64().unwrap()).sum()
    };
    for field in ["pairs", "possible", "changed"] {
        assert_eq!(found[field], of_tensors(field), "{field}");
    }
    assert!(found["sqnr_db"].as_f64() < found["sqnr_db_before"].as_f64());
    let possible = found["possible"].to_string();
    let text = dir.ok("quantize model.onnx -o q.onnx --force").stdout;
    let line = text.lines().find(|line| line.starts_with("saturation without VNNI: ")).expect("a line about it");
    assert!(line.contains(&format!("{possible} of ")) && line.ends_with("could saturate; --saturation nudge changes these"), "{line}");
    assert!(!dir.ok("quantize model.onnx -o q.onnx --force --saturation ignore").stdout.contains("VNNI"));
    let text = dir.ok("quantize model.onnx -o q.onnx --force --saturation 7bit").stdout;
    assert!(text.contains("saturation without VNNI: none; codes have 7 bits in 4 tensors\n"), "{text}");
    let text = dir.ok("quantize model.onnx -o q.onnx --force --saturation nudge --mode weight-only").stdout;
    assert!(text.contains("note: --saturation nudge: no int8 weight is multiplied in integers\n"), "{text}");
}
