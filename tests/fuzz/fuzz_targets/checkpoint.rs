//! Checkpoints and recipes drawn from the fuzzer's bytes: whole runs.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};
use qtool::Recipe;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{models, runs};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("checkpoint"));

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut u = Unstructured::new(data);
    let Ok(recipe) = models::recipe(&mut u) else { return Corpus::Reject };
    let is_directory = u.ratio(1, 4).unwrap_or(false);
    let Ok(model) = models::checkpoint(&mut u) else { return Corpus::Reject };
    let Ok(recipe) = serde_json::from_value::<Recipe>(recipe) else { panic!("a recipe that is none") };
    let path = match is_directory {
        true => {
            DIRECTORY.write("model/config.json", br#"{"model_type": "llama", "architectures": ["X"]}"#);
            DIRECTORY.write("model/model.safetensors", &model);
            DIRECTORY.path("model")
        }
        false => DIRECTORY.write("model.safetensors", &model),
    };
    let mut request = runs::request(&DIRECTORY, &path);
    request.recipe = recipe;
    if is_directory && u.arbitrary().unwrap_or(false) {
        request.form = qtool::outputs::OUTPUTS.iter().copied().find(|form| form.name() == "compressed-tensors");
    }
    runs::run(&DIRECTORY, request);
    Corpus::Keep
});
