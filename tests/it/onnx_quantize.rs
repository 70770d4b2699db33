//! `qtool quantize model.onnx` in every mode and form, and calibration in one step and in several.

use crate::support::Workdir;
use std::fs;
use std::path::Path;

/// `fixtures/onnx/small`: a model of every kind of layer, and six samples in `samples`.
pub(crate) fn small() -> Workdir {
    let dir = Workdir::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx/small");
    fs::copy(from.join("small.onnx"), dir.path("model.onnx")).unwrap();
    for i in 0..6 {
        dir.write(format!("samples/{i}.npz"), fs::read(from.join(format!("{i}.npz"))).unwrap());
    }
    dir
}

/// Nodes of an operator: `op_type` is field 4 of NodeProto.
pub(crate) fn count(model: &[u8], op_type: &str) -> usize {
    let field: Vec<u8> = [0x22, op_type.len() as u8].into_iter().chain(op_type.bytes()).collect();
    model.windows(field.len()).filter(|window| *window == field).count()
}

struct Case {
    options: &'static str,
    /// Operators with how many of them there are in the output.
    expected: &'static [(&'static str, usize)],
}

#[test]
fn every_mode_and_form_has_the_operators_that_runtimes_fuse() {
    let cases = [
        Case {
            options: "--mode weight-only",
            expected: &[("DequantizeLinear", 7), ("Conv", 3), ("Relu", 1), ("Clip", 1), ("Gemm", 1), ("MatMul", 1), ("LSTM", 1)],
        },
        Case {
            options: "",
            expected: &[
                ("DynamicQuantizeLinear", 2),
                ("MatMulInteger", 2),
                ("DynamicQuantizeLSTM", 1),
                ("Conv", 3),
                ("Gemm", 0),
                ("MatMul", 0),
                ("Gather", 2),
            ],
        },
        // Pairs: the image, three convolutions, the pool (with parameters of what it moves), and inputs of both products.
        Case {
            options: "--samples samples",
            expected: &[
                ("QuantizeLinear", 7),
                ("Conv", 3),
                ("BatchNormalization", 0),
                ("Relu", 0),
                ("Clip", 0),
                ("Gemm", 1),
                ("MatMul", 1),
            ],
        },
        Case {
            options: "--samples samples --format qoperator",
            expected: &[("QLinearConv", 3), ("Conv", 0), ("MatMulInteger", 2), ("Gemm", 0), ("MatMul", 0), ("QuantizeLinear", 4)],
        },
        Case { options: "--mode weight-only --weights int4 --granularity per-group:16", expected: &[("DequantizeLinear", 8), ("Conv", 3)] },
        Case { options: "--op-types MatMul", expected: &[("MatMulInteger", 1), ("Gemm", 1), ("LSTM", 1), ("DequantizeLinear", 0)] },
        Case { options: "--exclude head --exclude gemm", expected: &[("MatMulInteger", 0), ("Gemm", 1), ("MatMul", 1)] },
    ];
    for Case { options, expected } in cases {
        let dir = small();
        dir.ok(&format!("quantize model.onnx {options}"));
        let written = dir.names().into_iter().find(|name| name.ends_with(".onnx") && name != "model.onnx").unwrap();
        let model = dir.read(&written);
        for (op_type, number) in expected {
            assert_eq!(count(&model, op_type), *number, "{op_type} with {options:?}");
        }
        let holds = |text: &str| model.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("kept too"), "metadata with {options:?}");
        dir.ok(&format!("verify {written}"));
    }
}

/// Where the lowest code does not stand for 0, values below 0 would pass.
#[test]
fn activation_functions_stay_where_codes_do_not_end_at_their_limits() {
    for form in ["qdq", "qoperator"] {
        let dir = small();
        let symmetric = "--activations int8 --activation-symmetry symmetric --min-sqnr 0";
        for (options, stay) in [("--min-sqnr 0", 0), (symmetric, 1), ("--target tensorrt --no-lint", 1)] {
            dir.ok(&format!("quantize model.onnx --samples samples --format {form} {options} -o q.onnx --force"));
            let model = dir.read("q.onnx");
            assert_eq!([count(&model, "Relu"), count(&model, "Clip")], [stay, stay], "{options}");
            dir.ok("compare model.onnx q.onnx --samples samples --min-sqnr 25");
            dir.ok("dequantize q.onnx -o back.onnx --force");
            dir.ok("compare model.onnx back.onnx --samples samples --min-sqnr 25");
        }
    }
}

