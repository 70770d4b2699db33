//! ONNX models: <https://onnx.ai>.

mod check;
mod external;
mod operators;
mod order;
pub(crate) mod proto;
pub(crate) mod tensor;
pub(crate) mod wire;

use super::ReadOptions;
use super::mmap::MappedFile;
use crate::error::{Error, Result};
use crate::limits::raised_by;
use bytes::Bytes;
use proto::{Budget, Message, ModelProto};
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
    /// The model as it was read, where only values of its constants are to change.
    pub given: Option<Box<ModelProto>>,
}

/// Whether `bytes` look like a ModelProto: its first field is one of the message's, with the right wire type.
pub(crate) fn recognizes(bytes: &[u8]) -> bool {
    let Ok((tag, _)) = wire::read_varint(bytes) else { return false };
    matches!((tag >> 3, tag & 7), (1 | 5, 0) | (2..=4 | 6..=8 | 14 | 20 | 25, 2))
}

/// Reads and checks a model, and finds the values of its constants wherever they lie.
///
/// # Errors
///
/// [`Error::Malformed`] or [`Error::Tensor`] if it is not a valid model, [`Error::Limit`] if it exceeds one of `options`,
/// [`Error::Io`] if a file that it refers to cannot be read.
pub(crate) fn open(file: MappedFile, options: &ReadOptions) -> Result<OnnxFile> {
    let file = Arc::new(file);
    read(file.clone(), file.to_bytes(), options)
}

/// Reads a model once more, as its file has it, whatever was made of it since.
///
/// # Errors
///
/// As [`open`].
pub(crate) fn read_again(file: &OnnxFile, options: &ReadOptions) -> Result<OnnxFile> {
    let file = file.files.first().expect("the model's own file comes first");
    read(file.clone(), file.to_bytes(), options)
}

/// Reads a model from `bytes`, the content of `file`.
fn read(file: Arc<MappedFile>, bytes: Bytes, options: &ReadOptions) -> Result<OnnxFile> {
    let path = file.path().to_owned();
    let mut files = vec![file];
    let mut proto = parse(&path, bytes, options)?;
    let has_external_data = external::resolve(&mut proto, &mut files, options)?;
    check::check(&path, &proto, options)?;
    Ok(OnnxFile { path, proto, files, has_external_data, given: None })
}

fn parse(path: &Path, bytes: Bytes, options: &ReadOptions) -> Result<ModelProto> {
    let budget = Budget::new(options.max_graph_bytes, options.max_nesting);
    ModelProto::parse_within(bytes, &budget).map_err(|e| match budget.exceeded() {
        Some(found) => {
            let what = "bytes of memory for the graph, weights aside".into();
            raised_by(Error::Limit { file: path.to_owned(), what, limit: options.max_graph_bytes, found }, "graph-bytes")
        }
        None if budget.is_too_deep() => raised_by(Error::malformed(path, format!("ONNX: {e}")), "nesting"),
        None => Error::malformed(path, format!("ONNX: {e}")),
    })
}

/// Reads back a model that was just written: that it is a message, with its values in place.
///
/// # Errors
///
/// [`Error::Malformed`] if it is not.
pub(crate) fn check_written(file: MappedFile) -> Result<()> {
    let path = file.path().to_owned();
    let bytes = Arc::new(file).to_bytes();
    // It nests as deep as what was read with whatever bound, and little deeper.
    let budget = Budget::new(u64::MAX, 2 * crate::limits::DEEPEST);
    ModelProto::parse_within(bytes, &budget).map(drop).map_err(|e| Error::malformed(&path, format!("ONNX: {e}")))
}

#[cfg(test)]
mod tests;
