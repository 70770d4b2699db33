//! Back to float from safetensors: every tensor under its name, in its original type, in the order of the header.
//!
//! `value = (code - zero_point) * scale` in f32, rounded to the original type. Tensors that were kept come back bit for
//! bit.

use super::TAG;
use crate::error::Result;
use crate::formats::ReadOptions;
use crate::outputs::assemble::Assembly;
use crate::outputs::compressed_tensors::read;
use crate::outputs::container::{Entry, Order};
use crate::outputs::quantized::QuantizedModel;
use crate::outputs::target::{Destination, Target};
use crate::outputs::weight_files::WeightFiles;
use crate::outputs::{Content, FileLayout, OutputLayout};
use crate::stream::{self, Jobs, Progress, Scratch};
use crate::tensor::encode_f32;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Elements of a piece.
const PIECE: usize = 1 << 17;

/// Writes the float model that `quantized` stands for; returns where.
///
/// # Errors
///
/// As [`QuantizedModel::open`]; [`crate::Error::Usage`] if the output exists; [`crate::Error::Io`] if it cannot be written.
pub(super) fn dequantize(
    quantized: &Path,
    destination: &Destination,
    read: &ReadOptions,
    threads: usize,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let quantized = QuantizedModel::open(quantized, read)?;
    quantized.check_content(threads)?;
    let layout = lay_out(&quantized)?;
    let target = Target::choose(destination, &quantized.model, TAG, false)?;
    target.spare(&[&quantized.sidecar])?;
    target.check_space(layout.bytes())?;
    progress.begin(layout.bytes());
    let fill = &mut |file: &std::fs::File, path: &Path, layout: &FileLayout| {
        stream::run(&DequantizeJobs::new(&quantized, layout), file, path, &layout.header, threads, progress)
    };
    Assembly { target: &target, model: &quantized.model, layout: &layout, check: None }.write(fill, |_| None)?;
    Ok(target.output)
}

fn lay_out(quantized: &QuantizedModel) -> Result<OutputLayout> {
    let model = &quantized.model;
    let own: HashSet<usize> = quantized.tensors().collect();
    let mut files = WeightFiles::new(model);
    for (index, source) in model.files().iter().enumerate() {
        let tensors: Vec<usize> = model.in_header_order(index).into_iter().filter(|tensor| own.contains(tensor)).collect();
        let entry = |tensor: &usize| {
            let name = model.tensors()[*tensor].info.name.clone();
            Entry { name, dtype: quantized.dtype(*tensor), shape: quantized.shape(*tensor).to_vec(), codes: None }
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        files.add(source, source.metadata(), &entries, tensors.into_iter().map(Content::Source).collect(), Order::AsGiven)?;
    }
    let (files, index) = files.finish();
    let config = read::is_form_of(&quantized.document).then(|| read::float_config(model)).transpose()?;
    Ok(OutputLayout { files, documents: index.into_iter().chain(config).collect() })
}

/// Jobs for one file: each converts or copies a piece of a tensor.
struct DequantizeJobs<'a> {
    quantized: &'a QuantizedModel,
    jobs: Vec<Job>,
}

struct Job {
    offset: u64,
    tensor: usize,
    piece: Piece,
}

enum Piece {
    /// Elements to dequantize.
    Values(Range<usize>),
    /// Bytes to copy.
    Bytes(Range<usize>),
}

impl<'a> DequantizeJobs<'a> {
    fn new(quantized: &'a QuantizedModel, layout: &FileLayout) -> Self {
        let mut jobs = Vec::new();
        for (content, place) in &layout.contents {
            let Content::Source(tensor) = *content else { unreachable!("float layouts hold whole tensors only") };
            let stored = quantized.model.tensor_bytes(tensor).len();
            let elements = quantized.shape(tensor).iter().product();
            let (len, width) = if quantized.is_quantized(tensor) { (elements, place.end - place.start) } else { (stored, stored as u64) };
            let width = if len == 0 { 0 } else { width / len as u64 };
            for start in (0..len).step_by(PIECE) {
                let range = start..(start + PIECE).min(len);
                let piece = if quantized.is_quantized(tensor) { Piece::Values(range) } else { Piece::Bytes(range) };
                jobs.push(Job { offset: place.start + start as u64 * width, tensor, piece });
            }
        }
        DequantizeJobs { quantized, jobs }
    }
}

impl Jobs for DequantizeJobs<'_> {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn offset(&self, job: usize) -> Option<u64> {
        Some(self.jobs[job].offset)
    }

    fn run(&self, job: usize, bytes: &mut Vec<u8>, scratch: &mut Scratch) -> Result<()> {
        let Job { tensor, piece, .. } = &self.jobs[job];
        match piece {
            Piece::Bytes(range) => {
                bytes.clear();
                bytes.extend_from_slice(&self.quantized.model.tensor_bytes(*tensor)[range.clone()]);
            }
            Piece::Values(range) => {
                let dtype = self.quantized.dtype(*tensor);
                let values = self.quantized.values(*tensor, range.clone(), &mut scratch.dequantize);
                bytes.resize(values.len() * dtype.bytes().expect("source types have whole bytes") as usize, 0);
                encode_f32(dtype, values, bytes);
            }
        }
        Ok(())
    }

    fn weight(&self, job: usize) -> u64 {
        let Job { tensor, piece, .. } = &self.jobs[job];
        match piece {
            Piece::Bytes(range) => range.len() as u64,
            Piece::Values(range) => range.len() as u64 * self.quantized.dtype(*tensor).bits() / 8,
        }
    }
}
