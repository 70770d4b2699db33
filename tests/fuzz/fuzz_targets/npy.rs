//! `.npy` files as samples.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use qtool_fuzz::files::Directory;
use qtool_fuzz::{framing, samples};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("npy"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { framing::mutate_npy(data, size, max_size, seed) });

fuzz_target!(|data: &[u8]| {
    let path = DIRECTORY.write("sample.npy", data);
    samples::load_all(&path, &["x"]);
});
