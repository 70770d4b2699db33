//! Recipes: presets, criteria of rules, layers of one's own, and mistakes that are named with their place.

use crate::onnx_quantize::{count, small};
use crate::support::model::{Tensor, file, tensors};
use crate::support::{QTOOL, Random, Workdir, finish};
use qtool::recipe::presets::{PRESETS, SCHEMA};
use serde_json::{Value, json};
use std::path::Path;

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// The block of a page that has this title.
fn block(page: &str, title: &str) -> String {
    let page = document(page);
    let (_, rest) = page.split_once(&format!("title=\"{title}\"\n")).unwrap_or_else(|| panic!("{title}"));
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn presets_are_listed_shown_checked_and_run() {
    let dir = Workdir::with_fixture();
    let list = dir.ok("recipe list --json").json();
    assert_eq!(list.as_array().unwrap().len(), PRESETS.len());
    let text = dir.ok("recipe list").stdout;
    for preset in PRESETS {
        assert!(text.contains(preset.name) && text.contains(preset.summary()), "{text}");
        let shown = dir.ok(&format!("recipe show {}", preset.name)).stdout;
        assert_eq!(shown, preset.text);
        dir.write("shown.toml", &shown);
        dir.write("full.json", dir.ok(&format!("recipe show {} --json", preset.name)).stdout);
        assert!(dir.ok("recipe check shown.toml model.safetensors").stdout.contains("0 rules"));
        let form = if preset.name.contains("static") || preset.name == "tensorrt" { "--mode weight-only" } else { "" };
        for recipe in [preset.name, "shown.toml", "full.json"] {
            dir.ok(&format!("quantize model.safetensors --recipe {recipe} {form} -o {recipe}.safetensors --force").replace("  ", " "));
        }
        let bytes = dir.read(format!("{}.safetensors", preset.name));
        assert!(bytes == dir.read("shown.toml.safetensors") && bytes == dir.read("full.json.safetensors"), "{}", preset.name);
    }
    let run = dir.fails("quantize model.safetensors --recipe w4a61", 4);
    assert!(run.stderr.contains("did you mean the preset \"w4a16\""), "{run}");
    assert_eq!(dir.ok("recipe schema").stdout, SCHEMA);
}

#[test]
fn presets_of_onnx_models_choose_types_of_activations() {
    let dir = small();
    for (preset, dtype, observer) in
        [("ort-static", "uint8", "min-max"), ("tensorrt", "int8", "entropy"), ("torch-qnnpack", "uint8", "histogram")]
    {
        dir.ok(&format!("quantize model.onnx --recipe {preset} --samples samples --min-sqnr 0 -o q.onnx --force"));
        let sidecar = dir.json("q.json");
        let activations = sidecar["activations"].as_object().unwrap();
        assert!(activations.len() > 3, "{preset}");
        for record in activations.values() {
            assert!(record["dtype"] == dtype && record["observer"].as_str().unwrap().starts_with(observer), "{preset}: {record}");
            assert!(preset != "tensorrt" || record["zero_point"] == 0, "{record}");
        }
        let is_per_tensor = sidecar["tensors"].as_object().unwrap().values().all(|record| record["granularity"] == "per_tensor");
        assert_eq!(is_per_tensor, preset == "torch-qnnpack");
    }
}

#[test]
fn rules_are_about_names_operators_and_shapes() {
    let dir = small();
    dir.write(
        "r.toml",
        "[[rule]]\nop = [\"Gemm\", \"MatMul\"]\nweights = \"keep\"\n[[rule]]\nop = \"Conv\"\nshape = [\"*\", 1, \"...\"]\nweights = \"keep\"\nreason = \"depthwise\"\n",
    );
    dir.ok("quantize model.onnx --mode weight-only --recipe r.toml");
    let sidecar = dir.json("model.int8.json");
    let kept = sidecar["kept"].as_object().unwrap();
    assert!(kept.values().any(|reason| reason.as_str().unwrap().contains("op Gemm or MatMul")), "{kept:?}");
    assert!(kept.values().any(|reason| reason == "depthwise"), "{kept:?}");
    let before = dir.read("model.int8.onnx");
    assert_eq!(count(&before, "DequantizeLinear"), 7 - 2 - 1);
    let checked = dir.ok("recipe check r.toml model.onnx --json").json();
    assert_eq!((&checked["rules"][0]["tensors"], &checked["rules"][1]["tensors"]), (&json!(2), &json!(1)), "{checked}");
    // The sidecar's recipe does the same again.
    dir.ok("quantize model.onnx --recipe model.int8.json -o again.onnx");
    assert!(dir.read("again.onnx") == before);
}

#[test]
fn rules_that_are_about_nothing_are_named_with_their_place() {
    let dir = small();
    let cases = [
        (
            "[[rule]]\nmatch = \"*\"\nweights = \"int8\"\n[[rule]]\nmatch = \"tail*\"\nweights = \"keep\"",
            "line 5, column 9: rule \"tail*\": expected",
        ),
        ("[[rule]]\nop = \"Cnov\"\nweights = \"keep\"", "line 2, column 6: op: expected one of"),
        ("[[rule]]\nop = [\"GRU\"]\nweights = \"keep\"", "line 2, column 6: rule op GRU: expected at least one tensor"),
        (
            "{\"rule\": [{\"shape\": [7, \"*\"],\n \"weights\": \"keep\"}]}",
            "line 1, column 21: rule shape [7, *]: expected at least one tensor",
        ),
        ("[[layer]]\nop = \"com.example::Sum\"\ninput = 1", "line 1, column 1: layer op com.example::Sum, input 1: expected at least one"),
        ("[[layer]]\nmatch = \"*\"", "line 1, column 1: layer: expected `op` and `input`"),
    ];
    for (text, part) in cases {
        dir.write("r.toml", text);
        for command in ["quantize model.onnx --recipe r.toml", "recipe check r.toml model.onnx"] {
            let run = dir.fails(command, 2);
            assert!(run.stderr.contains(&format!("r.toml: recipe: {part}")), "{text}: {run}");
        }
    }
    assert!(dir.names().iter().all(|name| !name.contains("int8")), "{:?}", dir.names());
    let dir = Workdir::with_fixture();
    dir.write("r.toml", "[[rule]]\nmatch = \"final_cnov\"\nweights = \"keep\"");
    let run = dir.fails("quantize model.safetensors --recipe r.toml", 2);
    assert!(run.stderr.contains("did you mean \"final_conv\"?"), "{run}");
    for (text, part) in [
        ("[[rule]]\nop = \"Conv\"\nweights = \"keep\"", "line 2, column 6: op: expected an ONNX model"),
        ("[[layer]]\nmatch = \"nothing\"", "layer \"nothing\": expected at least one tensor"),
        ("[[layer]]\nmatch = \"final_conv.bias\"", "found tensor \"final_conv.bias\" of 1 dimensions"),
        ("[[layer]]\nop = \"a::B\"\ninput = 1", "expected `match` only"),
    ] {
        dir.write("r.toml", text);
        let run = dir.fails("quantize model.safetensors --recipe r.toml", 2);
        assert!(run.stderr.contains(part), "{text}: {run}");
    }
}

#[test]
fn layers_of_ones_own_have_their_channels_where_they_say() {
    let mut random = Random(5);
    let shapes: [(&str, &[usize]); 3] = [("a.mixer.weight", &[6, 10]), ("a.expand.weight", &[3, 5, 2]), ("a.plain.weight", &[64, 32])];
    let weights: Vec<Tensor> = shapes.iter().map(|(name, shape)| Tensor::weights(name, shape, &mut random)).collect();
    let dir = Workdir::with_model(&file(&weights));
    dir.write("layers.toml", block("recipes.md", "layers.toml"));
    dir.ok("quantize model.safetensors --recipe layers.toml");
    let sidecar = dir.json("model.int8.json");
    let scales = |name: &str| sidecar["tensors"][name]["scale"].as_array().unwrap().len();
    assert_eq!((scales("a.mixer.weight"), scales("a.expand.weight"), scales("a.plain.weight")), (10, 5, 64));
    assert_eq!(sidecar["tensors"]["a.mixer.weight"]["axis"], 1);
    // Back to floats, each value is within half a step of its column's scale.
    dir.ok("dequantize model.int8.safetensors -o back.safetensors");
    let back = tensors(&dir.read("back.safetensors"))["a.mixer.weight"].values();
    for (i, (value, found)) in weights[0].values().iter().zip(&back).enumerate() {
        let scale = sidecar["tensors"]["a.mixer.weight"]["scale"][i % 10].as_f64().unwrap();
        assert!((value - found).abs() <= 0.5001 * scale, "{i}: {value} {found}");
    }
    dir.ok("quantize model.safetensors --recipe model.int8.json -o again.safetensors");
    assert!(dir.read("again.safetensors") == dir.read("model.int8.safetensors"));
    let run = dir.fails("quantize model.safetensors --recipe layers.toml --granularity per-group:2 --force", 2);
    assert!(run.stderr.contains("groups along the last axis"), "{run}");
}

#[test]
fn the_recipe_of_the_documentation_does_what_it_says() {
    let dir = Workdir::with_fixture();
    dir.write("recipe.toml", block("recipes.md", "recipe.toml"));
    dir.ok("recipe check recipe.toml model.safetensors");
    dir.ok("quantize model.safetensors --recipe recipe.toml");
    let sidecar = dir.json("model.int8.json");
    let tensors = &sidecar["tensors"];
    assert!(tensors["conv1.weight"]["dtype"] == "int4" && tensors["conv1.weight"]["scheme"] == "asymmetric");
    assert!(tensors["conv3.weight"]["group_size"] == 32 && tensors["conv3.weight"]["scheme"] == "symmetric");
    assert!(tensors["lstm_cell.weight_ih"]["convention"] == "ort" && tensors["conv3.weight"]["convention"] == "torch");
    assert!(sidecar["kept"]["final_conv.weight"].is_string());
}

#[test]
fn the_schema_of_recipes_is_that_of_the_sidecars_recipe_and_of_the_reader() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::meta::validate(&schema).expect("the schema is one");
    let sidecar: Value = serde_json::from_str(&document("sidecar.schema.json")).unwrap();
    // But for what a recorded recipe always has.
    let fields = |schema: &Value| {
        let mut fields = schema["properties"].clone();
        for table in ["default", "activations"] {
            fields[table].as_object_mut().unwrap().remove("required");
        }
        fields
    };
    assert_eq!(fields(&sidecar["$defs"]["recipe"]), fields(&schema));
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        assert_eq!(definition, &sidecar["$defs"][name], "{name}");
    }
    // Serde names the fields of every table.
    let dir = Workdir::with_fixture();
    for (table, path) in [
        ("{\"unknown\": 1}", ""),
        ("{\"default\": {\"unknown\": 1}}", "/properties/default"),
        ("{\"activations\": {\"unknown\": 1}}", "/properties/activations"),
        ("{\"rule\": [{\"unknown\": 1}]}", "/properties/rule/items"),
        ("{\"layer\": [{\"unknown\": 1}]}", "/properties/layer/items"),
        ("{\"fake_quantizer\": [{\"unknown\": 1}]}", "/properties/fake_quantizer/items"),
        ("{\"observer\": [{\"unknown\": 1}]}", "/properties/observer/items"),
    ] {
        dir.write("r.json", table);
        let run = dir.fails("recipe check r.json", 2);
        let mut known: Vec<&str> = run.stderr.split('`').skip(1).step_by(2).skip(1).collect();
        let mut in_schema: Vec<&str> =
            schema.pointer(path).unwrap()["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        known.sort_unstable();
        in_schema.sort_unstable();
        assert_eq!(known, in_schema, "{table}: {run}");
    }
    let validator = jsonschema::validator_for(&schema).unwrap();
    for preset in PRESETS {
        let full = serde_json::to_value(preset.recipe()).unwrap();
        assert!(validator.is_valid(&full), "{}", preset.name);
    }
    for (page, title) in [
        ("recipes.md", "recipe.toml"),
        ("recipes.md", "layers.toml"),
        ("recipes.md", "onnx-layers.toml"),
        ("custom-observers.md", "recipe.toml"),
    ] {
        dir.write("r.toml", block(page, title));
        let recipe = dir.ok("recipe show r.toml --json").json();
        let errors: Vec<String> = validator.iter_errors(&recipe).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{page} {title}: {}", errors.join("\n"));
    }
}

/// A pipe can be read once: what a target takes the place of is told all the same.
#[test]
fn a_recipe_may_come_through_a_pipe() {
    let dir = crate::onnx_quantize::small();
    dir.write("r.toml", "[default]\nconvention = \"torch\"\n");
    let command = "cat r.toml | exec \"$0\" quantize model.onnx --recipe /dev/stdin --target ort-cpu-avx2 -o q.onnx";
    let run = finish(dir.command("sh").args(["-c", command, QTOOL])).expect(0);
    assert!(run.stdout.contains("--target ort-cpu-avx2 takes the place of what the recipe says: default.convention"), "{run}");
}
