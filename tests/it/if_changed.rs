//! `quantize --if-changed`: nothing is done twice, and nothing that changed goes unnoticed.

use crate::onnx_quantize::small;
use crate::support::model::{self, Tensor};
use crate::support::{Random, Workdir};
use std::fs;
use std::time::{Duration, SystemTime};

/// Runs `quantize ARGUMENTS --if-changed`, which is to do the work for this reason.
#[track_caller]
fn runs(dir: &Workdir, arguments: &str, reason: &str) {
    let run = dir.ok(&format!("quantize {arguments} --if-changed"));
    assert!(run.stdout.contains(&format!("note: --if-changed: {reason}")) && run.stdout.contains("wrote "), "{reason}: {run}");
    skips(dir, arguments);
}

/// The same, which is to do nothing.
#[track_caller]
fn skips(dir: &Workdir, arguments: &str) {
    let before = state(dir);
    let run = dir.ok(&format!("quantize {arguments} --if-changed"));
    assert!(run.stdout.starts_with("unchanged: "), "{run}");
    let run = dir.ok(&format!("quantize {arguments} --if-changed --json"));
    assert_eq!(run.json()["unchanged"], true, "{run}");
    assert!(dir.ok(&format!("quantize {arguments} --if-changed --quiet")).stdout.is_empty());
    assert_eq!(state(dir), before);
}

/// Every name with the time of its last change and its content.
fn state(dir: &Workdir) -> Vec<(String, SystemTime, Vec<u8>)> {
    let state = |name: String| {
        let path = dir.path(&name);
        let content = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        (name, path.metadata().unwrap().modified().unwrap(), content)
    };
    dir.names().into_iter().map(state).collect()
}

