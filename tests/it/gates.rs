//! Gates of `compare` and `quantize`: whom they are about, what a failing one leaves behind, and JUnit files.

use crate::onnx_quantize::small;
use crate::support::model::{self, Tensor};
use crate::support::{Random, Workdir};
use serde_json::{Value, json};

/// What a run of `arguments` says of its gates.
fn rows(dir: &Workdir, arguments: &str, code: i32) -> Vec<Value> {
    let run = dir.run(arguments.split_whitespace().chain(["--json"])).expect(code);
    run.json()["gates"].as_array().unwrap_or_else(|| panic!("{run}")).clone()
}

/// Name, measure, limit and verdict of rows.
fn verdicts(rows: &[Value]) -> Vec<(&str, &str, f64, bool)> {
    let verdict = |row: &'_ Value| (row["limit"].as_f64().unwrap(), row["passed"].as_bool().unwrap());
    rows.iter().map(|row| (row["name"].as_str().unwrap(), row["measure"].as_str().unwrap(), verdict(row).0, verdict(row).1)).collect()
}

/// SQNR of the fixture's tensors as int8: conv4 31.5 dB, conv3 34.5, conv2 37.7, others 38.1 and more.
const QUANTIZE: &str = "quantize model.safetensors -o q.safetensors --force";

#[test]
fn a_number_is_for_all_and_a_pattern_for_some_and_the_later_wins() {
    let dir = Workdir::with_fixture();
    for (gates, failing) in [
        ("--min-sqnr 31", vec![]),
        ("--min-sqnr 33", vec!["conv4.weight"]),
        ("--min-sqnr 36", vec!["conv3.weight", "conv4.weight"]),
        ("--min-sqnr 33 --min-sqnr conv4=31", vec![]),
        ("--min-sqnr conv4=31 --min-sqnr 33", vec!["conv4.weight"]),
        ("--min-sqnr 33 --min-sqnr conv4=none", vec![]),
        ("--min-sqnr re:conv[34]=40 --min-sqnr *4*=31", vec!["conv3.weight"]),
        ("--min-sqnr conv4=33 --max-abs conv3=0.001", vec!["conv3.weight", "conv4.weight"]),
        ("--max-mse *=1e-12 --max-mse lstm_cell.*=1 --max-mse *conv*=1", vec![]),
    ] {
        let code = if failing.is_empty() { 0 } else { 3 };
        for command in [QUANTIZE, "compare model.safetensors q.safetensors"] {
            if command.starts_with("compare") {
                dir.ok(QUANTIZE);
            }
            let found = rows(&dir, &format!("{command} {gates}"), code);
            let mut names: Vec<&str> = verdicts(&found).into_iter().filter(|row| !row.3).map(|row| row.0).collect();
            names.sort_unstable();
            assert_eq!(names, failing, "{command} {gates}: {found:?}");
            dir.run(format!("{command} {gates} --quiet").split_whitespace()).expect(code);
        }
    }
    let found = rows(&dir, &format!("{QUANTIZE} --min-sqnr 33 --min-sqnr conv4=30 --min-cosine conv3=0.9"), 0);
    let found = verdicts(&found);
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found.contains(&("conv4.weight", "sqnr_db", 30.0, true)) && found.contains(&("conv3.weight", "cosine", 0.9, true)));
}

#[test]
fn a_failing_gate_says_what_was_found_and_the_old_output_stays() {
    let dir = Workdir::with_fixture();
    let before = dir.names();
    let failing = "quantize model.safetensors --min-sqnr 33 --min-cosine 0.9";
    let run = dir.fails(failing, 3);
    for part in ["1 of 14 gates fail", "nothing is written", "tensor \"conv4.weight\": SQNR: expected at least 33 dB, found 31.4"] {
        assert!(run.stderr.contains(part), "{part}: {run}");
    }
    assert!(run.stdout.contains("\"conv4.weight\"  SQNR") && run.stdout.contains("at least 33 dB"), "{run}");
    assert!(dir.fails(&format!("{failing} --quiet"), 3).stdout.is_empty());
    let found = rows(&dir, failing, 3);
    let failed: Vec<&Value> = found.iter().filter(|row| row["passed"] == false).collect();
    let [row] = failed[..] else { panic!("{found:?}") };
    assert!((31.0..32.0).contains(&row["found"].as_f64().unwrap()), "{row}");
    assert_eq!((&row["kind"], &row["limit"]), (&json!("tensor"), &json!(33.0)));
    assert_eq!(dir.names(), before);

    dir.ok("quantize model.safetensors --weights int4");
    let old = (dir.read("model.int4.safetensors"), dir.read("model.int4.json"));
    for more in ["--emit-recipe r.toml", "--report r.html", "--sidecar model.int4.json", "--durability none"] {
        let names = dir.names();
        dir.fails(&format!("{failing} -o model.int4.safetensors --force {more}"), 3);
        assert_eq!(dir.names(), names);
        assert!((dir.read("model.int4.safetensors"), dir.read("model.int4.json")) == old);
    }
    dir.ok("verify model.int4.safetensors");
}

