//! The safetensors files of an output, one for each of the model's, and the index of a sharded model.

use super::container::{self, Container, Entry, Order};
use super::{Content, FileKind, FileLayout};
use crate::error::{Error, Result};
use crate::model::{Layout, Model, SourceFile};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Metadata that says who can load the tensors: PyTorch's and transformers' loaders ask for it.
const FORMAT: (&str, &str) = ("format", "pt");

/// Files under construction.
pub(crate) struct WeightFiles<'m> {
    model: &'m Model,
    files: Vec<FileLayout>,
    /// The file of each tensor.
    weight_map: Map<String, Value>,
    /// Bytes of all tensors.
    total_size: u64,
}

impl<'m> WeightFiles<'m> {
    /// Of an output made from `model`; none yet.
    pub(crate) fn new(model: &'m Model) -> Self {
        WeightFiles { model, files: Vec::with_capacity(model.files().len()), weight_map: Map::new(), total_size: 0 }
    }

    /// Adds the file that takes the place of `source`, with the content of each entry.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if an entry has the name of another.
    pub(crate) fn add(
        &mut self,
        source: &SourceFile,
        metadata: &[(String, String)],
        entries: &[Entry],
        contents: Vec<Content>,
        order: Order,
    ) -> Result<()> {
        self.add_laid_out(source, entries, contents, container::lay_out(entries, metadata, order))
    }

    /// As [`WeightFiles::add`], where header and places are known.
    pub(crate) fn add_laid_out(
        &mut self,
        source: &SourceFile,
        entries: &[Entry],
        contents: Vec<Content>,
        container: Container,
    ) -> Result<()> {
        for entry in entries {
            if self.weight_map.insert(entry.name.clone(), json!(source.name())).is_some() {
                let message = "name: expected to be free for what is written besides the weights, found it in the model already";
                let error = Error::tensor(source.path(), &entry.name, message);
                return Err(
                    error.with_hint("if the model is quantized already there is nothing to do; else --exclude the tensor it belongs to")
                );
            }
            self.total_size += entry.len();
        }
        let mut contents: Vec<(Content, Range<u64>)> = contents.into_iter().zip(container.places).collect();
        contents.sort_by_key(|(_, place)| (place.start, place.end));
        let name = source.name().into_owned();
        self.files.push(FileLayout { name, header: container.header, contents, len: container.len, kind: FileKind::Safetensors });
        Ok(())
    }

    /// The files, and name and text of the index if the model has one.
    pub(crate) fn finish(self) -> (Vec<FileLayout>, Option<(String, Vec<u8>)>) {
        let Layout::Directory { index: Some(name) } = self.model.layout() else { return (self.files, None) };
        let index = json!({"metadata": {"total_size": self.total_size}, "weight_map": self.weight_map});
        let text = serde_json::to_string_pretty(&index).expect("a JSON value can be written") + "\n";
        (self.files, Some((name.to_owned(), text.into_bytes())))
    }
}

/// The metadata of a file, with the mark of PyTorch's layout if it has no other.
pub(crate) fn marked_metadata(source: &SourceFile) -> Vec<(String, String)> {
    let mut metadata = source.metadata().to_vec();
    if !metadata.iter().any(|(key, _)| key == FORMAT.0) {
        metadata.push((FORMAT.0.into(), FORMAT.1.into()));
    }
    metadata
}
