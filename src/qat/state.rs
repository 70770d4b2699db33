//! The tensors of one fake quantizer, checked.

use super::names::{FakeQuantizer, POST_PROCESS};
use super::params::Kind;
use crate::error::{Error, Result, show_name};
use crate::model::Model;
use crate::quant::params::{Params, Range};
use crate::tensor::Dtype;

/// What a fake quantizer's state says.
pub(super) struct State {
    /// As stored: one, or one a channel or group.
    pub params: Vec<Params>,
    /// Dimensions of the scales.
    pub scale_shape: Vec<usize>,
    /// Which formula the scales are by.
    pub kind: Kind,
    /// Whether scales and zero points were learned themselves, so that they are final as they are stored.
    pub is_learned: bool,
    /// Whether ranges are still updated by what is quantized.
    pub is_observing: bool,
    pub watched: Watched,
    /// The smallest scale.
    pub eps: f32,
}

/// What the observer within a fake quantizer has seen.
pub(super) enum Watched {
    /// There is no observer, or none that keeps ranges.
    Unknown,
    /// Nothing yet.
    Nothing,
    /// Ranges, one for each scale.
    Ranges(Vec<Range>),
    /// A histogram, whose ranges are searched for.
    Histogram,
}

/// State dicts of either age: `min_vals` is what observers of channels called it before version 3.
const MIN: [&str; 2] = ["min_val", "min_vals"];
const MAX: [&str; 2] = ["max_val", "max_vals"];

impl State {
    /// Reads the state of `quantizer`.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] naming the tensor that is missing, of the wrong type or length, or holds what no quantizer has: a
    /// scale that is not finite and positive, a range that is not finite or the wrong way round.
    pub(super) fn read(model: &Model, quantizer: &FakeQuantizer) -> Result<State> {
        let find = |name: &str| quantizer.tensors.get(name).copied();
        let within = |name: &str| find(&format!("{POST_PROCESS}.{name}"));
        let is_learned = find("static_enabled").is_some() || find("learning_enabled").is_some();
        let scale = find("scale").ok_or_else(|| {
            let some = *quantizer.tensors.values().next().expect("a quantizer has tensors");
            model.tensor_error(some, format!("expected {} beside it, found none", show_name(&format!("{}.scale", quantizer.root))))
        })?;
        let eps = match find("eps").or_else(|| within("eps")) {
            None => f32::EPSILON,
            Some(tensor) => match floats(model, tensor)?.as_slice() {
                [eps] if eps.is_finite() && *eps > 0.0 => *eps,
                found => return Err(model.tensor_error(tensor, format!("expected one finite positive number, found {found:?}"))),
            },
        };
        let scales = floats(model, scale)?;
        // Steps may have taken learned scales below the smallest, where the next use of them puts them again.
        let is_scale = |scale: &f32| scale.is_finite() && (*scale > 0.0 || is_learned);
        if let Some((at, found)) = scales.iter().enumerate().find(|(_, scale)| !is_scale(scale)) {
            return Err(model.tensor_error(scale, format!("expected finite positive numbers, found {found} at index {at}")));
        }
        let zero_points = match find("zero_point") {
            Some(tensor) => zero_points(model, tensor, scales.len(), is_learned || !has_observer(quantizer))?,
            // Symmetric quantizers of torchao keep theirs out of the state.
            None if !has_observer(quantizer) && !is_learned => vec![0; scales.len()],
            None => {
                let missing = show_name(&format!("{}.zero_point", quantizer.root)).to_string();
                return Err(model.tensor_error(scale, format!("expected {missing} beside it, found none")));
            }
        };
        let scales = scales.into_iter().map(|scale| if is_learned { scale.max(eps) } else { scale });
        let enabled = |name: &str| find(name).map(|tensor| flag(model, tensor)).transpose();
        let is_fused = find("fake_quant_enabled").is_some_and(|tensor| model.tensors()[tensor].info.dtype == Dtype::I64);
        enabled("fake_quant_enabled")?;
        let is_observing = enabled(if is_learned { "static_enabled" } else { "observer_enabled" })?.unwrap_or(false);
        let params: Vec<Params> = scales.zip(zero_points).map(|(scale, zero_point)| Params { scale, zero_point }).collect();
        let watched = match (MIN.iter().find_map(|name| within(name)), MAX.iter().find_map(|name| within(name))) {
            _ if within("histogram").is_some() => Watched::Histogram,
            (Some(min), Some(max)) => watched(model, min, max, params.len())?,
            (None, None) => Watched::Unknown,
            (Some(tensor), None) | (None, Some(tensor)) => {
                return Err(model.tensor_error(tensor, "expected min_val and max_val, found one of them"));
            }
        };
        let kind = if is_fused { Kind::Fused } else { Kind::Plain };
        let scale_shape = model.tensors()[scale].info.shape.clone();
        Ok(State { params, scale_shape, kind, is_learned, is_observing, watched, eps })
    }
}

