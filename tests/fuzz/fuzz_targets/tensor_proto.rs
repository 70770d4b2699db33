//! TensorProto files of ONNX as samples.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{protobuf, samples};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("tensor_proto"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { protobuf::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("input_0.pb", data);
    samples::load_all(&path, &["x"]);
});