#[test]
fn a_directory_that_fails_a_gate_stays_as_it_was() {
    let mut random = Random(3);
    let dir = Workdir::new();
    dir.write("m/model.safetensors", model::file(&[Tensor::weights("a.weight", &[40, 32], &mut random)]));
    dir.write("m/config.json", "{}");
    dir.fails("quantize m -o q --min-sqnr 80", 3);
    assert!(!dir.exists("q"));
    dir.ok("quantize m -o q --min-sqnr 30 --min-cosine 0.99");
    let (names, old) = (dir.names(), dir.read("q/model.safetensors"));
    for form in ["", "--format compressed-tensors", "--fake-quant", "--weights int4 --granularity per-group:16 --asymmetric"] {
        dir.fails(&format!("quantize m -o q --force --min-sqnr 80 --min-cosine 0.99999999 {form}"), 3);
        assert_eq!((dir.names(), dir.read("q/model.safetensors")), (names.clone(), old.clone()));
    }
    dir.ok("verify q");
}

/// What `quantize` measures before anything appears is what `compare` finds afterwards.
#[test]
fn figures_of_tensors_are_those_of_compare() {
    let dir = Workdir::with_fixture();
    let gates = "--min-sqnr 0.001 --min-cosine 0 --max-abs 1e9 --max-mse 1e9";
    for options in [
        "",
        "--weights int4 --granularity per-group:16 --include *lstm*",
        "--fake-quant",
        "--weights uint8 --asymmetric --granularity per-tensor",
    ] {
        let ours = rows(&dir, &format!("quantize model.safetensors -o q.safetensors --force {options} {gates}"), 0);
        let theirs = rows(&dir, &format!("compare model.safetensors q.safetensors {gates}"), 0);
        assert!(ours.len() >= 8 && ours.len().is_multiple_of(4), "{options}: {ours:?}");
        for row in &ours {
            let other = theirs.iter().find(|other| other["name"] == row["name"] && other["measure"] == row["measure"]).unwrap();
            let (a, b) = (row["found"].as_f64().unwrap(), other["found"].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * b.abs(), "{options}: {row} is not {other}");
        }
    }
}

#[test]
fn cosines_of_weights_of_onnx_models_are_known_in_every_form() {
    let dir = small();
    for options in [
        "--mode weight-only",
        "--mode weight-only --weights int4 --granularity per-group:16",
        "--mode weight-only --weights uint8 --asymmetric",
        "--mode dynamic",
        "--samples samples --min-sqnr 0",
        "--samples samples --min-sqnr 0 --format qoperator",
        "--samples samples --min-sqnr 0 --target ort-cpu-avx2",
        "--fake-quant",
    ] {
        let found = rows(&dir, &format!("quantize model.onnx -o q.onnx --force {options} --min-cosine *=0.9 --min-sqnr *=1"), 0);
        let of = |name: &Value, measure: &str| {
            let row = found.iter().find(|row| row["kind"] == "tensor" && row["name"] == *name && row["measure"] == measure);
            row.map(|row| row["found"].as_f64().unwrap_or_else(|| panic!("{options}: {row}")))
        };
        let tensors: Vec<&Value> = found.iter().filter(|row| row["kind"] == "tensor").map(|row| &row["name"]).collect();
        assert!(tensors.len() >= 10, "{options}: {found:?}");
        for name in tensors {
            // Errors that have little to do with the values: cos² = 1 / (1 + noise), nearly.
            let (cosine, noise) = (of(name, "cosine").unwrap(), 10f64.powf(-of(name, "sqnr_db").unwrap() / 10.0));
            assert!((0.5..2.0).contains(&((1.0 - cosine) / (noise / 2.0))), "{options}: {name}: {cosine}, noise {noise}");
        }
    }
}

