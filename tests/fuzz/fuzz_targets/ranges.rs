//! Tables of ranges, of ONNX Runtime and of TensorRT, beside a model of two products.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{fixed, json, runs};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("ranges");
    directory.write("model.onnx", &fixed::onnx());
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match data[..size].starts_with(b"TRT") {
        true => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
        false => json::mutate(data, size, max_size, seed),
    }
});

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("table", data);
    let mut request = runs::request(&DIRECTORY, &DIRECTORY.path("model.onnx"));
    request.calibration.ranges = Some(path);
    request.recipe.min_elements = 0;
    runs::run(&DIRECTORY, request);
});
