//! Recipes in TOML and JSON: one that was read is written, in either form, and read again as the same.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::Recipe;
use qtool::plan::Plan;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, fixed, json, read_options};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("recipe");
    directory.write("model.safetensors", &fixed::checkpoint());
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match data[..size].trim_ascii_start().starts_with(b"{") {
        true => json::mutate(data, size, max_size, seed),
        false => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
});

/// All of a recipe, but for the lines that its rules were on.
fn content(recipe: &Recipe) -> String {
    let text = format!("{recipe:?}");
    let mut parts = text.split("Some(Place {");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once("})").map_or(part, |(_, rest)| rest))
}

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("recipe", data);
    if let Err(error) = Recipe::named(&path) {
        check_error(&error, true);
    }
    let recipe = match Recipe::read(&path) {
        Ok(recipe) => recipe,
        Err(error) => return check_error(&error, true),
    };
    let written = recipe.to_text("r.json".as_ref()).expect("a recipe can be written in JSON");
    for name in ["again.json", "again.toml"] {
        let text = match recipe.to_text(name.as_ref()) {
            Ok(text) => text,
            // TOML has integers of 64 bits with sign only.
            Err(error) => {
                assert!(name.ends_with("toml"), "{error}");
                check_error(&error, true);
                continue;
            }
        };
        let again = Recipe::read(&DIRECTORY.write(name, text.as_bytes())).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(content(&again), content(&recipe), "{name} gives another recipe:\n{text}");
        assert_eq!(again.to_text("r.json".as_ref()).expect("it was written before"), written, "{name} is written in another way:\n{text}");
    }
    let model = qtool::formats::open(&DIRECTORY.path("model.safetensors"), &read_options()).expect("the model is valid");
    if let Err(error) = Plan::new(&model, &recipe) {
        check_error(&error, true);
    }
});