#[test]
fn outputs_are_judged_on_all_samples_as_compare_does() {
    let dir = small();
    let gates = "--min-sqnr 40 --min-cosine 0.99 --max-abs 1 --max-mse 1 --min-top1 1";
    for options in ["", "--mode weight-only", "--mode dynamic", "--format qoperator --activations int8"] {
        let ours = rows(&dir, &format!("quantize model.onnx -o q.onnx --force --samples samples {options} {gates}"), 0);
        assert_eq!(ours, rows(&dir, &format!("compare model.onnx q.onnx --samples samples {gates}"), 0), "{options}");
        let measured: Vec<&str> = verdicts(&ours).iter().map(|row| row.1).collect();
        assert_eq!(measured, ["sqnr_db", "mse", "cosine", "max_abs", "top1"], "{options}");
        assert!(ours.iter().all(|row| row["kind"] == "output" && row["name"] == "scores"));
    }
    let old = (dir.read("q.onnx"), dir.read("q.json"), dir.names());
    // Layers are spared first; what cannot be reached so fails, as does what is about a tensor, or was not measured before.
    for (gates, message) in [
        ("--min-sqnr 90", "output \"scores\": SQNR: expected at least 90 dB"),
        ("--min-sqnr scores=90", "output \"scores\": SQNR"),
        ("--min-sqnr 30 --min-sqnr head.weight=60", "tensor \"head.weight\": SQNR"),
        ("--min-sqnr 0 --max-abs 1e-9", "output \"scores\": max abs: expected at most 1e-9, found "),
        ("--min-sqnr 48 --max-memory 1", "output \"scores\": SQNR: expected at least 48 dB, found 44.6"),
    ] {
        let run = dir.fails(&format!("quantize model.onnx -o q.onnx --force --samples samples {gates}"), 3);
        assert!(run.stderr.contains(message), "{message}: {run}");
        assert!((dir.read("q.onnx"), dir.read("q.json"), dir.names()) == old);
    }
    // What is only to be reached is no gate.
    dir.ok("quantize model.onnx -o q.onnx --force --samples samples --max-drop 0");
    let reached = dir.ok("quantize model.onnx -o q.onnx --force --samples samples --min-sqnr 48 --json").json();
    assert!(!reached["findings"]["spared"].as_array().unwrap().is_empty() && reached["gates"][0]["passed"] == true, "{reached}");
}

#[test]
fn values_within_models_are_judged_by_pattern() {
    let dir = small();
    dir.ok("quantize model.onnx -o q.onnx --samples samples");
    let compare = "compare model.onnx q.onnx --samples samples";
    assert_eq!(rows(&dir, &format!("{compare} --layers --min-sqnr 44"), 0).len(), 1);
    let found = rows(&dir, &format!("{compare} --layers --min-sqnr 30 --min-sqnr relu*=50 --min-sqnr conv3=20"), 3);
    let mut found = verdicts(&found);
    found.sort_by_key(|row| row.0);
    let expected = [
        ("conv3", "sqnr_db", 20.0, true),
        ("relu1", "sqnr_db", 50.0, false),
        ("relu6", "sqnr_db", 50.0, false),
        ("scores", "sqnr_db", 30.0, true),
    ];
    assert_eq!(found, expected);
    let run = dir.fails(&format!("{compare} --layers --min-sqnr relu*=50"), 3);
    assert!(run.stdout.contains("FAILS") && run.stderr.contains("2 of 14 outputs and layers fail the gates"), "{run}");
}

#[test]
fn what_a_gate_is_about_must_exist() {
    let dir = small();
    std::fs::copy(crate::support::FIXTURE, dir.path("model.safetensors")).unwrap();
    dir.ok("quantize model.onnx -o q.onnx");
    let before = dir.names();
    for (arguments, message) in [
        ("quantize model.safetensors --min-sqnr nothing=3", "--min-sqnr: expected a tensor that \"nothing\" matches, found none"),
        ("quantize model.safetensors --min-top1 0.9", "--min-top1: expected outputs to compare"),
        ("quantize model.safetensors --min-sqnr=-1", "at least 0"),
        ("quantize model.onnx --min-sqnr scores=20", "hint: outputs of an ONNX model are compared on --samples"),
        ("quantize model.onnx --samples samples --min-top1 head.weight=1", "expected an output of classes that"),
        ("quantize model.onnx --samples samples --max-abs scor=1", "expected a tensor or an output that \"scor\" matches"),
        ("compare model.onnx q.onnx --samples samples --min-cosine relu1=0.9", "hint: --layers compares values within the models too"),
        ("compare model.onnx q.onnx --samples samples --layers --min-top1 relu1=0.9", "expected an output of classes that"),
        ("compare model.safetensors model.safetensors --max-mse conv=1", "expected a float tensor that \"conv\" matches"),
        ("compare model.safetensors model.safetensors --min-sqnr conv4=", "expected NUMBER or PATTERN=NUMBER"),
        ("compare model.safetensors model.safetensors --min-sqnr =4", "found no pattern"),
        ("quantize model.safetensors --max-abs conv4=nan", "expected NUMBER or PATTERN=NUMBER"),
    ] {
        let run = dir.run(arguments.split_whitespace()).expect(2);
        assert!(run.stderr.contains(message), "{message}: {run}");
    }
    assert_eq!(dir.names(), before);
}

