//! Sidecars beside the weights of an output: what one says is used only if the weights are as it says.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::outputs::document::Document;
use qtool::outputs::quantized::QuantizedModel;
use qtool::outputs::staging::Durability;
use qtool::pipeline::Destination;
use qtool::verify::verify;
use qtool::{Prepared, Recipe, Silent};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, fixed, json, read_options, runs};
use std::sync::LazyLock;

/// Weights in int8 per channel and in int4 per group, as the seeds describe them.
static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("sidecar");
    let model = directory.write("model.safetensors", &fixed::checkpoint());
    let mut request = runs::request(&directory, &model);
    let recipe = r#"{"min_elements": 0, "rule": [{"match": "a.weight", "weights": "int4", "granularity": "per-group:4"}]}"#;
    request.recipe = serde_json::from_str::<Recipe>(recipe).expect("a recipe");
    Prepared::new(request).and_then(|prepared| prepared.run(&Silent)).expect("the model can be quantized");
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { json::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("out.json", data);
    let document = match Document::parse(&path, data) {
        Ok(document) => document,
        Err(error) => return check_error(&error, false),
    };
    let written = document.to_json();
    let again = Document::parse(&path, &written).expect("a document that was written can be read");
    assert!(again.to_json() == written, "writing it again gives other text");
    // That alone would not notice what is lost the first time; the hash is of the text.
    let content = |document: Document| format!("{:?}", Document { blake3: None, ..document });
    assert_eq!(content(again), content(document), "what was written is not what was read");
    match verify(&path, &read_options(), &Silent) {
        Ok(found) => found.findings.iter().for_each(|line| assert!(line.len() < 4000 && !line.contains('\n'), "{line:?}")),
        Err(error) => check_error(&error, false),
    }
    let weights = DIRECTORY.path("out.safetensors");
    match QuantizedModel::open(&weights, &read_options()) {
        Err(error) => check_error(&error, false),
        Ok(_) => {
            let output = Some(DIRECTORY.path("float.safetensors"));
            let destination = Destination { output, force: true, durability: Durability::None, ..Destination::default() };
            if let Err(error) = qtool::dequantize::dequantize(&weights, &destination, &read_options(), 1, &Silent) {
                check_error(&error, false);
            }
        }
    }
});
