//! WRITE: the forms that quantized models are stored in.
//!
//! A form says which files there are and what each holds ([`Output::lay_out`]); sizes follow from shapes, so space and
//! collisions are known before any value is read. The [`pipeline`](crate::pipeline) fills the files. A new form is a
//! file with an implementation of [`Output`], its `mod` line and its entry in [`OUTPUTS`].

pub(crate) mod assemble;
pub(crate) mod container;
pub mod document;
pub mod quantized;
pub(crate) mod record;
pub(crate) mod sidecar;
pub mod staging;
pub(crate) mod target;

use crate::error::Result;
use crate::model::Model;
use crate::plan::Plan;
use std::ops::Range;

/// What the bytes of one stored tensor are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A tensor of the model, bit for bit.
    Source(usize),
    /// The codes of a tensor.
    Codes(usize),
    /// The scales of a tensor, f32.
    Scales(usize),
    /// The zero points of a tensor, one byte each.
    ZeroPoints(usize),
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
}

/// All files of an output but its sidecar.
pub(crate) struct OutputLayout {
    /// Files of weights, one for each of the model's.
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

    /// Which files there will be.
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "forms are written in this crate only")]
    fn lay_out(&self, model: &Model, plan: &Plan) -> Result<OutputLayout>;
}

/// Every form of output.
pub const OUTPUTS: &[&dyn Output] = &[&sidecar::Sidecar];