#[test]
fn junit_files_are_written_whatever_the_outcome() {
    let dir = Workdir::with_fixture();
    let junit = || String::from_utf8(dir.read("junit.xml")).unwrap();
    let counts = |tests: usize, failures: usize, errors: usize, skipped: usize| {
        format!("<testsuites name=\"qtool\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\">")
    };
    for (arguments, code, tests, failures, errors) in [
        ("quantize model.safetensors --min-sqnr 33", 3, 7, 1, 0),
        ("quantize model.safetensors --min-sqnr 30 --max-abs 1", 0, 14, 0, 0),
        ("quantize model.safetensors --min-sqnr 30", 2, 1, 0, 1),
        ("compare model.safetensors model.int8.safetensors --min-sqnr 33", 3, 15, 1, 0),
        ("compare model.safetensors nowhere.safetensors --min-sqnr 33", 4, 1, 0, 1),
        ("verify model.int8.safetensors", 0, 1, 0, 0),
        ("verify nowhere.safetensors", 4, 1, 0, 1),
    ] {
        dir.run(format!("{arguments} --junit junit.xml").split_whitespace()).expect(code);
        assert!(junit().contains(&counts(tests, failures, errors, 0)), "{arguments}: {}", junit());
        assert_eq!(junit().matches("<testcase ").count(), tests, "{arguments}");
        assert_eq!(junit().matches("<failure ").count(), failures, "{arguments}");
    }
    // Of a run that wrote nothing, no earlier success is left either.
    dir.ok("quantize model.safetensors --min-sqnr 20 --dry-run --force --junit junit.xml");
    assert!(junit().contains(&counts(1, 0, 0, 1)) && junit().contains("dry run"), "{}", junit());
    let mut weights = dir.read("model.int8.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    dir.write("model.int8.safetensors", weights);
    dir.fails("verify model.int8.json --junit junit.xml", 3);
    assert!(junit().contains("<testcase classname=\"qtool.verify\" name=\"model.int8.safetensors\">"), "{}", junit());
    assert!(junit().contains("<failure type=\"not whole\" message=\"&quot;model.int8.safetensors&quot;: expected content"), "{}", junit());

    // Nothing else is replaced, and nothing is done before that is known.
    std::fs::create_dir(dir.path("sub")).unwrap();
    std::os::unix::fs::symlink(".", dir.path("link")).unwrap();
    dir.write("other.xml", "<testsuites name=\"other\"/>");
    let before = dir.names();
    for junit in ["other.xml", "model.safetensors", "nowhere/junit.xml"] {
        let code = if junit.starts_with("nowhere") { 4 } else { 2 };
        dir.fails(&format!("quantize model.safetensors -o new.safetensors --junit {junit}"), code);
        dir.fails(&format!("verify model.int8.safetensors --junit {junit}"), code);
    }
    for junit in ["new.safetensors", "new.json", "./new.json", "sub/../new.json", "link/new.safetensors"] {
        dir.fails(&format!("quantize model.safetensors -o new.safetensors --junit {junit}"), 2);
    }
    assert_eq!(dir.names(), before);
}

#[test]
fn a_mistake_leaves_no_earlier_success_for_ci_to_read() {
    let dir = crate::support::Workdir::with_fixture();
    dir.ok("quantize model.safetensors --min-sqnr 20 --junit checks.xml");
    assert!(String::from_utf8(dir.read("checks.xml")).unwrap().contains("failures=\"0\""));
    dir.fails("quantize model.safetensors --target tensorrt --junit checks.xml -o other.safetensors", 2);
    let text = String::from_utf8(dir.read("checks.xml")).unwrap();
    assert!(text.contains("errors=\"1\"") && text.contains("--target"), "{text}");
}
