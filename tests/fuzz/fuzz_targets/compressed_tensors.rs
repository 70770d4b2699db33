//! Weights of checkpoints that others wrote in the form of compressed-tensors, beside the `config.json` that promises it: names, types and
//! dimensions of tensors tell what they are.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::Silent;
use qtool::outputs::quantized::QuantizedModel;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, fixed, framing, read_options, runs};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("compressed_tensors");
    directory.write("m/config.json", br#"{"quantization_config": {"quant_method": "compressed-tensors"}}"#);
    directory.write("float.safetensors", &fixed::checkpoint());
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { framing::mutate_safetensors(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    DIRECTORY.write("m/model.safetensors", data);
    let model = DIRECTORY.path("m");
    if let Err(error) = qtool::compare::compare(&DIRECTORY.path("float.safetensors"), &model, &read_options(), 1) {
        check_error(&error, true);
    }
    if let Err(error) = QuantizedModel::open(&model, &read_options()) {
        return check_error(&error, false);
    }
    let again = runs::destination(&DIRECTORY, "again");
    match qtool::dequantize::dequantize(&model, &again, &read_options(), 1, &Silent) {
        Ok(path) => drop(qtool::formats::open(&path, &read_options()).expect("a float model that was written can be read")),
        // Such as a checkpoint without codes.
        Err(error) => check_error(&error, true),
    }
    DIRECTORY.remove("again");
});
