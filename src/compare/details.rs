//! What a page shows of two models besides how they differ: sizes, histograms of the worst tensors, the recipe.

use super::tensors::Other;
use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::outputs::document::{self, Document};
use crate::outputs::quantized::DequantizeScratch;
use crate::report::distribution::{CodeGrid, Distribution};
use crate::stream;
use std::path::Path;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Size of the float model's files of weights, in bytes.
    pub bytes_before: u64,
    /// Size of the quantized model's.
    pub bytes_after: u64,
    /// Of the tensors that were asked for, in that order.
    pub distributions: Vec<Distribution>,
    /// The recipe of the quantized model in TOML, where its sidecar is at hand.
    pub recipe: Option<String>,
}

/// Looks at both models once more; `tensors` are those whose values are counted, none of an ONNX model.
///
/// # Errors
///
/// As [`compare`](super::compare).
pub fn details(float: &Path, quantized: &Path, tensors: &[&str], read: &ReadOptions, threads: usize) -> Result<Details> {
    let model = formats::open(float, read)?;
    // Others' files may have the name of a sidecar.
    let document = document::find(quantized, read).and_then(|sidecar| Document::read(&sidecar)).ok();
    let recipe = document.map(|document| document.recipe.to_text(quantized.with_extension("toml").as_path())).transpose()?;
    if model.onnx().is_some() {
        let bytes_after = formats::open(quantized, read)?.bytes();
        return Ok(Details { bytes_before: model.bytes(), bytes_after, distributions: Vec::new(), recipe });
    }
    let other = Other::open(quantized, read)?;
    let (index, other_index) = (model.index(), other.model().index());
    let pairs: Vec<(usize, usize)> = tensors.iter().filter_map(|name| Some((*index.get(name)?, *other_index.get(name)?))).collect();
    let of = |i: usize| {
        let (tensor, counterpart) = pairs[i];
        let grid = match &other {
            Other::Quantized(quantized) => quantized.grid(counterpart).and_then(|(params, codes)| CodeGrid::new(params, codes)),
            Other::Float(_) => None,
        };
        let (mut scratch, mut other_scratch) = (Vec::new(), DequantizeScratch::default());
        let info = &model.tensors()[tensor].info;
        Distribution::of(&info.name, info.elements(), grid, |elements, before, after| {
            before.extend_from_slice(model.values(tensor, elements.clone(), &mut scratch));
            after.extend_from_slice(other.values(counterpart, elements, &mut other_scratch));
        })
    };
    let distributions = stream::map(pairs.len(), threads, of);
    Ok(Details { bytes_before: model.bytes(), bytes_after: other.model().bytes(), distributions, recipe })
}