/// Changes the last byte of a file, and neither its size nor its time.
fn flip_last_byte(dir: &Workdir, name: &str) {
    let path = dir.path(name);
    let time = path.metadata().unwrap().modified().unwrap();
    let mut content = dir.read(name);
    *content.last_mut().unwrap() ^= 1;
    dir.write(name, content);
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_run_is_left_out_until_something_changes() {
    let dir = Workdir::with_fixture();
    runs(&dir, "model.safetensors", "there is no output yet");
    let first = (dir.read("model.int8.safetensors"), dir.read("model.int8.json"));

    // Neither time nor place of the model matter, nor how many threads work or how much is said.
    let later = SystemTime::now() + Duration::from_secs(100);
    fs::File::options().write(true).open(dir.path("model.safetensors")).unwrap().set_modified(later).unwrap();
    skips(&dir, "model.safetensors");
    skips(&dir, "model.safetensors --threads 1 --durability none --verbose");
    dir.write("sub/here", "");
    fs::copy(dir.path("model.safetensors"), dir.path("sub/model.safetensors")).unwrap();
    skips(&dir, "sub/model.safetensors -o model.int8.safetensors");

    flip_last_byte(&dir, "model.safetensors");
    runs(&dir, "model.safetensors", "the model changed");
    flip_last_byte(&dir, "model.safetensors");
    runs(&dir, "model.safetensors", "the model changed");
    assert!((dir.read("model.int8.safetensors"), dir.read("model.int8.json")) == first);

    for option in
        ["--observer mse", "--asymmetric", "--exclude conv1*", "--min-elements 5", "--seed 1", "--min-sqnr 20", "--max-memory 1GiB"]
    {
        runs(&dir, &format!("model.safetensors {option}"), "the recipe or an option changed");
    }
    runs(&dir, "model.safetensors", "the recipe or an option changed");

    flip_last_byte(&dir, "model.int8.safetensors");
    runs(&dir, "model.safetensors", "the output is not whole");
    fs::remove_file(dir.path("model.int8.safetensors")).unwrap();
    runs(&dir, "model.safetensors", "the output is not whole");
    assert!((dir.read("model.int8.safetensors"), dir.read("model.int8.json")) == first);
    fs::remove_file(dir.path("model.int8.safetensors")).unwrap();
    fs::remove_file(dir.path("model.int8.json")).unwrap();
    runs(&dir, "model.safetensors", "there is no output yet");

    let mut document = dir.json("model.int8.json");
    document["qtool_version"] = "0.0.9".into();
    dir.write("model.int8.json", document.to_string());
    runs(&dir, "model.safetensors", "the output is of qtool 0.0.9");
    assert!((dir.read("model.int8.safetensors"), dir.read("model.int8.json")) == first);
}

#[test]
fn the_content_of_a_recipe_counts_and_not_its_name() {
    let dir = Workdir::with_fixture();
    dir.write("a.toml", "[default]\nobserver = \"mse\"\n");
    runs(&dir, "model.safetensors --recipe a.toml", "there is no output yet");
    dir.write("b.toml", "# the same\n[default]\nobserver = \"mse\"\n");
    skips(&dir, "model.safetensors --recipe b.toml");
    skips(&dir, "model.safetensors --observer mse");
    dir.write("a.toml", "[default]\nobserver = \"mse\"\n[[rule]]\nmatch = \"conv1*\"\nweights = \"keep\"\n");
    runs(&dir, "model.safetensors --recipe a.toml", "the recipe or an option changed");
}

#[test]
fn samples_statistics_and_ranges_count_by_content() {
    let dir = small();
    let quantize = "model.onnx --samples samples";
    runs(&dir, quantize, "there is no output yet");
    let before = dir.read("model.int8.onnx");
    runs(&dir, "model.onnx --samples samples --samples-limit 5", "the recipe or an option changed");
    runs(&dir, quantize, "the recipe or an option changed");
    runs(&dir, "model.onnx", "the samples changed");
    runs(&dir, quantize, "the samples changed");
    fs::rename(dir.path("samples"), dir.path("moved")).unwrap();
    skips(&dir, "model.onnx --samples moved");
    fs::rename(dir.path("moved"), dir.path("samples")).unwrap();

    let last = dir.read("samples/5.npz");
    dir.write("samples/5.npz", dir.read("samples/4.npz"));
    runs(&dir, quantize, "the samples changed");
    fs::remove_file(dir.path("samples/5.npz")).unwrap();
    runs(&dir, quantize, "the samples changed");
    dir.write("samples/5.npz", last);
    runs(&dir, quantize, "the samples changed");
    assert_eq!(dir.read("model.int8.onnx"), before);

    dir.ok("calibrate model.onnx --samples samples -o a.stats");
    dir.ok("calibrate model.onnx --samples samples --samples-limit 4 -o b.stats");
    runs(&dir, "model.onnx --stats a.stats", "the samples changed");
    runs(&dir, "model.onnx --stats b.stats", "the statistics changed");
    let ranges = "model.onnx --samples samples --ranges table.json";
    dir.write("table.json", "{\"relu1\": [0.0, 2.0]}");
    runs(&dir, ranges, "the samples changed");
    dir.write("table.json", "{\"relu1\": [0.0, 3.0]}");
    runs(&dir, ranges, "the file of ranges changed");
}

#[test]
fn files_that_go_with_a_model_count_too() {
    let mut random = Random(3);
    let dir = Workdir::new();
    dir.write("m/model.safetensors", model::file(&[Tensor::weights("a.weight", &[40, 32], &mut random)]));
    dir.write("m/config.json", "{}");
    runs(&dir, "m -o q", "there is no output yet");
    dir.write("m/config.json", "{ }");
    runs(&dir, "m -o q", "a file that goes with the model changed");
    assert_eq!(dir.read("q/config.json"), b"{ }");
    dir.write("m/tokenizer.json", "{}");
    runs(&dir, "m -o q", "a file that goes with the model changed");
    dir.write("q/tokenizer.json", "[]");
    runs(&dir, "m -o q", "the output is not whole");
    fs::remove_file(dir.path("q/tokenizer.json")).unwrap();
    runs(&dir, "m -o q", "the output is not whole");
    // What is no output of ours is not replaced.
    fs::remove_file(dir.path("q/qtool.json")).unwrap();
    dir.fails("quantize m -o q --if-changed", 2);
}

#[test]
fn only_what_the_sidecar_knows_is_replaced() {
    let dir = Workdir::with_fixture();
    dir.write("model.int8.safetensors", "mine");
    dir.fails("quantize model.safetensors --if-changed", 2);
    dir.ok("quantize model.safetensors -o q.safetensors --if-changed");
    dir.write("model.int8.json", dir.read("q.json"));
    dir.fails("quantize model.safetensors --if-changed", 2);
    assert_eq!(dir.read("model.int8.safetensors"), b"mine");
    // A run without the option says nothing of what was asked for.
    dir.ok("quantize model.safetensors -o q.safetensors --force");
    assert!(dir.json("q.json").get("request").is_none());
    runs(&dir, "model.safetensors -o q.safetensors", "the output was written without --if-changed");
    for with in ["--dry-run", "--in-place"] {
        dir.run(format!("quantize model.safetensors --if-changed {with}").split_whitespace()).expect(2);
    }
}

#[test]
fn a_header_is_believed_only_if_that_was_asked_for() {
    let dir = Workdir::with_fixture();
    let by_header = "model.safetensors --hash-source header";
    dir.ok(&format!("quantize {by_header} --if-changed"));
    assert!(dir.json("model.int8.json")["source"]["files"][0].get("blake3").is_none());
    flip_last_byte(&dir, "model.safetensors");
    let run = dir.ok(&format!("quantize {by_header} --if-changed"));
    assert!(run.stdout.starts_with("unchanged: ") && run.stdout.contains("only the header"), "{run}");
    assert_eq!(dir.ok(&format!("quantize {by_header} --if-changed --json")).json()["source"], "header");
    runs(&dir, "model.safetensors", "the sidecar has only the hash of the model's header");
    assert!(dir.json("model.int8.json")["source"]["files"][0].get("blake3").is_some());
}

#[test]
fn what_is_written_besides_must_be_there() {
    let dir = Workdir::with_fixture();
    let quantize = "model.safetensors --report r.html --emit-recipe r.toml";
    runs(&dir, quantize, "there is no output yet");
    fs::remove_file(dir.path("r.html")).unwrap();
    dir.fails(&format!("quantize {quantize} --if-changed"), 2);
    fs::remove_file(dir.path("r.toml")).unwrap();
    runs(&dir, quantize, "r.toml is not there");
}

#[test]
fn a_failed_gate_is_not_forgotten() {
    let dir = Workdir::with_fixture();
    runs(&dir, "model.safetensors", "there is no output yet");
    let old = state(&dir);
    for _ in 0..2 {
        dir.fails("quantize model.safetensors --if-changed --min-sqnr 33", 3);
        assert_eq!(state(&dir), old);
    }
    runs(&dir, "model.safetensors --min-sqnr 31", "the recipe or an option changed");
    dir.ok("quantize model.safetensors --min-sqnr 31 --if-changed --junit junit.xml");
    let junit = String::from_utf8(dir.read("junit.xml")).unwrap();
    assert!(junit.contains("tests=\"1\" failures=\"0\" errors=\"0\" skipped=\"1\"") && junit.contains("<skipped message="), "{junit}");
}

#[test]
fn commands_may_answer_otherwise_every_time() {
    let dir = Workdir::with_fixture();
    let recipe = "[default]\nobserver = \"mine\"\n[[observer]]\nname = \"mine\"\ncommand = [\"sh\", \"-c\", \"cat >/dev/null; echo '{\\\"min\\\": -1, \\\"max\\\": 1}'\"]\n";
    dir.write("r.toml", recipe);
    for reason in ["there is no output yet", "the recipe has observers of its own", "the recipe has observers of its own"] {
        let run = dir.ok("quantize model.safetensors --recipe r.toml --allow-commands --if-changed");
        assert!(run.stdout.contains(reason) && run.stdout.contains("wrote "), "{run}");
    }
}

#[test]
fn an_output_that_was_not_checked_is_not_one_that_passed() {
    let dir = crate::onnx_quantize::small();
    runs(&dir, "model.onnx --samples samples --no-lint", "there is no output yet");
    runs(&dir, "model.onnx --samples samples", "the recipe or an option changed");
    assert!(dir.ok("quantize model.onnx --samples samples --if-changed").stdout.starts_with("unchanged: "));
}
