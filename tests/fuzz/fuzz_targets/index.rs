//! Indexes of sharded checkpoints, beside two shards that are whole.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::formats;
use qtool_fuzz::files::Directory;
use qtool_fuzz::framing::join_safetensors;
use qtool_fuzz::{check_error, json, read_options};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("index");
    let shard = |name: &str| {
        join_safetensors(format!(r#"{{"{name}":{{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}}}"#).as_bytes(), &[0; 16])
    };
    directory.write("model/a.safetensors", &shard("w"));
    directory.write("model/b.safetensors", &shard("v"));
    directory.write("outside.safetensors", &shard("v"));
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { json::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    DIRECTORY.write("model/model.safetensors.index.json", data);
    match formats::open(&DIRECTORY.path("model"), &read_options()) {
        Err(error) => check_error(&error, false),
        Ok(model) => {
            let mut names: Vec<&str> = model.tensors().iter().map(|tensor| tensor.info.name.as_str()).collect();
            names.sort_unstable();
            assert!(matches!(names[..], ["w"] | ["v"] | ["v", "w"]), "{names:?}");
            let inside = DIRECTORY.path("model");
            assert!(model.files().iter().all(|file| file.path().starts_with(&inside)), "a file from elsewhere");
        }
    }
});
