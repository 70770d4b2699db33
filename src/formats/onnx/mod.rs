//! ONNX models: <https://onnx.ai>.

pub(crate) mod proto;
pub(crate) mod tensor;
pub(crate) mod wire;

use super::ReadOptions;
use super::mmap::MappedFile;
use crate::error::{Error, Result};
use proto::{Message, ModelProto};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An ONNX model as it was read: checked, with all values of constants at hand.
pub(crate) struct OnnxFile {
    pub path: PathBuf,
    /// The model. Values that lie in other files are in `raw_data` like all others.
    pub proto: ModelProto,
    /// The model's file and those that its constants lie in.
    pub files: Vec<Arc<MappedFile>>,
    /// Whether constants lie in other files.
    pub has_external_data: bool,
}

/// Whether `bytes` look like a ModelProto: its first field is one of the message's, with the right wire type.
pub(crate) fn recognizes(bytes: &[u8]) -> bool {
    let Ok((tag, _)) = wire::read_varint(bytes) else { return false };
    matches!((tag >> 3, tag & 7), (1 | 5, 0) | (2..=4 | 6..=8 | 14 | 20 | 25, 2))
}

/// Reads and checks a model.
///
/// # Errors
///
/// [`Error::Malformed`] or [`Error::Tensor`] if it is not a valid model.
pub(crate) fn open(file: MappedFile, _options: &ReadOptions) -> Result<OnnxFile> {
    let path: &Path = &file.path().to_owned();
    let file = Arc::new(file);
    let proto = ModelProto::parse(file.to_bytes()).map_err(|e| Error::malformed(path, format!("ONNX: {e}")))?;
    Ok(OnnxFile { path: path.to_owned(), proto, files: vec![file], has_external_data: false })
}