#[test]
fn one_step_and_several_write_the_same_bytes_whatever_the_threads() {
    let dir = small();
    dir.ok("quantize model.onnx --samples samples --threads 1 -o one.onnx");
    dir.ok("quantize model.onnx --samples samples --threads 3 -o three.onnx");
    assert_eq!(dir.read("one.onnx"), dir.read("three.onnx"));
    for part in 0..3 {
        dir.ok(&format!("calibrate model.onnx --samples samples --part {part}/3 -o {part}.stats"));
    }
    dir.ok("calibrate model.onnx --samples samples -o all.stats");
    dir.ok("merge 2.stats 0.stats -o some.stats");
    dir.ok("merge 1.stats some.stats -o merged.stats");
    assert_eq!(dir.read("merged.stats"), dir.read("all.stats"));
    dir.ok("quantize model.onnx --stats 1.stats --stats some.stats -o parts.onnx");
    assert_eq!(dir.read("parts.onnx"), dir.read("one.onnx"));
    assert_eq!(dir.json("parts.json")["calibration"], dir.json("one.json")["calibration"]);
    assert_eq!(dir.json("one.json")["calibration"]["samples"], 6);
    assert_eq!(dir.json("one.json")["activations"]["relu1"]["zero_point"], 0);
}

#[test]
fn layers_that_cost_too_much_are_spared_and_the_recipe_says_which() {
    let dir = small();
    let all = dir.ok("quantize model.onnx --samples samples -o all.onnx --json --min-sqnr 0").json();
    assert!(all.get("findings").is_none());
    let some = dir.ok("quantize model.onnx --samples samples -o some.onnx --json --min-sqnr 48").json();
    let findings = &some["findings"];
    let db = |what: &str| findings[what].as_f64().unwrap();
    assert!(db("sqnr_db") > db("all_quantized_db") + 1.0, "{findings}");
    let spared = findings["spared"].as_array().unwrap();
    assert!(!spared.is_empty());
    for name in spared {
        let reason = dir.json("some.json")["kept"][name.as_str().unwrap()].as_str().unwrap().to_owned();
        assert!(reason.starts_with("measured: "), "{reason}");
    }
    assert!(some["integer_share"].as_f64().unwrap() >= 0.9, "{some}");
    // What was measured is what the model does: the reference runs the model that was written.
    let compared = dir.ok("compare model.onnx some.onnx --samples samples --json").json();
    let worst = compared["outputs"].as_array().unwrap().iter().filter_map(|output| output["sqnr_db"].as_f64()).fold(f64::MAX, f64::min);
    assert!((worst - db("sqnr_db")).abs() < 1.0, "{worst} is not {findings}");
    // The recipe in the sidecar makes the same choice, whether it can measure or not.
    dir.write("again/here", "");
    dir.write("stats/here", "");
    dir.ok("calibrate model.onnx --samples samples -o all.stats");
    let again = dir.ok("quantize model.onnx --samples samples --recipe some.json -o again/some.onnx --threads 1 --json").json();
    assert_eq!(again["integer_share"], some["integer_share"]);
    assert!(some["integer_share"].as_f64().unwrap() < 1.0, "{some}");
    dir.ok("quantize model.onnx --stats all.stats --recipe some.json -o stats/some.onnx");
    for again in ["again", "stats"] {
        assert_eq!(dir.read(format!("{again}/some.onnx")), dir.read("some.onnx"));
        assert_eq!(dir.read(format!("{again}/some.json")), dir.read("some.json"));
    }
}

#[test]
fn without_samples_nothing_is_measured_and_it_is_said() {
    let dir = small();
    dir.ok("calibrate model.onnx --samples samples -o all.stats");
    let said = dir.ok("quantize model.onnx --stats all.stats -o a.onnx").stdout;
    assert!(said.contains("layers were not measured"), "{said}");
    let said = dir.ok("quantize model.onnx --samples samples --max-memory 1 -o m.onnx").stdout;
    assert!(said.contains("layers were not measured") && said.contains("--max-memory"), "{said}");
    dir.ok("quantize model.onnx --stats all.stats --samples samples --min-sqnr 48 -o b.onnx");
    dir.ok("quantize model.onnx --samples samples --min-sqnr 48 -o c.onnx");
    assert_eq!(dir.read("b.onnx"), dir.read("c.onnx"));
}

