//! Recipes as texts: what they mean, and where their mistakes are.

use super::presets::{PRESETS, Preset};
use super::*;
use crate::quant::scheme::{CodeType, Granularity};

fn parse(text: &str) -> Result<Recipe> {
    read::parse(Path::new("r.toml"), text, true)
}

#[test]
fn later_rules_win_field_by_field() {
    let recipe = parse(
        r#"
        [default]
        observer = "mse"
        [[rule]]
        match = "*"
        weights = "int4"
        granularity = "per-group:32"
        [[rule]]
        match = "head*"
        weights = "keep"
        "#,
    )
    .unwrap();
    let resolve = |name: &str| recipe.resolve(|rule| rule.pattern.as_ref().unwrap().matches(name));
    let body = resolve("body").settings;
    assert_eq!((body.weights, body.granularity, body.observer.name.as_str()), (CodeType::Int4, Granularity::PerGroup(32), "mse"));
    assert_eq!(resolve("head").decided_by.unwrap().weights, Some(Weights::Keep));
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let cases = [
        // Of TOML.
        ("[[rule]]\nmatch = \"*\"\nwieghts = \"int8\"", 3, 1, "did you mean `weights`"),
        ("\n  rules = []", 2, 3, "did you mean `rule`"),
        ("[default]\nweights = \"int7\"", 2, 11, "did you mean `int8`"),
        ("mode = \"statc\"", 1, 8, "did you mean `static`"),
        ("[default]\nobserver = \"mes\"", 2, 12, "did you mean \"mse\""),
        ("[default]\nrounding = \"gtpq\"", 2, 12, "did you mean \"gptq\""),
        ("[activations]\ndtype = \"uint8\"\nobserver = \"percentile:101\"", 3, 12, "101"),
        ("[[rule]]\nmatch = \"a\"\nweights = \"int8\"\n\n[[rule]]\nmatch = \"b\"\nobserver = \"guess\"", 7, 12, "guess"),
        ("[[rule]]\nmatch = \"re:(\"\nweights = \"int8\"", 2, 9, "re:("),
        ("[[rule]]\nweights = \"int8\"", 1, 1, "`match`, `op` or `shape`"),
        ("# é\n[[rule]]\nmatch = \"é*\"\nweights = \"keep\"\ngranularity = \"per-tensor\"", 5, 15, "keep"),
        ("[[rule]]\nmatch = \"*\"\nreason = \"why not\"", 1, 1, "changes something"),
        ("[[rule]]\nop = []\nweights = \"int8\"", 2, 6, "at least one operator"),
        ("[[rule]]\nshape = [\"many\"]\nweights = \"int8\"", 2, 9, ">=N"),
        ("[[rule]]\nop = 3\nweights = \"int8\"", 2, 6, "name of an operator"),
        ("include = [\"a\"]\nexclude = [\"b\", \"a\"]", 2, 11, "found \"a\" in both"),
        ("[[layer]]\naxis = 1", 1, 1, "neither"),
        ("[[layer]]\nop = \"com.example::Sum\"", 2, 6, "`input`"),
        ("[[layer]]\nmatch = \"*\"\ninput = 1", 3, 9, "`op`"),
        ("[[layer]]\ninput = 1\nop = \"Conv\"", 3, 6, "domain::Operator"),
        ("[[layer]]\nmatch = \"*\"\naxis = 1\ntransposed = true", 3, 8, "found both"),
        ("[default\nweights = 1", 1, 9, ""),
        // Of JSON.
        ("{\"rule\": [}", 1, 11, ""),
        ("{\n  \"rule\": [\n    {\"match\": \"é\", \"wieghts\": 1}]}", 3, 0, "did you mean `weights`"),
        ("{\"rule\": [{\"match\": \"*\", \"weights\": \"keep\",\n \"axis\": 1}]}", 2, 10, "keep"),
        ("{\"default\": {\"observer\": \"mes\"}}", 1, 26, "mse"),
        ("{\"format\": \"qtool-sidecar\",\n\"recipe\": {\n\"seed\": 1}}", 3, 0, "seed"),
        ("{\"format\": \"qtool-sidecar\"}", 1, 1, "without"),
    ];
    let mut wrong = Vec::new();
    for (text, line, column, part) in cases {
        let error = parse(text).expect_err(text).to_string();
        let place = match column {
            // Where serde_json stops reading is its own matter.
            0 => format!("r.toml: recipe: line {line}, column "),
            _ => format!("r.toml: recipe: line {line}, column {column}: "),
        };
        if !(error.starts_with(&place) && error.contains(part)) {
            wrong.push(format!("{text}\n→ {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn presets_are_recipes_that_say_what_they_are() {
    for preset in PRESETS {
        let (recipe, summary) = (preset.recipe(), preset.summary());
        assert!(summary.len() > 20 && preset.text.starts_with("# "), "{}: {summary:?}", preset.name);
        // Written in full and read again it is the same.
        for name in ["r.toml", "r.json"] {
            let text = recipe.to_text(Path::new(name)).unwrap();
            assert_eq!(serde_json::to_value(parse(&text).unwrap()).unwrap(), serde_json::to_value(&recipe).unwrap(), "{}", preset.name);
        }
        assert!(Recipe::named(Path::new(preset.name)).is_ok());
        assert_eq!(Preset::scheme(preset.name).is_ok(), preset.is_scheme);
    }
    let plain = serde_json::to_value(Recipe::default()).unwrap();
    assert_eq!(serde_json::to_value(Recipe::named(Path::new("int8")).unwrap()).unwrap(), plain);
    let unknown = Recipe::named(Path::new("w4a61")).unwrap_err();
    assert!(unknown.hint().unwrap().contains("w4a16") && unknown.exit_code() == 4, "{unknown}");
}

#[test]
fn observers_may_be_registered_after_a_recipe_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, "[default]\nobserver = \"half\"").unwrap();
    assert!(Recipe::read(&path).is_ok());
    assert!(Recipe::named(&path).unwrap_err().to_string().contains("half"));
}
