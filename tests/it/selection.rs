//! What is quantized and how: patterns, recipes, and what is printed about it.

use crate::support::model::{self, Tensor};
use crate::support::{Random, Workdir};
use serde_json::Value;

fn names(sidecar: &Value, key: &str) -> Vec<String> {
    sidecar[key].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn include_exclude_and_size_select_tensors() {
    let dir = Workdir::with_fixture();
    let all =
        ["conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "lstm_cell.weight_hh", "lstm_cell.weight_ih", "stft_conv.weight"];
    let cases: &[(&str, &[&str])] = &[
        ("", &all),
        ("--include conv?", &all[..4]),
        ("--include conv1.weight --include re:lstm.*_hh", &["conv1.weight", "lstm_cell.weight_hh"]),
        ("--exclude lstm* --exclude stft_conv", &all[..4]),
        ("--include conv* --exclude *3.weight", &["conv1.weight", "conv2.weight", "conv4.weight"]),
        // A tensor asked for by name may be small; a vector is no weight even so.
        ("--include final_conv.*", &["final_conv.weight"]),
        ("--min-elements 65536", &["lstm_cell.weight_hh", "lstm_cell.weight_ih", "stft_conv.weight"]),
        ("--min-elements 66049", &[]),
    ];
    for (options, expected) in cases {
        dir.ok(&format!("quantize model.safetensors --force --durability none {options}"));
        let sidecar = dir.json("model.int8.json");
        let found = names(&sidecar, "tensors");
        assert_eq!(&found, expected, "{options}");
        assert_eq!(found.len() + names(&sidecar, "kept").len(), 15, "{options}");
    }
}

#[test]
fn a_pattern_that_matches_nothing_or_is_none_is_wrong_usage() {
    let dir = Workdir::with_fixture();
    dir.write("rule.toml", "[[rule]]\nmatch = \"decoder.*\"\nweights = \"keep\"\n");
    for options in ["--include conv9*", "--exclude re:conv", "--include conv1.weight --exclude nothing", "--recipe rule.toml"] {
        let run = dir.fails(&format!("quantize model.safetensors {options}"), 2);
        assert!(run.stderr.contains("found none") && run.stderr.contains("hint: "), "{run}");
    }
    for options in
        ["--include re:(", "--exclude [", "--granularity per-group:0", "--weights int3", "--observer guess", "--convention numpy"]
    {
        let run = dir.run(format!("quantize model.safetensors {options}").split(' ')).expect(2);
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{run}");
    }
    let run = dir.fails("quantize model.safetensors --axis 3", 2);
    assert!(run.stderr.contains("axis"), "{run}");
    assert_eq!(dir.names(), ["model.safetensors", "rule.toml"]);
}

const TOML: &str = r#"
min_elements = 100
exclude = ["conv4"]
[default]
weights = "uint8"
symmetric = false
[[rule]]
match = "conv*"
granularity = "per-group:16"
weights = "int4"
[[rule]]
match = "re:conv[12].*"
convention = "ort"
symmetric = true
[[rule]]
match = "lstm_cell.weight_hh"
granularity = "per-channel"
axis = 1
[[rule]]
match = "stft_conv"
weights = "keep"
"#;

const JSON: &str = r#"{
  "min_elements": 100, "exclude": ["conv4"], "default": {"weights": "uint8", "symmetric": false},
  "rule": [
    {"match": "conv*", "granularity": "per-group:16", "weights": "int4"},
    {"match": "re:conv[12].*", "convention": "ort", "symmetric": true},
    {"match": "lstm_cell.weight_hh", "granularity": "per-channel", "axis": 1},
    {"match": "stft_conv", "weights": "keep"}
  ]
}"#;

#[test]
fn a_recipe_in_toml_in_json_and_from_a_sidecar_gives_the_same_bytes() {
    let dir = Workdir::with_fixture();
    dir.write("recipe.toml", TOML);
    dir.write("recipe.json", JSON);
    dir.ok("quantize model.safetensors -o a/m.safetensors --recipe recipe.toml".replace("a/m", "m").as_str());
    let first = (dir.read("m.safetensors"), dir.read("m.json"));
    let sidecar = dir.json("m.json");
    let tensors = &sidecar["tensors"];
    let field = |name: &str, key: &str| tensors[name][key].as_str().unwrap_or_else(|| panic!("{name} {key}")).to_owned();
    assert_eq!(
        field("conv1.weight", "dtype") + &field("conv1.weight", "convention") + &field("conv1.weight", "scheme"),
        "int4ortsymmetric"
    );
    assert_eq!(
        field("conv3.weight", "dtype") + &field("conv3.weight", "convention") + &field("conv3.weight", "scheme"),
        "int4torchasymmetric"
    );
    assert_eq!(tensors["conv3.weight"]["group_size"], 16);
    assert_eq!(tensors["lstm_cell.weight_hh"]["axis"], 1);
    assert_eq!(field("lstm_cell.weight_ih", "dtype"), "uint8");
    assert_eq!(field("final_conv.weight", "dtype"), "uint8");
    for name in ["stft_conv.weight", "conv4.weight"] {
        assert!(sidecar["kept"][name].is_string() && tensors[name].is_null(), "{name}");
    }
    dir.write("sidecar.json", &first.1);
    for recipe in ["recipe.json", "sidecar.json"] {
        dir.ok(&format!("quantize model.safetensors -o m.safetensors --force --recipe {recipe}"));
        assert!((dir.read("m.safetensors"), dir.read("m.json")) == first, "{recipe}");
    }
    // What the command line says goes before what the recipe says.
    dir.ok("quantize model.safetensors -o m.safetensors --force --recipe recipe.toml --convention ort");
    assert_eq!(dir.json("m.json")["tensors"]["lstm_cell.weight_ih"]["convention"], "ort");
}

#[test]
fn a_mistake_in_a_recipe_is_wrong_usage_and_named() {
    let dir = Workdir::with_fixture();
    let cases = [
        ("[[rule]]\nmatch = \"*\"\nwieghts = \"int8\"", "wieghts"),
        ("[default]\nweights = \"int7\"", "int7"),
        ("[default]\nobserver = \"guess\"", "guess"),
        ("[[rule]]\nweights = \"int8\"", "match"),
        ("[[rule]]\nmatch = \"re:(\"", "re:("),
        ("{\"rule\": [}", "recipe.toml"),
        ("{\"format\": \"qtool-sidecar\", \"recipe\": {\"seed\": 1}}", "seed"),
    ];
    for (text, named) in cases {
        dir.write("recipe.toml", text);
        let run = dir.fails("quantize model.safetensors --recipe recipe.toml", 2);
        assert!(run.stderr.contains(named), "{text}: {run}");
    }
    let run = dir.fails("quantize model.safetensors --recipe none.toml", 4);
    assert!(run.stderr.contains("none.toml"), "{run}");
}

#[test]
fn a_dry_run_tells_the_plan_and_writes_nothing() {
    let dir = Workdir::with_fixture();
    let text = dir.ok("quantize model.safetensors --dry-run").stdout;
    for part in ["conv1.weight", "final_conv.bias", "rank 1", "128 elements, fewer than 1024", "model.int8.safetensors"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let plan = dir.ok("quantize model.safetensors --dry-run --json").json();
    assert_eq!(dir.names(), ["model.safetensors"]);
    assert_eq!(plan["tensors"].as_array().unwrap().len(), 15);
    assert!(plan["total"].is_null(), "{plan}");
    let done = dir.ok("quantize model.safetensors --json").json();
    assert_eq!(done["bytes_after"], plan["bytes_after"]);
    assert_eq!(done["bytes_after"], dir.read("model.int8.safetensors").len());
    assert_eq!(done["bytes_before"], dir.read("model.safetensors").len());
    assert!(done["total"]["sqnr_db"].as_f64().unwrap() > 30.0, "{done}");
    // A plan meets the same obstacles as the run, but for an output that is only in the way.
    assert!(dir.ok("quantize model.safetensors --dry-run").stdout.contains("is there already: it takes --force"));
    dir.fails("quantize model.safetensors --dry-run -o nowhere/out.safetensors", 4);
}

#[test]
fn quiet_prints_nothing_and_only_a_terminal_gets_colours_and_bars() {
    let dir = Workdir::with_fixture();
    for arguments in [
        "quantize model.safetensors --quiet",
        "verify model.int8.json --quiet",
        "compare model.safetensors model.int8.safetensors --quiet",
        "inspect model.safetensors --quiet",
        "dequantize model.int8.safetensors --quiet",
    ] {
        let run = dir.ok(arguments);
        assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run}");
    }
    for arguments in ["quantize model.safetensors --force -v", "inspect model.safetensors", "verify model.int8.json"] {
        let run = dir.ok(arguments);
        assert!(!run.stdout.contains('\x1b') && run.stderr.is_empty(), "{run}");
    }
}

#[test]
fn compare_is_a_gate() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    dir.ok("compare model.safetensors model.int8.safetensors --min-sqnr 30 --max-mse 1");
    for (gate, what) in [("--min-sqnr 90", "7 of 15"), ("--max-mse 1e-12", "7 of 15")] {
        let run = dir.fails(&format!("compare model.safetensors model.int8.safetensors {gate}"), 3);
        assert!(run.stderr.contains(what), "{run}");
    }
    // Nothing is lost between a model and itself, so nothing fails.
    dir.ok("compare model.safetensors model.safetensors --min-sqnr 200 --max-mse 0");
    let mut random = Random(3);
    dir.write("other.safetensors", model::file(&[Tensor::weights("conv1.weight", &[128, 129, 3], &mut random)]));
    let run = dir.fails("compare model.safetensors other.safetensors", 1);
    assert!(run.stderr.contains("both models"), "{run}");
    let worst = dir.ok("compare model.safetensors model.int8.safetensors --json").json();
    let figures: Vec<f64> = worst["tensors"].as_array().unwrap().iter().filter_map(|tensor| tensor["sqnr_db"].as_f64()).collect();
    assert!(figures.len() == 7 && figures.is_sorted(), "{figures:?}");
}

#[test]
fn inspect_tells_names_types_ranges_and_the_plan() {
    let dir = Workdir::with_fixture();
    let text = dir.ok("inspect model.safetensors").stdout;
    for name in model::tensors(&dir.read("model.safetensors")).keys() {
        assert!(text.contains(name.as_str()), "{name}: {text}");
    }
    let found = dir.ok("inspect model.safetensors --json").json();
    for tensor in found["tensors"].as_array().unwrap() {
        let values = model::tensors(&dir.read("model.safetensors"))[tensor["name"].as_str().unwrap()].values();
        let (min, max) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (value.min(low), value.max(high)));
        let near = |key: &str, value: f64| (tensor[key].as_f64().unwrap() - value).abs() <= value.abs() * 1e-6;
        assert!(near("min", min) && near("max", max), "{tensor}: {min} {max}");
        let counted: u64 = tensor["histogram"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(counted, values.len() as u64, "{tensor}");
    }
    let headers = dir.ok("inspect model.safetensors --json --headers").json();
    assert!(headers["tensors"][0]["min"].is_null());
}
