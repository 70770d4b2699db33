//! The weight that a fake quantizer is for, and how it is quantized.

use super::fold::{self, Changes};
use super::names::{FakeQuantizer, ORIGINAL, Site, join, parametrizations_of};
use super::params::{Codes, infer};
use super::state::{State, Watched, named};
use super::{TrainedWeight, not_from_ranges, update};
use crate::error::{Result, show_name};
use crate::model::Model;
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::min_max;
use crate::quant::params::Range;
use crate::quant::scheme::Granularity;
use crate::recipe::Recipe;
use std::collections::{BTreeMap, HashMap};

/// Where a weight is.
pub(super) struct Found {
    pub tensor: usize,
    /// Its name in a model that is not being trained.
    pub name: String,
    /// Its name in the file.
    pub stored_name: String,
    /// The module it belongs to.
    pub module: String,
}

/// The weight of `quantizer`.
///
/// # Errors
///
/// [`crate::Error::Tensor`] if it is not there, or is made of others by parametrizations that are no fake quantizers.
pub(super) fn find(model: &Model, index: &HashMap<&str, usize>, quantizer: &FakeQuantizer, parts: &Parts<'_>) -> Result<Found> {
    let name = match &quantizer.site {
        Site::Weight(module) => join(module, "weight"),
        Site::Parametrized(name) | Site::Exported { weight: name, .. } | Site::Activation(name) => name.clone(),
    };
    let module = name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
    let is_parametrized = matches!(quantizer.site, Site::Parametrized(_));
    if let Some(tensor) = index.get(name.as_str()).filter(|_| !is_parametrized) {
        return Ok(Found { tensor: *tensor, stored_name: name.clone(), name, module });
    }
    let prefix = parametrizations_of(&name);
    let parts: Vec<usize> = parts.of(&prefix, &name);
    if let (true, Some(tensor)) = (is_parametrized, index.get(name.as_str())) {
        return Err(model.tensor_error(*tensor, "expected it stored once, found what a parametrization makes of it beside"));
    }
    let hint = "torch.nn.utils.parametrize.remove_parametrizations stores the weight itself; --ignore-qat copies what is there";
    match parts.as_slice() {
        [] => {
            let message = format!("expected the weight {} that it is for, found none", show_name(&name));
            Err(model.tensor_error(named(quantizer), message).with_hint("--ignore-qat takes such tensors as any others"))
        }
        [tensor] if is_parametrized && model.tensors()[*tensor].info.name == format!("{prefix}{ORIGINAL}") => {
            Ok(Found { tensor: *tensor, stored_name: format!("{prefix}{ORIGINAL}"), name, module })
        }
        [tensor, ..] => {
            let message = format!("expected {} as it is used, found what an unknown parametrization makes it of", show_name(&name));
            Err(model.tensor_error(*tensor, message).with_hint(hint))
        }
    }
}

/// The tensors of parametrizations, to be found by what their names begin with.
pub(super) struct Parts<'m> {
    by_name: BTreeMap<&'m str, usize>,
    /// The weight whose fake quantizer a tensor belongs to.
    owners: HashMap<usize, &'m str>,
}

impl<'m> Parts<'m> {
    pub(super) fn new(model: &'m Model, all: &'m [FakeQuantizer]) -> Self {
        let of_weight = |quantizer: &'m FakeQuantizer| match &quantizer.site {
            Site::Parametrized(name) => quantizer.tensors.values().map(|tensor| (*tensor, name.as_str())).collect(),
            _ => Vec::new(),
        };
        let tensors = model.tensors().iter().enumerate();
        let by_name = tensors.map(|(tensor, stored)| (stored.info.name.as_str(), tensor)).collect();
        Parts { by_name, owners: all.iter().flat_map(of_weight).collect() }
    }

    /// Those that begin with `prefix` and are no state of a fake quantizer of `weight`.
    fn of(&self, prefix: &str, weight: &str) -> Vec<usize> {
        let with_prefix = self.by_name.range(prefix..).take_while(|(name, _)| name.starts_with(prefix));
        with_prefix.map(|(_, tensor)| *tensor).filter(|tensor| self.owners.get(tensor) != Some(&weight)).collect()
    }
}

