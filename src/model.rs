//! A model as it was read: files, tensors, and the way from a tensor to its values.

use crate::error::{Error, Result};
use crate::formats::Companions;
use crate::formats::mmap::{Identity, MappedFile};
use crate::graph::onnx_model::OnnxModel;
use crate::quant::scheme::Convention;
use crate::recipe::{Pattern, Rule};
use crate::tensor::{Dtype, TensorInfo, decode_f32, encode_f32};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was at the path that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One file.
    File,
    /// A directory.
    Directory {
        /// File name of the index, if the model is sharded.
        index: Option<&'static str>,
    },
}

/// One file of weights.
pub struct SourceFile {
    pub(crate) file: Arc<MappedFile>,
    /// Where tensor bytes begin, in bytes from the file's start.
    pub(crate) data_start: usize,
    /// The header's free text, in its order.
    pub(crate) metadata: Vec<(String, String)>,
}

impl SourceFile {
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its name without directories.
    pub fn name(&self) -> Cow<'_, str> {
        self.path().file_name().unwrap_or_default().to_string_lossy()
    }

    /// The whole content.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Everything before the tensor bytes: what identifies names, types and shapes.
    pub fn header(&self) -> &[u8] {
        &self.bytes()[..self.data_start]
    }

    /// The header's free text.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

/// A tensor and the file that holds it.
pub struct ModelTensor {
    /// Index into [`Model::files`].
    pub file: usize,
    /// Name, type, shape.
    pub info: TensorInfo,
    /// Its stored bytes: a part of the file's map, or made of such parts while the model was prepared.
    pub(crate) data: Bytes,
    /// What the format says it is for.
    pub(crate) role: Role,
    /// What it was called before the model was prepared, if that is another name.
    pub(crate) former_name: Option<String>,
    /// What its values are multiplied by when they are read.
    pub(crate) rescale: Option<Rescale>,
}

/// Factors of the rows and columns of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rescale {
    pub rows: Vec<f32>,
    pub columns: Vec<f32>,
}

impl Rescale {
    /// Multiplies values from `element` on.
    fn apply(&self, element: usize, values: &mut [f32]) {
        let width = self.columns.len();
        let (mut row, mut column) = (element / width, element % width);
        for value in values {
            *value *= self.rows[row] * self.columns[column];
            column += 1;
            if column == width {
                (row, column) = (row + 1, 0);
            }
        }
    }
}

/// What a tensor is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The format does not say.
    Unknown,
    /// A weight.
    Weight {
        /// Name of the (first) operator that takes it.
        layer: String,
        /// That operator.
        op: String,
        /// The axis of output channels; `None` if operators disagree.
        axis: Option<usize>,
    },
    /// Not a weight, or none that can be quantized.
    Other {
        /// Why.
        reason: String,
    },
}

impl Role {
    pub(crate) fn op(&self) -> Option<&str> {
        match self {
            Role::Weight { op, .. } => Some(op),
            _ => None,
        }
    }

    pub(crate) fn axis(&self) -> Option<usize> {
        match self {
            Role::Weight { axis, .. } => *axis,
            _ => None,
        }
    }
}

impl ModelTensor {
    /// Whether a pattern is about it: by its own name, the one it had before, or that of its layer.
    pub(crate) fn is_matched_by(&self, pattern: &Pattern) -> bool {
        let names = [&self.info.name].into_iter().chain(&self.former_name);
        names.into_iter().any(|name| pattern.matches(name)) || matches!(&self.role, Role::Weight { layer, .. } if pattern.matches(layer))
    }
}

impl ModelTensor {
    /// Whether a rule is about it: it fits all criteria that the rule has.
    pub(crate) fn is_subject_of(&self, rule: &Rule) -> bool {
        rule.pattern.as_ref().is_none_or(|pattern| self.is_matched_by(pattern))
            && rule.op.as_ref().is_none_or(|op| self.role.op().is_some_and(|own| op.names().iter().any(|name| name == own)))
            && rule.shape.as_ref().is_none_or(|shape| shape.matches(&self.info.shape))
    }

    /// The names that patterns may match: its own, the one it had before, those of its layer.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let layer = match &self.role {
            Role::Weight { layer, .. } => Some(layer),
            _ => None,
        };
        let names = [&self.info.name].into_iter().chain(&self.former_name).chain(layer);
        names.flat_map(|name| [Some(name.as_str()), name.strip_suffix(".weight")].into_iter().flatten())
    }
}

/// A model: its files are mapped, its headers checked.
pub struct Model {
    path: PathBuf,
    layout: Layout,
    files: Vec<SourceFile>,
    tensors: Vec<ModelTensor>,
    companions: Companions,
    onnx: Option<Box<OnnxModel>>,
    follows_links: bool,
}