#[test]
fn activations_of_sixteen_bits_lose_next_to_nothing_and_are_not_called_integers() {
    let dir = small();
    let share = |activations: &str| {
        let options = format!("quantize model.onnx --samples samples --activations {activations} -o {activations}.onnx --json");
        dir.ok(&options).json()["integer_share"].as_f64().unwrap()
    };
    assert!(share("uint8") > 0.9 && share("uint16") < 0.5);
    let scale = |name: &str| dir.json(format!("{name}.json"))["activations"]["image"]["scale"].as_f64().unwrap();
    assert!((scale("uint8") / scale("uint16") - 257.0).abs() < 0.1);
}

#[test]
fn observers_of_activations_choose_different_ranges() {
    let dir = small();
    let mut scales = Vec::new();
    for observer in ["min-max", "percentile:99", "mse", "moving-average"] {
        dir.ok(&format!("quantize model.onnx --samples samples --activation-observer {observer} -o q.onnx --force"));
        scales.push(dir.json("q.json")["activations"]["image"]["scale"].as_f64().unwrap());
    }
    assert!(scales[1..].iter().all(|scale| *scale < scales[0]), "{scales:?}");
}

#[test]
fn what_cannot_be_calibrated_is_refused_before_anything_is_written() {
    let dir = small();
    dir.write("bad/0.npz", "not a zip archive");
    dir.write("other.onnx", dir.read("model.onnx").iter().copied().chain([0x32, 1, b'x']).collect::<Vec<u8>>());
    dir.ok("calibrate other.onnx --samples samples -o other.stats");
    for (arguments, code) in [
        ("quantize model.onnx --mode static", 2),
        ("quantize model.onnx --samples bad", 1),
        ("quantize model.onnx --samples nowhere", 4),
        ("quantize model.onnx --stats model.onnx", 1),
        ("quantize model.onnx --stats other.stats", 1),
        ("quantize model.onnx --samples samples --activations int4", 2),
        ("quantize model.onnx --samples samples --activations int16 --format qoperator", 2),
        ("quantize model.onnx --weights int16", 2),
        ("quantize model.onnx --format sidecar", 2),
        ("merge other.stats other.stats -o twice.stats", 1),
    ] {
        dir.fails(arguments, code).expect_one_error();
    }
    assert!(!dir.exists("model.int8.onnx") && !dir.exists("twice.stats"));
}

#[test]
fn a_target_sets_what_was_not_asked_for_and_refuses_what_it_cannot_run() {
    let dir = small();
    let recipe = |options: &str| {
        dir.ok(&format!("quantize model.onnx --samples samples {options} -o q.onnx --force"));
        dir.json("q.json")["recipe"].clone()
    };
    let avx2 = recipe("--target ort-cpu-avx2");
    assert_eq!((&avx2["default"]["weights"], &avx2["default"]["narrow_range"]), (&"uint8".into(), &true.into()));
    let written = dir.json("q.json");
    let weight = written["tensors"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!((&weight["qmin"], &weight["qmax"]), (&1.into(), &255.into()), "{weight}");
    assert!(weight["zero_point"].as_array().unwrap().iter().all(|zero_point| *zero_point == 128));
    // The same numbers as with int8.
    let float = dir.ok("compare model.onnx q.onnx --samples samples --json").json();
    dir.ok("quantize model.onnx --samples samples -o q.onnx --force");
    assert_eq!(dir.ok("compare model.onnx q.onnx --samples samples --json").json(), float);
    let tensorrt = recipe("--target tensorrt");
    assert_eq!((&tensorrt["activations"]["dtype"], &tensorrt["activations"]["symmetric"]), (&"int8".into(), &true.into()));
    assert_eq!(recipe("--target ort-cpu-avx2 --weights int8")["default"]["weights"], "int8");
    assert_eq!(recipe("--symmetric --weight-symmetry asymmetric")["default"]["symmetric"], false);
    for options in ["--target tensorrt --weights uint8", "--target tensorrt --activation-symmetry asymmetric"] {
        dir.fails(&format!("quantize model.onnx --samples samples {options} -o n.onnx"), 2).expect_one_error();
    }
    assert!(!dir.exists("n.onnx"));
}
