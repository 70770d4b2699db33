//! Back to float from ONNX: [`graph`] says what the nodes become, [`constants`] what the weights are, and here both become
//! files.
//!
//! Float constants are not held: each is computed in pieces when its place in the file is reached. Everything else is
//! copied from the map of the quantized model.

mod constants;
mod graph;
mod operators;

use super::TAG;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::outputs::assemble::Assembly;
use crate::outputs::onnx::file;
use crate::outputs::quantized::check_recorded;
use crate::outputs::target::{Destination, Target};
use crate::outputs::{Content, FileLayout, OutputLayout};
use crate::stream::{self, Jobs, Progress, Scratch};
use crate::tensor::encode_f32;
use bytes::Bytes;
use constants::FloatConstant;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes or elements of a piece.
const PIECE: usize = 1 << 18;

/// Writes the float model that `model` stands for; returns where.
///
/// # Errors
///
/// As [`super::dequantize`].
pub(super) fn dequantize(model: &Model, destination: &Destination, threads: usize, progress: &dyn Progress) -> Result<PathBuf> {
    let onnx = model.onnx().expect("the caller has looked");
    let sidecar = check_recorded(model, threads)?;
    let malformed = |message: String| Error::malformed(model.path(), message);
    let (proto, constants) = graph::to_float(onnx.file.proto.clone()).map_err(malformed)?;
    let target = Target::choose(destination, model, TAG, false)?;
    target.spare(sidecar.as_slice())?;
    let deferred: Vec<Content> = (0..constants.len()).map(Content::Source).collect();
    let files = file::lay_out(proto, &deferred, &target.name(), onnx.file.has_external_data);
    let layout = OutputLayout { files, documents: Vec::new() };
    target.check_space(layout.bytes())?;
    progress.begin(layout.bytes());
    let fill = &mut |file: &std::fs::File, path: &Path, layout: &FileLayout| {
        stream::run(&FloatJobs::new(&constants, layout), file, path, &layout.header, threads, progress)
    };
    Assembly { target: &target, model, layout: &layout, check: None }.write(fill, |_| None)?;
    Ok(target.output)
}

/// Jobs for one file: each copies a piece of known bytes or computes one of a constant.
struct FloatJobs<'a> {
    constants: &'a [FloatConstant],
    jobs: Vec<Job>,
}

struct Job {
    offset: u64,
    bytes: u64,
    piece: Piece,
}

enum Piece {
    Literal(Bytes),
    /// Elements of a constant.
    Values {
        constant: usize,
        elements: Range<usize>,
    },
}

impl<'a> FloatJobs<'a> {
    fn new(constants: &'a [FloatConstant], layout: &FileLayout) -> Self {
        let mut jobs = Vec::new();
        for (content, place) in &layout.contents {
            match content {
                Content::Literal(bytes) => {
                    for start in (0..bytes.len()).step_by(PIECE) {
                        let piece = bytes.slice(start..(start + PIECE).min(bytes.len()));
                        jobs.push(Job { offset: place.start + start as u64, bytes: piece.len() as u64, piece: Piece::Literal(piece) });
                    }
                }
                Content::Source(constant) => {
                    let (elements, width) = (constants[*constant].elements(), constants[*constant].width());
                    for start in (0..elements).step_by(PIECE) {
                        let range = start..(start + PIECE).min(elements);
                        let bytes = (range.len() * width) as u64;
                        let piece = Piece::Values { constant: *constant, elements: range };
                        jobs.push(Job { offset: place.start + (start * width) as u64, bytes, piece });
                    }
                }
                _ => unreachable!("float layouts hold known bytes and whole constants only"),
            }
        }
        FloatJobs { constants, jobs }
    }
}

impl Jobs for FloatJobs<'_> {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn offset(&self, job: usize) -> Option<u64> {
        Some(self.jobs[job].offset)
    }

    fn run(&self, job: usize, bytes: &mut Vec<u8>, scratch: &mut Scratch) -> Result<()> {
        match &self.jobs[job].piece {
            Piece::Literal(piece) => {
                bytes.clear();
                bytes.extend_from_slice(piece);
            }
            Piece::Values { constant, elements } => {
                let constant = &self.constants[*constant];
                scratch.values.clear();
                constant.values(elements.clone(), &mut scratch.values);
                bytes.resize(elements.len() * constant.width(), 0);
                encode_f32(constant.dtype, &scratch.values, bytes);
            }
        }
        Ok(())
    }

    fn weight(&self, job: usize) -> u64 {
        self.jobs[job].bytes
    }
}
