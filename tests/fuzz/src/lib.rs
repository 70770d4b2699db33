//! What the fuzz targets share: files to hand to the library, mutators that keep the framing of a format intact, checks of what
//! every error must be.

pub mod choose;
pub mod files;
pub mod fixed;
pub mod framing;
pub mod json;
pub mod models;
pub mod npz;
pub mod protobuf;
pub mod runs;
pub mod samples;

use qtool::Error;
use qtool::calibration::samples::SampleLimits;
use qtool::formats::ReadOptions;

/// Bounds of the reader that fit the memory limit of the fuzzer.
pub fn read_options() -> ReadOptions {
    ReadOptions { max_header_bytes: 4 << 20, max_graph_bytes: 64 << 20, ..ReadOptions::default() }
}

/// Likewise for samples.
pub fn sample_limits() -> SampleLimits {
    SampleLimits { max_sample_bytes: 16 << 20, ..SampleLimits::default() }
}

/// Longest message, in bytes.
const LONGEST_MESSAGE: usize = 4000;

/// An error is one line without control characters, not too long, and of a kind that a bad file may cause: wrong usage only
/// where `usage` says so.
pub fn check_error(error: &Error, usage: bool) {
    let message = error.to_string();
    assert!(message.len() <= LONGEST_MESSAGE, "a message of {} bytes: {message:.200}", message.len());
    assert!(!message.chars().any(char::is_control), "control characters in {message:?}");
    let code = error.exit_code();
    let allowed = matches!(code, 1 | 4 | 6) || usage && code == 2;
    assert!(allowed, "exit code {code}: {message}");
    if let Error::Io { source, .. } = error {
        // What a file says may name others that are missing; nothing else is wrong with the files of a fuzz target.
        let kind = source.kind();
        use std::io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
        assert!(matches!(kind, NotFound | InvalidInput | InvalidFilename | NotADirectory), "{message}");
    }
}