/// How the weight `found` is quantized. Batch normalization within its module is folded into it, in `changes`.
///
/// # Errors
///
/// [`crate::Error::Tensor`] if the state does not fit the weight, or was never updated.
pub(super) fn read(
    model: &Model,
    index: &HashMap<&str, usize>,
    quantizer: &FakeQuantizer,
    state: &State,
    found: &Found,
    recipe: &Recipe,
    changes: &mut Changes,
) -> Result<TrainedWeight> {
    let info = &model.tensors()[found.tensor].info;
    let fail = |message: &str| Err(model.tensor_error(named(quantizer), message));
    if !info.dtype.is_decodable() || info.elements() == 0 {
        return Err(
            model.tensor_error(found.tensor, format!("expected a float weight with elements, found {} {:?}", info.dtype, info.shape))
        );
    }
    let norm = match &quantizer.site {
        Site::Exported { batch_norm, .. } => batch_norm.clone(),
        _ => fold::within(model, index, &found.module)?,
    };
    let folded = norm.map(|norm| fold::fold(model, index, found, &norm, changes)).transpose()?;
    if found.name != found.stored_name {
        let renamed = crate::tensor::TensorInfo { name: found.name.clone(), ..info.clone() };
        match changes.get_mut(&found.tensor) {
            Some(Some((info, _))) => info.name = found.name.clone(),
            _ => drop(changes.insert(found.tensor, Some((renamed, model.tensors()[found.tensor].data.clone())))),
        }
    }
    let Some((granularity, axis)) = groups(&info.shape, &state.scale_shape, recipe.settings.axis) else {
        let (scales, shape) = (&state.scale_shape, &info.shape);
        return fail(&format!("expected one scale, or one for each channel or group of the weight {shape:?}, found {scales:?}"));
    };
    let (codes, params) = match &state.watched {
        // What was learned is final, unless ranges are observed all the same.
        _ if state.is_learned && !state.is_observing => (None, state.params.clone()),
        Watched::Unknown => (None, state.params.clone()),
        Watched::Histogram => return fail("expected an observer of minimum and maximum for a weight, found one that keeps a histogram"),
        Watched::Nothing => return fail("expected a fake quantizer that has seen its weight, found one that has seen nothing"),
        Watched::Ranges(ranges) => {
            let Some(codes) = infer(&Codes::of_weights(), state.kind, ranges, state.eps, &state.params) else {
                return Err(not_from_ranges(model, quantizer));
            };
            // `convert_pt2e` does not show the weight again.
            let is_shown_again = state.is_observing && !matches!(quantizer.site, Site::Exported { .. });
            let ranges = if is_shown_again {
                let layout = GroupLayout::new(&info.shape, granularity, axis);
                let now = extents(model, found.tensor, folded.as_deref(), &layout);
                ranges.iter().zip(now).map(|(before, now)| update(*before, now)).collect()
            } else {
                ranges.clone()
            };
            (Some(codes), ranges.iter().map(|range| codes.choose(*range, state.eps)).collect())
        }
    };
    if let (Some(codes), Some(tensor)) = (codes, quantizer.tensors.get("zero_point"))
        && let Some(found) = state.params.iter().find(|params| !(codes.grid.qmin..=codes.grid.qmax).contains(&params.zero_point))
    {
        let message = format!("expected zero points from {} to {}, found {}", codes.grid.qmin, codes.grid.qmax, found.zero_point);
        return Err(model.tensor_error(*tensor, message));
    }
    Ok(TrainedWeight { params, granularity, axis, codes, eps: state.eps, clamps: state.is_learned })
}

/// Which values share a scale, by the number of scales; channels are those of `preferred` if that axis fits, else of the
/// first that does.
fn groups(shape: &[usize], scales: &[usize], preferred: i64) -> Option<(Granularity, usize)> {
    let count: usize = scales.iter().product();
    let rank = shape.len();
    let preferred = usize::try_from(if preferred < 0 { preferred + rank as i64 } else { preferred }).ok();
    let (rows, row) = (shape.first().copied()?, shape.last().copied()?);
    if let [first, groups] = *scales
        && groups > 1
        && rank == 2
        && first == rows
    {
        return row.is_multiple_of(groups).then(|| (Granularity::PerGroup(row / groups), 0));
    }
    if count == 1 {
        return Some((Granularity::PerTensor, 0));
    }
    let fits = |axis: &usize| shape.get(*axis) == Some(&count);
    let axis = preferred.filter(fits).or_else(|| (0..rank).find(fits))?;
    Some((Granularity::PerChannel, axis))
}

/// Smallest and largest value of every group of a weight, or of what it was changed to.
fn extents(model: &Model, tensor: usize, changed: Option<&[f32]>, layout: &GroupLayout) -> Vec<Range> {
    let elements = model.tensors()[tensor].info.elements();
    let mut scratch = Vec::new();
    let values = changed.unwrap_or_else(|| model.values(tensor, 0..elements, &mut scratch));
    let mut extents: Vec<Option<Range>> = vec![None; layout.groups()];
    layout.for_each_run(0..elements, |group, run| {
        let found = min_max(&values[run]).range();
        let extent = extents[group].get_or_insert(found);
        *extent = Range { min: extent.min.min(found.min), max: extent.max.max(found.max) };
    });
    extents.into_iter().map(|extent| extent.unwrap_or(Range::EMPTY)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_scales_says_what_they_are_for() {
        let channels = |axis| Some((Granularity::PerChannel, axis));
        struct Case {
            shape: &'static [usize],
            scales: &'static [usize],
            axis: i64,
            expected: Option<(Granularity, usize)>,
        }
        let cases = [
            Case { shape: &[4, 6], scales: &[1], axis: 0, expected: Some((Granularity::PerTensor, 0)) },
            Case { shape: &[4, 6], scales: &[], axis: 0, expected: Some((Granularity::PerTensor, 0)) },
            Case { shape: &[4, 6], scales: &[4], axis: 0, expected: channels(0) },
            Case { shape: &[4, 6], scales: &[6], axis: 0, expected: channels(1) },
            Case { shape: &[4, 4], scales: &[4], axis: 0, expected: channels(0) },
            Case { shape: &[4, 4], scales: &[4], axis: -1, expected: channels(1) },
            Case { shape: &[4, 6], scales: &[4, 1], axis: 0, expected: channels(0) },
            Case { shape: &[4, 6], scales: &[4, 3], axis: 0, expected: Some((Granularity::PerGroup(2), 0)) },
            Case { shape: &[4, 6], scales: &[4, 5], axis: 0, expected: None },
            Case { shape: &[4, 6], scales: &[5], axis: 0, expected: None },
            Case { shape: &[], scales: &[3], axis: 0, expected: None },
        ];
        for Case { shape, scales, axis, expected } in cases {
            assert_eq!(groups(shape, scales, axis), expected, "{shape:?} {scales:?} {axis}");
        }
    }
}
