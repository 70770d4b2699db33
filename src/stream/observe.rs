//! OBSERVE for groups that do not fit in one piece, and the check that every value is a number.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::observers::{Batch, Values};
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::plan::{Decision, Plan, TensorScheme};
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::{Extent, min_max, widen_columns};
use crate::quant::params::Range as ClippingRange;
use crate::stream::{self, custom};
use crate::tensor::Dtype;
use std::ops::Range;

/// Elements that are converted to f32 at a time.
const PIECE: usize = 1 << 16;

/// Elements that are gathered at a time from the channels of an inner axis: 8 MiB of f32.
pub(super) const GATHERED: usize = 1 << 21;

/// Elements between the gathered values of two channels.
const GAP: usize = 16;

/// Scale and zero point of every group of every tensor that is quantized.
///
/// # Errors
///
/// [`Error::NonFinite`] for the first tensor with a value that is no finite number, whether it is quantized or kept because
/// it is small.
pub(crate) fn all_params(model: &Model, plan: &Plan, threads: usize) -> Result<ParamsOf> {
    let tensors: Vec<usize> = (0..plan.decisions.len()).collect();
    let params = stream::map(tensors.len(), threads, |i| match &plan.decisions[tensors[i]] {
        Decision::Keep { is_weight: true, .. } => check_finite(model, tensors[i]).map(|()| None),
        Decision::Keep { .. } => Ok(None),
        Decision::Quantize(scheme) => {
            let ranges = all_groups(model, tensors[i], scheme)?;
            Ok(Some((tensors[i], ranges.into_iter().map(|range| scheme.rule.choose_params(range)).collect())))
        }
    });
    params.into_iter().filter_map(Result::transpose).collect()
}

/// The clipping range of every group of `tensor`, in order.
pub(crate) fn all_groups(model: &Model, tensor: usize, scheme: &TensorScheme) -> Result<Vec<ClippingRange>> {
    if let Some(command) = scheme.observer.command() {
        scheme.observer.may_run().map_err(|message| model.tensor_error(tensor, message))?;
        check_finite(model, tensor)?;
        return custom::ask(model, tensor, scheme, command);
    }
    let ranges = match scheme.layout {
        GroupLayout::Contiguous { .. } => contiguous_groups(model, tensor, scheme)?,
        GroupLayout::Strided { outer, channels, inner } => strided_groups(model, tensor, scheme, 0, [outer, channels, inner])?,
        GroupLayout::Tiled { outer, len, size, inner } => {
            let mut ranges = Vec::with_capacity(scheme.layout.groups());
            for (o, start) in (0..outer).flat_map(|o| (0..len).step_by(size).map(move |start| (o, start))) {
                let rows = size.min(len - start);
                ranges.extend(strided_groups(model, tensor, scheme, (o * len + start) * inner, [rows, inner, 1])?);
            }
            ranges
        }
    };
    scheme.observer.check(&ranges).map_err(|message| model.tensor_error(tensor, message))?;
    Ok(ranges)
}

fn contiguous_groups(model: &Model, tensor: usize, scheme: &TensorScheme) -> Result<Vec<ClippingRange>> {
    let elements = model.tensors()[tensor].info.elements();
    let mut groups = Vec::with_capacity(scheme.layout.groups());
    scheme.layout.for_each_run(0..elements, |_, run| groups.push(Stored { model, tensor, elements: run }));
    let extents: Vec<ClippingRange> = groups.iter().map(|group| finite_extent(model, tensor, group)).collect::<Result<_>>()?;
    let batches = groups.iter().zip(&extents).map(|(values, extent)| Batch { extent: *extent, values });
    let target = scheme.target();
    Ok(match scheme.observer.joint(&target) {
        Some(search) => search(&batches.collect::<Vec<_>>()),
        None => batches.map(|batch| scheme.observer.observe_once(batch, &target)).collect(),
    })
}

/// The channels of the `outer * channels * inner` elements from `base` on. Gathers as many at a time as fit, reading row by
/// row.
fn strided_groups(
    model: &Model,
    tensor: usize,
    scheme: &TensorScheme,
    base: usize,
    [outer, channels, inner]: [usize; 3],
) -> Result<Vec<ClippingRange>> {
    let target = scheme.target();
    let mut ranges = Vec::with_capacity(channels);
    let len = outer * inner;
    let at_a_time = (GATHERED / len).clamp(1, channels);
    let joint = scheme.observer.joint(&target);
    if scheme.observer.is_extent_only() {
        let extents = strided_extents(model, tensor, base, [outer, channels, inner])?;
        return Ok(extents
            .into_iter()
            .map(|extent| scheme.observer.observe_once(Batch { extent, values: &[] as &[f32; 0] }, &target))
            .collect());
    }
    if len > GATHERED || joint.is_some() {
        // Too long to gather, or all needed at once: read again at every pass.
        let groups: Vec<Interleaved<'_>> =
            (0..channels).map(|channel| Interleaved { model, tensor, base, channel, channels, outer, inner }).collect();
        let extents: Vec<ClippingRange> = groups.iter().map(|group| finite_extent(model, tensor, group)).collect::<Result<_>>()?;
        let batches = groups.iter().zip(&extents).map(|(values, extent)| Batch { extent: *extent, values });
        return Ok(match joint {
            Some(search) => search(&batches.collect::<Vec<_>>()),
            None => batches.map(|batch| scheme.observer.observe_once(batch, &target)).collect(),
        });
    }
    // Rows of channels are a little longer than they need to be, or those of powers of two would share cache sets.
    let stride = len + GAP;
    let (mut gathered, mut scratch) = (vec![0f32; at_a_time * stride], Vec::new());
    for first in (0..channels).step_by(at_a_time) {
        let count = at_a_time.min(channels - first);
        for o in 0..outer {
            let start = base + (o * channels + first) * inner;
            let values = model.values(tensor, start..start + count * inner, &mut scratch);
            for (c, run) in values.chunks(inner).enumerate() {
                gathered[c * stride + o * inner..][..inner].copy_from_slice(run);
            }
        }
        for values in gathered[..count * stride].chunks(stride).map(|channel| &channel[..len]) {
            let extent = min_max(values);
            if !extent.finite {
                return Err(non_finite(model, tensor));
            }
            ranges.push(scheme.observer.observe_once(Batch { extent: extent.range(), values: &values }, &target));
        }
    }
    Ok(ranges)
}

