//! READ: model files, memory-mapped and checked before anything trusts them.
//!
//! The kind of a model is decided from its content, not from its name. A new format is a file with a function that
//! opens a [`Model`], its `mod` line and its entry in [`FORMATS`].

mod directory;
mod json;
pub(crate) mod mmap;
pub(crate) mod onnx;
mod safetensors;

use crate::error::{Error, Result};
use crate::graph::prepare::{PrepareOptions, prepare};
use crate::model::Model;
use mmap::MappedFile;
use std::path::Path;

pub(crate) use directory::{Companions, beside, contained, is_inside};
pub(crate) use json::{parse_object, shorten};

/// Bounds on what a file may ask of the reader, and how far it may lead it.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Longest safetensors header, in bytes. Default: 100,000,000, as the reference implementation.
    pub max_header_bytes: u64,
    /// Most dimensions of a tensor. Default: 64.
    pub max_rank: u64,
    /// Longest tensor name, in bytes. Default: 1 MiB.
    pub max_name_bytes: u64,
    /// Most elements of a tensor. Default: 2^40.
    pub max_elements: u64,
    /// Most shards of a model. Default: 100,000.
    pub max_shards: u64,
    /// Most nodes, and most initializers, of an ONNX model. Default: 1,000,000.
    pub max_nodes: u64,
    /// Deepest nesting of messages in ONNX files. Default: 100, as the reference implementation of protocol buffers.
    pub max_nesting: u64,
    /// Memory that an ONNX graph may take, weights aside, in bytes. Default: 1 GiB, ten times what large models need.
    pub max_graph_bytes: u64,
    /// Whether symbolic links may lead out of a model's directory. Default: no.
    pub follow_symlinks: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            max_header_bytes: 100_000_000,
            max_rank: 64,
            max_name_bytes: 1 << 20,
            max_elements: 1 << 40,
            max_shards: 100_000,
            max_nodes: 1_000_000,
            max_nesting: onnx::wire::MAX_DEPTH,
            max_graph_bytes: onnx::proto::MAX_GRAPH_BYTES,
            follow_symlinks: false,
        }
    }
}

/// One row of [`FORMATS`]: how files of a kind begin, and how they are opened.
pub struct FormatEntry {
    /// Name in messages.
    pub name: &'static str,
    /// File name extension that promises this format.
    pub extension: &'static str,
    recognizes: fn(&[u8]) -> bool,
    open: fn(MappedFile, &ReadOptions) -> Result<Model>,
}

/// Every format of single files. Directories are opened by their index.
pub const FORMATS: &[FormatEntry] = &[
    FormatEntry { name: "safetensors", extension: "safetensors", recognizes: safetensors::recognizes, open: safetensors::open_model },
    FormatEntry { name: "ONNX", extension: "onnx", recognizes: looks_like_onnx, open: open_onnx },
];

/// Other kinds of files begin with what could be a field of ONNX's, so those that are known come first.
fn looks_like_onnx(bytes: &[u8]) -> bool {
    onnx::recognizes(bytes) && !FOREIGN_MAGIC.iter().any(|(magic, ..)| bytes.starts_with(magic))
}

fn open_onnx(file: MappedFile, options: &ReadOptions) -> Result<Model> {
    let mut file = onnx::open(file, options)?;
    // Weights in Constant nodes are weights too.
    prepare(&mut file.proto, PrepareOptions { fold_constants: false, fold_affine: false });
    crate::graph::onnx_model::into_model(file, Vec::new())
}

/// Extensions of formats that other tools read, for messages about a name that disagrees with its content.
const FOREIGN_EXTENSIONS: &[&str] = &["gguf", "bin", "pt", "pth", "h5"];

/// Opens the model at `path`: a file of one of [`FORMATS`], or a directory that holds `model.safetensors` or
/// `model.safetensors.index.json`.
///
/// # Errors
///
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] or [`Error::Tensor`] if its content is not a valid model,
/// [`Error::Limit`] if it exceeds one of `options`, [`Error::Usage`] if a directory holds two models.
pub fn open(path: &Path, options: &ReadOptions) -> Result<Model> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if metadata.is_dir() {
        return directory::open(path, options).map(|model| model.following_links(options.follow_symlinks));
    }
    let file = MappedFile::open(path)?;
    let Some(format) = FORMATS.iter().find(|format| (format.recognizes)(file.bytes())) else {
        return Err(not_a_model(path, file.bytes()));
    };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let is_another_format = FORMATS.iter().any(|other| other.extension == extension && other.extension != format.extension);
    if is_another_format || FOREIGN_EXTENSIONS.contains(&extension) {
        return Err(Error::malformed(
            path,
            format!("content: expected what the extension .{extension} promises, found a {} file", format.name),
        )
        .with_hint(format!("rename the file to end in .{}", format.extension)));
    }
    (format.open)(file, options)
}

/// One safetensors file that was just written: with no bounds, as it is as large as what was read within whatever bounds.
pub(crate) fn read_written_safetensors(file: MappedFile) -> Result<(crate::model::SourceFile, Vec<crate::tensor::TensorInfo>)> {
    let none = u64::MAX;
    let options =
        ReadOptions { max_header_bytes: none, max_rank: none, max_name_bytes: none, max_elements: none, ..ReadOptions::default() };
    safetensors::read_file(file, &options)
}

/// One safetensors file of samples, statistics or recorded inputs, whose bounds are the default ones: no option raises them.
pub(crate) fn read_safetensors(file: MappedFile) -> Result<(crate::model::SourceFile, Vec<crate::tensor::TensorInfo>)> {
    safetensors::read_file(file, &ReadOptions::default()).map_err(crate::Error::without_hint)
}

/// What other kinds of files begin with.
const FOREIGN_MAGIC: &[(&[u8], &str, &str)] = &[
    (b"version https://git-lfs", "a git-lfs pointer instead of the file's content", "fetch the content with `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive, such as torch.save writes", "save the weights with safetensors.torch.save_file"),
    (b"\x80\x02", "a Python pickle", "save the weights with safetensors.torch.save_file"),
    (b"\x80\x03", "a Python pickle", "save the weights with safetensors.torch.save_file"),
    (b"\x80\x04", "a Python pickle", "save the weights with safetensors.torch.save_file"),
    (b"\x80\x05", "a Python pickle", "save the weights with safetensors.torch.save_file"),
    (b"\x1f\x8b", "a gzip archive", "decompress it first"),
    (b"GGUF", "a GGUF model", "quantize the original safetensors model instead"),
    (b"{", "JSON text", "to quantize a model in a directory, give the directory"),
    (b"\x89HDF", "an HDF5 file", "save the weights as safetensors"),
];

pub(crate) fn not_a_model(path: &Path, bytes: &[u8]) -> Error {
    if let Some((_, found, hint)) = FOREIGN_MAGIC.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return Error::malformed(path, format!("content: expected a safetensors file or an ONNX model, found {found}")).with_hint(*hint);
    }
    if path.extension().is_some_and(|extension| extension == "onnx") {
        let found = if bytes.is_empty() { "an empty file" } else { "something else" };
        return Error::malformed(path, format!("content: expected an ONNX model, found {found}"));
    }
    safetensors::describe_bad_start(path, bytes)
}