impl Model {
    pub(crate) fn new(path: PathBuf, layout: Layout, files: Vec<(SourceFile, Vec<TensorInfo>)>) -> Self {
        let mut model = Model {
            path,
            layout,
            files: Vec::new(),
            tensors: Vec::new(),
            companions: Companions::default(),
            onnx: None,
            follows_links: false,
        };
        for (file, tensors) in files {
            let index = model.files.len();
            let all = file.file.to_bytes();
            let tensor = |info: TensorInfo| ModelTensor {
                file: index,
                data: all.slice(info.bytes.clone()),
                info,
                role: Role::Unknown,
                former_name: None,
                rescale: None,
            };
            model.tensors.extend(tensors.into_iter().map(tensor));
            model.files.push(file);
        }
        model
    }

    /// An ONNX model with these of its constants as tensors.
    pub(crate) fn of_onnx(onnx: OnnxModel, tensors: Vec<ModelTensor>) -> Self {
        let source = |file: &Arc<MappedFile>| SourceFile { data_start: file.bytes().len(), file: file.clone(), metadata: Vec::new() };
        Model {
            path: onnx.file.path.clone(),
            layout: Layout::File,
            files: onnx.file.files.iter().map(source).collect(),
            tensors,
            companions: Companions::default(),
            onnx: Some(Box::new(onnx)),
            follows_links: false,
        }
    }

    /// Whether links may lead out of the model's directory, as it was opened.
    pub(crate) fn follows_links(&self) -> bool {
        self.follows_links
    }

    pub(crate) fn following_links(self, follows_links: bool) -> Self {
        Model { follows_links, ..self }
    }

    /// The graph, if it is an ONNX model.
    pub(crate) fn onnx(&self) -> Option<&OnnxModel> {
        self.onnx.as_deref()
    }

    pub(crate) fn with_companions(self, companions: Companions) -> Self {
        Model { companions, ..self }
    }

    /// Whose arithmetic is followed unless another is asked for.
    pub(crate) fn default_convention(&self) -> Convention {
        if self.onnx.is_some() { Convention::Ort } else { Convention::Torch }
    }

    /// The graph and its weights, if it is an ONNX model.
    pub(crate) fn into_onnx(self) -> Option<OnnxModel> {
        self.onnx.map(|onnx| *onnx)
    }

    /// The same model, of which some tensors are known not to be weights: by number, why.
    pub(crate) fn without_weights(mut self, others: BTreeMap<usize, String>) -> Self {
        for (tensor, reason) in others {
            self.tensors[tensor].role = Role::Other { reason };
        }
        self
    }

