//! `config.json` of checkpoints: in the form of compressed-tensors, beside weights in that form, and of float models that are
//! to be put into it.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::outputs::quantized::QuantizedModel;
use qtool::{Prepared, Silent};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, fixed, json, read_options, runs};
use std::sync::LazyLock;

/// `packed/` has `a` in four bits by groups of 4 and `b` in eight bits by channel; `float/` is the float model.
static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("compressed_config");
    directory.write("float/model.safetensors", &fixed::checkpoint());
    directory.write("float/config.json", b"{}");
    let mut request = runs::request(&directory, &directory.path("float"));
    let rules = r#"{"mode": "weight-only", "min_elements": 0,
        "rule": [{"match": "a.weight", "weights": "int4", "granularity": "per-group:4"}]}"#;
    request.recipe = serde_json::from_str(rules).expect("a recipe");
    request.form = qtool::outputs::OUTPUTS.iter().copied().find(|form| form.name() == "compressed-tensors");
    request.destination.output = Some(directory.path("packed"));
    Prepared::new(request).and_then(|prepared| prepared.run(&Silent)).expect("the model can be quantized");
    directory.remove("packed/qtool.json");
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { json::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    DIRECTORY.write("packed/config.json", data);
    match QuantizedModel::open(&DIRECTORY.path("packed"), &read_options()) {
        Err(error) => check_error(&error, false),
        Ok(quantized) => {
            let destination = runs::destination(&DIRECTORY, "float-again");
            drop(quantized);
            match qtool::dequantize::dequantize(&DIRECTORY.path("packed"), &destination, &read_options(), 1, &Silent) {
                Ok(path) => drop(qtool::formats::open(&path, &read_options()).expect("a float model that was written can be read")),
                Err(error) => check_error(&error, true),
            }
            DIRECTORY.remove("float-again");
        }
    }
    DIRECTORY.write("float/config.json", data);
    let mut request = runs::request(&DIRECTORY, &DIRECTORY.path("float"));
    request.form = qtool::outputs::OUTPUTS.iter().copied().find(|form| form.name() == "compressed-tensors");
    request.recipe.min_elements = 0;
    runs::run(&DIRECTORY, request);
});
