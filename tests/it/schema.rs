//! Sidecars are what `docs/sidecar.schema.json` says, and the schema says enough to refuse what is wrong.

use crate::support::{QTOOL, Workdir, finish};
use serde_json::{Value, json};
use std::fs;

fn validator() -> jsonschema::Validator {
    let text = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sidecar.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&text).unwrap();
    jsonschema::meta::validate(&schema).expect("the schema is one");
    jsonschema::validator_for(&schema).unwrap()
}

#[track_caller]
pub(crate) fn expect_valid(sidecar: &Value, what: &str) {
    let errors: Vec<String> = validator().iter_errors(sidecar).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}: {}", errors.join("\n"));
}

#[test]
fn sidecars_of_all_kinds_of_runs_are_valid() {
    let dir = Workdir::with_fixture();
    dir.write(
        "recipe.toml",
        "[[rule]]\nmatch = \"conv*\"\nweights = \"keep\"\n[[rule]]\nmatch = \"lstm*\"\naxis = -1\nobserver = \"min-max\"\n",
    );
    for options in [
        "",
        "--granularity per-tensor --weights uint8 --asymmetric --convention ort",
        "--granularity per-group:7 --weights int4",
        "--granularity per-group:64 --weights uint4 --asymmetric --convention ort",
        "--granularity per-group:64 --weights uint8 --convention ort --hash-source header",
        "--axis -1 --include conv* --exclude re:.*4.* --min-elements 5 --allow-non-finite --seed 7",
        "--recipe recipe.toml --convention compressed-tensors",
        "--if-changed --min-sqnr conv1=5",
    ] {
        dir.ok(&format!("quantize model.safetensors --force -o q.safetensors {options}"));
        expect_valid(&dir.json("q.json"), options);
    }
    dir.write(
        "observer.toml",
        r#"observer = [{ name = "fixed", command = ["echo", '{"min": -1, "max": 1}'], input = "safetensors", timeout = 2.5 }]"#,
    );
    dir.ok("quantize model.safetensors --force -o q.safetensors --recipe observer.toml --observer fixed --allow-commands");
    assert_eq!(dir.json("q.json")["recipe"]["observer"][0]["timeout"], 2.5);
    expect_valid(&dir.json("q.json"), "a command");
    for entry in qtool::observers::OBSERVERS {
        // Few of the many channels, or the slow ones would take their time.
        let options = format!("--observer {} --granularity per-tensor --include conv*", entry.name);
        dir.ok(&format!("quantize model.safetensors --force -o q.safetensors {options}"));
        expect_valid(&dir.json("q.json"), entry.name);
    }
    fs::create_dir(dir.path("m")).unwrap();
    fs::rename(dir.path("model.safetensors"), dir.path("m/model.safetensors")).unwrap();
    dir.write("m/sub/vocab.txt", "a");
    dir.ok("quantize m");
    expect_valid(&dir.json("m-int8/qtool.json"), "directory");
}

#[test]
fn sidecars_with_mistakes_are_not_valid() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors -o q.safetensors");
    let sidecar = dir.json("q.json");
    expect_valid(&sidecar, "the original");
    let validator = validator();
    let tensor = "/tensors/conv1.weight";
    let edits: &[(String, Value)] = &[
        ("/format".into(), json!("other")),
        ("/version".into(), json!(2)),
        ("/seed".into(), json!(-1)),
        ("/kept/conv1.bias".into(), json!(1)),
        ("/blake3".into(), json!("abc")),
        ("/output/files/0/blake3".into(), json!("abc")),
        ("/output/files/0/bytes".into(), json!(-5)),
        ("/output/files/0/name".into(), json!("/q.safetensors")),
        (format!("{tensor}/dtype"), json!("int7")),
        (format!("{tensor}/granularity"), json!("per_row")),
        (format!("{tensor}/scale"), json!("0.1")),
        (format!("{tensor}/shape"), json!([1.5])),
        (format!("{tensor}/scheme"), json!("lopsided")),
        (format!("{tensor}/error/mse"), json!(-1)),
        (format!("{tensor}/source_dtype"), json!(32)),
    ];
    for (pointer, value) in edits {
        let mut wrong = sidecar.clone();
        *wrong.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
        assert!(!validator.is_valid(&wrong), "{pointer} = {value} is accepted");
    }
    for pointer in ["", "/output", "/source", tensor, "/tensors/conv1.weight/error"] {
        let mut wrong = sidecar.clone();
        let object = wrong.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("surplus".into(), json!(1));
        assert!(!validator.is_valid(&wrong), "an unknown field in {pointer:?} is accepted");
    }
    // Who edits a sidecar leaves its own hash out.
    for key in sidecar.as_object().unwrap().keys().filter(|key| *key != "blake3") {
        let mut wrong = sidecar.clone();
        wrong.as_object_mut().unwrap().remove(key);
        assert!(!validator.is_valid(&wrong), "without {key} it is accepted");
    }
}

/// What is written is text that people can read and diff: sorted keys, a line for each.
#[test]
fn keys_are_sorted_and_numbers_round_trip() {
    let dir = Workdir::with_fixture();
    finish(dir.command(QTOOL).args(["quantize", "model.safetensors", "--asymmetric"])).expect(0);
    let text = String::from_utf8(dir.read("model.int8.json")).unwrap();
    assert!(text.ends_with("}\n") && text.lines().count() > 100, "{} lines", text.lines().count());
    let names = |indent: usize| {
        let prefix = format!("{}\"", " ".repeat(indent));
        text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split('"').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let top = names(2);
    assert!(top.is_sorted() && top.contains(&"tensors".to_owned()), "{top:?}");
    let sidecar = dir.json("model.int8.json");
    for record in sidecar["tensors"].as_object().unwrap().values() {
        for scale in record["scale"].as_array().unwrap() {
            let number = scale.as_f64().unwrap();
            let shortest: f64 = (number as f32).to_string().parse().unwrap();
            assert_eq!(number, shortest, "{scale} is not the shortest text of an f32");
        }
    }
}