    /// The same model with some tensors stored in another way, or left out.
    pub(crate) fn with_changed(mut self, mut changed: HashMap<usize, Option<(TensorInfo, Bytes)>>) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter().enumerate();
        let kept = tensors.filter_map(|(number, tensor)| match changed.remove(&number) {
            None => Some(tensor),
            Some(change) => change.map(|(info, data)| ModelTensor { info, data, ..tensor }),
        });
        self.tensors = kept.collect();
        self
    }

    /// The same model, of which some tensors had other names before.
    pub(crate) fn with_former_names(mut self, names: &HashMap<usize, String>) -> Self {
        for (tensor, name) in names {
            self.tensors[*tensor].former_name = Some(name.clone());
        }
        self
    }

    /// The same model, of which some tensors are known to be weights of layers that compute with `op`: by number, the
    /// layer's name and the axis of output channels.
    pub(crate) fn with_layers(mut self, layers: BTreeMap<usize, (String, usize)>, op: &str) -> Self {
        for (tensor, (layer, axis)) in layers {
            self.tensors[tensor].role = Role::Weight { layer, op: op.to_owned(), axis: Some(axis) };
        }
        self
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a file or a directory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its files of weights, in name order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Its tensors, by file and then in the order of their bytes.
    pub fn tensors(&self) -> &[ModelTensor] {
        &self.tensors
    }

    /// Other files of its directory that belong to the model, relative to it.
    pub fn companions(&self) -> &[PathBuf] {
        &self.companions.carried
    }

    /// What its directory holds besides, and is not taken for a part of it.
    pub fn left_behind(&self) -> &[PathBuf] {
        &self.companions.left
    }

    /// Size of all files of weights, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, tensor: usize) -> &SourceFile {
        &self.files[self.tensors[tensor].file]
    }

    /// The stored bytes of a tensor.
    pub fn tensor_bytes(&self, tensor: usize) -> &[u8] {
        &self.tensors[tensor].data
    }

    /// Tensors by name.
    pub fn index(&self) -> HashMap<&str, usize> {
        self.tensors.iter().enumerate().map(|(i, tensor)| (tensor.info.name.as_str(), i)).collect()
    }

    /// The tensors of a file, in the order in which its header lists them.
    pub fn in_header_order(&self, file: usize) -> Vec<usize> {
        let mut tensors: Vec<usize> = (0..self.tensors.len()).filter(|tensor| self.tensors[*tensor].file == file).collect();
        tensors.sort_by_key(|tensor| self.tensors[*tensor].info.position);
        tensors
    }

    /// The values `elements` of a [decodable](crate::tensor::Dtype::is_decodable) tensor as f32, in row-major order:
    /// straight from the map where it holds aligned F32, else converted into `scratch`.
    pub fn values<'a>(&'a self, tensor: usize, elements: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let dtype = self.tensors[tensor].info.dtype;
        let width = dtype.bytes().expect("decodable types have whole bytes") as usize;
        let bytes = &self.tensor_bytes(tensor)[elements.start * width..elements.end * width];
        let rescale = self.tensors[tensor].rescale.as_ref();
        let stored_as_is = dtype == Dtype::F32 && cfg!(target_endian = "little") && rescale.is_none();
        if let (true, Ok(values)) = (stored_as_is, bytemuck::try_cast_slice(bytes)) {
            return values;
        }
        scratch.resize(elements.len(), 0.0);
        decode_f32(dtype, bytes, scratch);
        if let Some(rescale) = rescale {
            rescale.apply(elements.start, scratch);
        }
        scratch
    }

    /// Multiplies rows and columns of a matrix, or the elements of a vector, as its rows. What is read as codes is multiplied
    /// then; what is `copied` is stored anew, rounded to its type.
    pub(crate) fn rescale(&mut self, tensor: usize, rows: Option<&[f32]>, columns: Option<&[f32]>, copied: bool) {
        let shape = &self.tensors[tensor].info.shape;
        let (height, width) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let mut rescale =
            self.tensors[tensor].rescale.take().unwrap_or_else(|| Rescale { rows: vec![1.0; height], columns: vec![1.0; width] });
        let multiply = |factors: &mut [f32], by: Option<&[f32]>| {
            factors.iter_mut().zip(by.unwrap_or_default()).for_each(|(factor, by)| *factor *= by);
        };
        multiply(&mut rescale.rows, rows);
        multiply(&mut rescale.columns, columns);
        self.tensors[tensor].rescale = Some(rescale);
        if copied {
            let values = self.values(tensor, 0..height * width, &mut Vec::new()).to_vec();
            self.replace(tensor, &values);
            self.tensors[tensor].rescale = None;
        }
    }

    /// Stores other values, rounded to the tensor's type.
    pub(crate) fn replace(&mut self, tensor: usize, values: &[f32]) {
        let stored = &mut self.tensors[tensor];
        let width = stored.info.dtype.bytes().expect("decodable types have whole bytes") as usize;
        let mut bytes = vec![0; values.len() * width];
        encode_f32(stored.info.dtype, values, &mut bytes);
        stored.data = bytes.into();
        if let Some(onnx) = &mut self.onnx {
            onnx.replace(tensor, &stored.data);
        }
    }

    /// The stored bytes of elements of a tensor of whole-byte type; those beyond its end are left out.
    pub(crate) fn element_bytes(&self, tensor: usize, elements: Range<usize>) -> &[u8] {
        let (bytes, width) = (self.tensor_bytes(tensor), self.tensors[tensor].info.dtype.bytes().unwrap_or(0) as usize);
        let end = (elements.end * width).min(bytes.len());
        &bytes[(elements.start * width).min(end)..end]
    }

    /// An error about a tensor of this model.
    pub(crate) fn tensor_error(&self, tensor: usize, message: impl Into<String>) -> Error {
        Error::tensor(self.file_of(tensor).path(), &self.tensors[tensor].info.name, message)
    }

    /// Whether all files are still as they were when opened.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] for the first that is not.
    pub fn check_unchanged(&self) -> Result<()> {
        self.watch().check()
    }

    /// What to look at to know whether the model changed.
    pub(crate) fn watch(&self) -> Watch {
        let files = self.files.iter().map(|file| file.file.clone()).collect();
        let carried = self.companions.carried.iter().map(|name| self.path.join(name));
        Watch { files, companions: carried.zip(self.companions.identities.iter().copied()).collect() }
    }
}

/// The files of a model, as they were when it was opened.
pub(crate) struct Watch {
    files: Vec<Arc<MappedFile>>,
    companions: Vec<(PathBuf, Identity)>,
}

impl Watch {
    /// Whether they still are.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] for the first that is not.
    pub(crate) fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())?;
        self.companions.iter().try_for_each(|(path, identity)| identity.check(path))
    }

    /// What explains `error`, where it is about content: that an input changed, if one did.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error.exit_code() {
            BAD_INPUT | LIMIT => self.check().err().unwrap_or(error),
            _ => error,
        }
    }
}

/// Exit codes of errors that a file which changes while it is read can cause.
const BAD_INPUT: u8 = 1;
const LIMIT: u8 = 6;
