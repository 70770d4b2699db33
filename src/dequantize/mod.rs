//! Back to float: the model that a quantized one stands for.
//!
//! What is at the path decides how: `safetensors` reads codes with their sidecar, `onnx` needs no sidecar.

mod onnx;
mod safetensors;

use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::outputs::document::Document;
use crate::outputs::target::Destination;
use crate::stream::Progress;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What is appended to the name of an output unless it is given one.
const TAG: &str = "float";

/// Writes the float model that `quantized` stands for; returns where.
///
/// # Errors
///
/// As [`QuantizedModel::open`](crate::outputs::quantized::QuantizedModel::open) and [`formats::open`];
/// [`crate::Error::Malformed`] if an ONNX model has nothing quantized or a quantized operator that is not known;
/// [`crate::Error::Usage`] if the output exists; [`crate::Error::Io`] if it cannot be written.
pub fn dequantize(
    quantized: &Path,
    destination: &Destination,
    read: &ReadOptions,
    threads: usize,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let path = onnx_of_sidecar(quantized).unwrap_or_else(|| quantized.to_owned());
    if path.is_file() && !Document::recognizes(&path) {
        match formats::open(&path, read) {
            Ok(model) if model.onnx().is_some() => return onnx::dequantize(&model, destination, threads, progress),
            Err(error) if path.extension() == Some(OsStr::new("onnx")) => return Err(error),
            _ => {}
        }
    }
    safetensors::dequantize(quantized, destination, read, threads, progress)
}

/// The ONNX model that a sidecar is about, if it is about one: the last of its files, beside it.
fn onnx_of_sidecar(path: &Path) -> Option<PathBuf> {
    if !path.is_file() || !Document::recognizes(path) {
        return None;
    }
    let document = Document::read(path).ok().filter(|document| document.output.form != "sidecar")?;
    let name = Path::new(&document.output.files.last()?.name).file_name()?;
    Some(path.with_file_name(name))
}