/// The extent of every channel, in one pass over the tensor as it is stored.
fn strided_extents(model: &Model, tensor: usize, base: usize, [outer, channels, inner]: [usize; 3]) -> Result<Vec<ClippingRange>> {
    let row = channels * inner;
    let (mut low, mut high, mut magnitude) = (vec![f32::INFINITY; row], vec![f32::NEG_INFINITY; row], vec![0; row]);
    let mut scratch = Vec::new();
    for o in 0..outer {
        widen_columns(model.values(tensor, base + o * row..base + (o + 1) * row, &mut scratch), &mut low, &mut high, &mut magnitude);
    }
    if magnitude.iter().any(|bits| *bits >= f32::INFINITY.to_bits() as i32) {
        return Err(non_finite(model, tensor));
    }
    let fold = |values: &[f32], pick: fn(f32, f32) -> f32, start| values.iter().copied().fold(start, pick);
    let extent = |(low, high): (&[f32], &[f32])| ClippingRange {
        min: fold(low, f32::min, f32::INFINITY),
        max: fold(high, f32::max, f32::NEG_INFINITY),
    };
    Ok(low.chunks(inner).zip(high.chunks(inner)).map(extent).collect())
}

fn finite_extent(model: &Model, tensor: usize, values: &dyn Values) -> Result<ClippingRange> {
    let mut extent = Extent::NONE;
    values.for_each_piece(&mut |piece| extent = extent.merge(min_max(piece)));
    if extent.finite { Ok(extent.range()) } else { Err(non_finite(model, tensor)) }
}

/// A run of a stored tensor.
struct Stored<'m> {
    model: &'m Model,
    tensor: usize,
    elements: Range<usize>,
}

impl Values for Stored<'_> {
    fn len(&self) -> usize {
        self.elements.len()
    }

    fn for_each_piece(&self, each: &mut dyn FnMut(&[f32])) {
        let mut scratch = Vec::new();
        for start in self.elements.clone().step_by(PIECE) {
            each(self.model.values(self.tensor, start..(start + PIECE).min(self.elements.end), &mut scratch));
        }
    }
}

/// One channel of an inner axis.
struct Interleaved<'m> {
    model: &'m Model,
    tensor: usize,
    /// The element that its rows begin at.
    base: usize,
    channel: usize,
    channels: usize,
    outer: usize,
    inner: usize,
}

impl Values for Interleaved<'_> {
    fn len(&self) -> usize {
        self.outer * self.inner
    }

    fn for_each_piece(&self, each: &mut dyn FnMut(&[f32])) {
        let (mut scratch, mut piece) = (Vec::new(), Vec::with_capacity(PIECE));
        for o in 0..self.outer {
            let start = self.base + (o * self.channels + self.channel) * self.inner;
            piece.extend_from_slice(self.model.values(self.tensor, start..start + self.inner, &mut scratch));
            if piece.len() >= PIECE || o + 1 == self.outer {
                each(&piece);
                piece.clear();
            }
        }
    }
}

/// Whether every value of a decodable tensor is finite in f32.
pub(crate) fn is_finite(model: &Model, tensor: usize) -> bool {
    let elements = 0..model.tensors()[tensor].info.elements();
    let mut finite = true;
    Stored { model, tensor, elements }.for_each_piece(&mut |piece| finite &= min_max(piece).finite);
    finite
}

pub(crate) fn check_finite(model: &Model, tensor: usize) -> Result<()> {
    if is_finite(model, tensor) { Ok(()) } else { Err(non_finite(model, tensor)) }
}

/// The error for a tensor that holds a value which is no finite f32: counts them and finds the first.
pub(super) fn non_finite(model: &Model, tensor: usize) -> Error {
    let info = &model.tensors()[tensor].info;
    let elements = 0..info.elements();
    let (mut count, mut first, mut nan, mut infinite, mut at) = (0u64, None, false, false, 0u64);
    Stored { model, tensor, elements }.for_each_piece(&mut |piece| {
        for value in piece {
            if !value.is_finite() {
                count += 1;
                first.get_or_insert(at);
                nan |= value.is_nan();
                infinite |= value.is_infinite();
            }
            at += 1;
        }
    });
    let stored_infinities = info.dtype != Dtype::F64
        || model.tensor_bytes(tensor).as_chunks::<8>().0.iter().any(|bytes| f64::from_le_bytes(*bytes).is_infinite());
    let kind = match (nan, infinite) {
        (true, false) => "NaN",
        (false, true) if !stored_infinities => "values out of f32 range",
        (false, true) => "Inf",
        _ => "NaN or Inf",
    };
    Error::NonFinite {
        file: model.file_of(tensor).path().to_owned(),
        tensor: info.name.clone(),
        kind,
        count,
        first_index: first.unwrap_or(0),
    }
}
