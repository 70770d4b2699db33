//! What layers cost, and budgets that decide which of them are spared.

use crate::onnx_quantize::small;
use crate::support::FIXTURE;

#[test]
fn layers_are_ranked_by_what_they_cost_alone() {
    let dir = small();
    for (mode, has_activations) in [("static", true), ("weight-only", false)] {
        let ranking = dir.ok(&format!("analyze model.onnx --samples samples --mode {mode} --json --threads 1")).json();
        assert_eq!(ranking, dir.ok(&format!("analyze model.onnx --samples samples --mode {mode} --json --threads 3")).json());
        let layers = ranking["layers"].as_array().unwrap();
        let db: Vec<f64> = layers.iter().map(|layer| layer["sqnr_db"].as_f64().unwrap()).collect();
        assert!(db.len() > 2 && db.is_sorted(), "{ranking}");
        // Noise adds up: everything costs more than the worst layer does alone, and a layer about as much as its parts.
        assert!(ranking["all_quantized_db"].as_f64().unwrap() < db[0] + 0.1, "{ranking}");
        for layer in layers {
            let noise = |what: &str| 10f64.powf(-layer[what].as_f64().unwrap() / 10.0);
            let of_activations = layer.get("activation_sqnr_db").map_or(0.0, |_| noise("activation_sqnr_db"));
            let parts = noise("weight_sqnr_db") + of_activations;
            assert!((noise("sqnr_db") / parts).log2().abs() < 2.0, "{layer}");
            assert!(has_activations || layer.get("activation_sqnr_db").is_none());
        }
        let said = dir.ok(&format!("analyze model.onnx --samples samples --mode {mode}")).stdout;
        assert!(said.contains(layers[0]["tensor"].as_str().unwrap()), "{said}");
    }
    assert_eq!(dir.names(), small().names());
    dir.fails("analyze model.onnx", 2);
    dir.write("model.safetensors", std::fs::read(FIXTURE).unwrap());
    dir.fails("analyze model.safetensors --samples samples", 1);
}

#[test]
fn the_recipe_that_was_found_makes_the_same_choice() {
    let dir = small();
    let text = |name: &str| String::from_utf8(dir.read(name)).unwrap();
    for name in ["found.toml", "found.json"] {
        let output = format!("{name}.onnx");
        dir.ok(&format!("quantize model.onnx --samples samples --min-sqnr 48 -o {output} --emit-recipe {name}"));
        assert!(text(name).contains("measured: "), "{}", text(name));
        dir.ok(&format!("quantize model.onnx --samples samples --recipe {name} -o again.onnx --force"));
        assert_eq!(dir.read("again.onnx"), dir.read(&output));
    }
    dir.write("in-the-way.toml", "");
    dir.fails("quantize model.onnx --samples samples -o other.onnx --emit-recipe in-the-way.toml", 2);
    dir.fails("quantize model.onnx --samples samples -o other.onnx --emit-recipe nowhere/found.toml", 4);
    assert!(!dir.exists("other.onnx"));
    dir.ok("quantize model.onnx --samples samples -o other.onnx --emit-recipe in-the-way.toml --force");
    assert!(text("in-the-way.toml").contains("[default]"));
}

#[test]
fn budgets_of_decisions_are_checked() {
    let dir = small();
    let report = dir.ok("quantize model.onnx --samples samples -o q.onnx --json --max-drop 0").json();
    assert_eq!(report["findings"]["decisions"], serde_json::json!({ "changed": 0.0, "max_changed": 0.0 }));
    for wrong in ["--max-drop 101", "--max-drop=-1", "--max-drop nan", "--min-sqnr nan", "--min-sqnr=-1", "--mode weight-only --max-drop 1"]
    {
        let wrong = format!("quantize model.onnx --samples samples -o w.onnx {wrong}");
        dir.run(wrong.split_whitespace()).expect(2);
    }
    assert!(!dir.exists("w.onnx"));
}