/// The tensor that messages about a quantizer as a whole name.
pub(super) fn named(quantizer: &FakeQuantizer) -> usize {
    let first = quantizer.tensors.values().next();
    *quantizer.tensors.get("scale").or(first).expect("a quantizer has tensors")
}

fn has_observer(quantizer: &FakeQuantizer) -> bool {
    quantizer.tensors.keys().any(|name| name.starts_with(POST_PROCESS))
}

fn watched(model: &Model, min: usize, max: usize, groups: usize) -> Result<Watched> {
    let (mins, maxs) = (floats(model, min)?, floats(model, max)?);
    if mins.len() != maxs.len() {
        return Err(model.tensor_error(max, format!("expected {} values as of min_val, found {}", mins.len(), maxs.len())));
    }
    // An observer of channels begins with no values, others with an empty range.
    if mins.is_empty() || mins.iter().zip(&maxs).all(|(min, max)| *min == f32::INFINITY && *max == f32::NEG_INFINITY) {
        return Ok(Watched::Nothing);
    }
    if mins.len() != groups {
        return Err(model.tensor_error(min, format!("expected {groups} values, one for each scale, found {}", mins.len())));
    }
    for (at, (lo, hi)) in mins.iter().zip(&maxs).enumerate() {
        if !(lo.is_finite() && hi.is_finite() && lo <= hi) {
            return Err(model.tensor_error(min, format!("expected a finite range to max_val, found {lo} to {hi} at index {at}")));
        }
    }
    Ok(Watched::Ranges(mins.into_iter().zip(maxs).map(|(min, max)| Range { min, max }).collect()))
}

/// All values of a float tensor as f32.
fn floats(model: &Model, tensor: usize) -> Result<Vec<f32>> {
    let info = &model.tensors()[tensor].info;
    if !matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16) {
        return Err(model.tensor_error(tensor, format!("expected a float type, found {}", info.dtype)));
    }
    Ok(model.values(tensor, 0..info.elements(), &mut Vec::new()).to_vec())
}

/// All values of an integer tensor; `None` if it has another type.
fn integers(model: &Model, tensor: usize) -> Option<Vec<i64>> {
    let bytes = model.tensor_bytes(tensor);
    let chunks = |width| bytes.chunks_exact(width);
    let four = |bytes: &[u8]| bytes.try_into().expect("there are four");
    let eight = |bytes: &[u8]| bytes.try_into().expect("there are eight");
    Some(match model.tensors()[tensor].info.dtype {
        Dtype::U8 | Dtype::Bool => bytes.iter().map(|byte| i64::from(*byte)).collect(),
        Dtype::I8 => bytes.iter().map(|byte| i64::from(*byte as i8)).collect(),
        Dtype::I32 => chunks(4).map(|bytes| i64::from(i32::from_le_bytes(four(bytes)))).collect(),
        Dtype::I64 => chunks(8).map(|bytes| i64::from_le_bytes(eight(bytes))).collect(),
        _ => return None,
    })
}

/// Zero points; learned ones are floats, which are rounded when they are used.
fn zero_points(model: &Model, tensor: usize, scales: usize, may_be_float: bool) -> Result<Vec<i32>> {
    let dtype = model.tensors()[tensor].info.dtype;
    let error = |message: String| model.tensor_error(tensor, message);
    let values: Vec<i32> = match integers(model, tensor) {
        Some(values) => values
            .into_iter()
            .map(|value| i32::try_from(value).map_err(|_| error(format!("expected zero points of codes, found {value}"))))
            .collect::<Result<_>>()?,
        None if may_be_float => {
            let rounded = |value: f32| match value.round_ties_even() {
                value if value.abs() < 65536.0 => Ok(value as i32),
                value => Err(error(format!("expected zero points of codes, found {value}"))),
            };
            floats(model, tensor)?.into_iter().map(rounded).collect::<Result<_>>()?
        }
        None => return Err(error(format!("expected integers, found {dtype}: zero points that are floats have no codes"))),
    };
    if values.len() != scales {
        return Err(error(format!("expected {scales} values, one for each scale, found {}", values.len())));
    }
    Ok(values)
}

/// A switch: one integer.
fn flag(model: &Model, tensor: usize) -> Result<bool> {
    match integers(model, tensor).as_deref() {
        Some([value @ (0 | 1)]) => Ok(*value == 1),
        _ => {
            let info = &model.tensors()[tensor].info;
            let error: Error = model.tensor_error(tensor, format!("expected one integer, 0 or 1, found {} {:?}", info.dtype, info.shape));
            Err(error)
        }
    }
}
