//! Safetensors files: the header, and every value that it leads to.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool::formats;
use qtool::inspect::inspect;
use qtool_fuzz::files::Directory;
use qtool_fuzz::{check_error, framing, read_options};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("safetensors"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { framing::mutate_safetensors(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("model.safetensors", data);
    match formats::open(&path, &read_options()) {
        Err(error) => check_error(&error, false),
        Ok(model) => {
            // What was accepted covers the file, each byte once.
            let mut ends: Vec<(usize, usize)> =
                model.tensors().iter().map(|tensor| (tensor.info.bytes.start, tensor.info.bytes.end)).collect();
            ends.sort_unstable();
            let start = 8 + u64::from_le_bytes(data[..8].try_into().expect("8 bytes")) as usize;
            let end = ends.iter().fold(start, |at, (start, end)| {
                assert_eq!(at, *start, "a hole or an overlap");
                *end
            });
            assert_eq!(end, data.len(), "bytes after the last tensor");
            for (number, tensor) in model.tensors().iter().enumerate() {
                let bits = tensor.info.shape.iter().map(|dim| *dim as u64).product::<u64>() * tensor.info.dtype.bits();
                assert_eq!(model.tensor_bytes(number).len() as u64 * 8, bits, "{:?}", tensor.info);
            }
            inspect(&path, &read_options(), true, 1).expect("what can be opened can be inspected");
        }
    }
});
