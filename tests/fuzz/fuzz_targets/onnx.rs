//! ONNX models: reading, all checks, and what is found of weights.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::formats;
use qtool::inspect::inspect;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, protobuf, read_options};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new("onnx");
    directory.write("weights.bin", &[0x3c; 4096]);
    directory
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { protobuf::mutate(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("model.onnx", data);
    match formats::open(&path, &read_options()) {
        Err(error) => check_error(&error, false),
        Ok(model) => {
            for number in 0..model.tensors().len() {
                let info = &model.tensors()[number].info;
                let bits = info.shape.iter().map(|dim| *dim as u64).product::<u64>() * info.dtype.bits();
                assert_eq!(model.tensor_bytes(number).len() as u64, bits.div_ceil(8), "{info:?}");
            }
            inspect(&path, &read_options(), true, 1).expect("what can be opened can be inspected");
        }
    }
});
