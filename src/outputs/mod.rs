//! WRITE: the forms that quantized models are stored in.
//!
//! A form says which files there are and what each holds ([`Output::lay_out`]); sizes follow from shapes, so space and
//! collisions are known before any value is read. The [`pipeline`](crate::pipeline) fills the files. A new form is a
//! file with an implementation of [`Output`], its `mod` line and its entry in [`OUTPUTS`].

pub(crate) mod assemble;
pub(crate) mod compressed_tensors;
pub(crate) mod container;
pub mod document;
pub(crate) mod fake_quant;
pub(crate) mod onnx;
pub mod quantized;
pub(crate) mod record;
pub(crate) mod sidecar;
pub mod staging;
pub(crate) mod target;
pub(crate) mod weight_files;

use crate::error::Result;
use crate::formats::onnx::proto::ModelProto;
use crate::model::Model;
use crate::plan::Plan;
use crate::quant::scheme::{CodeType, Convention};
use crate::recipe::Recipe;
use bytes::Bytes;
use document::Document;
use onnx::rewrite::Chosen;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// What the bytes of one stored tensor are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes that are known.
    Literal(Bytes),
    /// A tensor of the model, bit for bit.
    Source(usize),
    /// The codes of a tensor.
    Codes(usize),
    /// The values that the codes of a tensor stand for, in the tensor's own type.
    Values(usize),
    /// The codes of a tensor with its last two axes swapped.
    TransposedCodes(usize),
    /// The codes of a tensor, moved up by half of their range so that they are unsigned.
    UnsignedCodes(usize),
    /// The scales of a tensor, f32.
    Scales(usize),
    /// The scales of a tensor, in the tensor's own type.
    ScalesInType(usize),
    /// The zero points of a tensor, one byte each.
    ZeroPoints(usize),
    /// The zero points of a tensor's groups, moved up as its codes: those of so many rows to a word of 32 bits.
    PackedZeroPoints(usize),
}

/// One file of an output: header, then contents.
pub(crate) struct FileLayout {
    /// Name, relative to the output's directory.
    pub name: String,
    /// Its first bytes.
    pub header: Vec<u8>,
    /// What follows, in the order of places, without gaps.
    pub contents: Vec<(Content, Range<u64>)>,
    /// Size in bytes.
    pub len: u64,
    /// What it is, for the check of what was written.
    pub kind: FileKind,
}

/// The format of one file of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A safetensors container.
    Safetensors,
    /// An ONNX model.
    Onnx,
    /// Values of an ONNX model's constants.
    Data,
}

/// All files of an output but its sidecar.
pub(crate) struct OutputLayout {
    /// Files of weights: one for each of the model's, or the main output last after those that it refers to.
    pub files: Vec<FileLayout>,
    /// Small files made from the model's, such as its index: name and content.
    pub documents: Vec<(String, Vec<u8>)>,
}

impl OutputLayout {
    /// Size of the files of weights, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }
}

/// A form of output.
pub trait Output: Sync {
    /// Name on the command line and in sidecars.
    fn name(&self) -> &'static str;

    /// One line of help.
    fn summary(&self) -> &'static str;

    /// Whether it is a form for this model; the first that is, is the default.
    fn is_for(&self, model: &Model) -> bool;

    /// Whether the layout holds the parameters themselves, so that they must be chosen before, or the graph tells more of
    /// them. Any of the right number do for a layout of the same sizes.
    fn needs_params(&self, model: &Model) -> bool;

    /// What is put into the name of an output that is given none, for weights of these codes.
    fn tag(&self, codes: CodeType) -> String {
        codes.name().to_owned()
    }

    /// Whether the graph of an ONNX model is kept as it is given, neither simplified nor raised to another version.
    fn keeps_graph(&self) -> bool {
        false
    }

    /// Whose arithmetic is followed unless another is asked for.
    fn convention(&self, model: &Model) -> Convention {
        model.default_convention()
    }

    /// Whether, of a model without a graph, it can say that activations are quantized when the model runs.
    fn quantizes_activations(&self) -> bool {
        false
    }

    /// Changes defaults that the form has no use for.
    fn adapt(&self, _recipe: &mut Recipe) {}

    /// What is appended to a tensor's name for the tensors of its groups' scales and zero points; `None` if the output has no
    /// such tensors and the sidecar has the numbers.
    fn parameter_suffixes(&self) -> Option<[&'static str; 2]> {
        Some([sidecar::SCALE, sidecar::ZERO_POINT])
    }

    /// What to know of the form for this model.
    fn note(&self, _model: &Model) -> Option<&'static str> {
        None
    }

    /// The model as this form sees it, before anything is decided: it may know of some tensors that they are no weights.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Usage`] or [`crate::Error::Malformed`] if the form cannot hold the model.
    fn ready(&self, model: Model, _recipe: &Recipe) -> Result<Model> {
        Ok(model)
    }

    /// Which files there will be; `name` is that of the main output.
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "forms are written in this crate only")]
    fn lay_out(&self, model: &Model, plan: &Plan, chosen: &Chosen, name: &str) -> Result<OutputLayout>;

    /// The ONNX graph that is written, if it is one that a runtime is to compute with codes.
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "forms are written in this crate only")]
    fn quantized_graph(&self, _model: &Model, _plan: &Plan, _chosen: &Chosen) -> Option<QuantizedGraph> {
        None
    }
}

/// An ONNX model whose codes are not made yet.
pub(crate) struct QuantizedGraph {
    pub proto: ModelProto,
    /// What deferred payloads are.
    pub deferred: Vec<Content>,
    /// Names of the codes of weights that are to be computed with, and not only dequantized.
    pub for_integers: BTreeSet<String>,
}

/// Every form of output.
pub const OUTPUTS: &[&dyn Output] =
    &[&sidecar::Sidecar, &onnx::QDQ, &onnx::QOPERATOR, &compressed_tensors::CompressedTensors, &fake_quant::FakeQuant];

/// What else than its recipe decided the bytes of a run.
pub struct RecordedRun {
    /// The form of its output, if there still is such a form.
    pub form: Option<&'static dyn Output>,
    /// The seed of methods that draw random numbers.
    pub seed: u64,
}

/// The run that the sidecar at `path` is of; `None` if it is no sidecar.
pub fn recorded_run(path: &Path) -> Option<RecordedRun> {
    let document = Document::recognizes(path).then(|| Document::read(path).ok()).flatten()?;
    let form = OUTPUTS.iter().find(|form| form.name() == document.output.form).copied();
    Some(RecordedRun { form, seed: document.seed })
}
