//! What a model holds: names, types, shapes, ranges, the distribution of values, and what would become of each tensor.

use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::model::Model;
use crate::plan::{Decision, Plan};
use crate::recipe::Recipe;
use crate::stream;
use serde::Serialize;
use std::path::Path;

/// Bins of a tensor's histogram, from its smallest to its largest value.
pub const BINS: usize = 16;

/// What [`TensorInspection::plan`] says of tensors that are quantized.
pub const QUANTIZE: &str = "quantize";

/// Most values that a histogram counts; of longer tensors, evenly spread pieces.
const SAMPLED: usize = 1 << 20;

/// Elements that are read at a time.
const PIECE: usize = 1 << 14;

/// What [`inspect`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Size of the files of weights, in bytes.
    pub bytes: u64,
    /// Number of files of weights.
    pub files: usize,
    /// Free text of the header of the first file.
    pub metadata: Vec<(String, String)>,
    /// Every tensor.
    pub tensors: Vec<TensorInspection>,
}

/// One tensor of an [`Inspection`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorInspection {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: &'static str,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// `quantize`, or why not.
    pub plan: String,
    /// Its values, for float tensors that are not empty.
    #[serde(flatten)]
    pub values: Option<ValueSummary>,
}

/// Values of a tensor.
#[derive(Clone, Debug, Serialize)]
pub struct ValueSummary {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Whether there is no NaN or infinity; if there is, `min` and `max` may leave it out.
    pub finite: bool,
    /// Counts of (sampled) values in equal bins from `min` to `max`.
    pub histogram: [u64; BINS],
}

/// Looks at the model at `path`; `values` says whether to read values, not only headers.
///
/// # Errors
///
/// As [`formats::open`].
pub fn inspect(path: &Path, read: &ReadOptions, values: bool, threads: usize) -> Result<Inspection> {
    let model = formats::open(path, read)?;
    let plan = Plan::new(&model, &Recipe::default())?;
    let look = |tensor: usize| {
        let info = &model.tensors()[tensor].info;
        let values = if values { summarize(&model, tensor) } else { None };
        let is_finite = values.as_ref().is_none_or(|values| values.finite);
        let plan = match &plan.decisions[tensor] {
            Decision::Quantize(_) | Decision::Keep { is_weight: true, .. } if !is_finite => "an error: NaN or Inf".into(),
            Decision::Quantize(_) => QUANTIZE.into(),
            Decision::Keep { reason, .. } => reason.clone(),
        };
        TensorInspection { name: info.name.clone(), dtype: info.dtype.name(), shape: info.shape.clone(), plan, values }
    };
    Ok(Inspection {
        bytes: model.bytes(),
        files: model.files().len(),
        metadata: model.files().first().map(|file| file.metadata().to_vec()).unwrap_or_default(),
        tensors: stream::map(model.tensors().len(), threads, look),
    })
}

fn summarize(model: &Model, tensor: usize) -> Option<ValueSummary> {
    let info = &model.tensors()[tensor].info;
    let elements = info.elements();
    if elements == 0 || !info.dtype.is_decodable() {
        return None;
    }
    let mut scratch = Vec::new();
    let mut extent = crate::quant::kernel::Extent::NONE;
    for start in (0..elements).step_by(PIECE) {
        let piece = model.values(tensor, start..(start + PIECE).min(elements), &mut scratch);
        extent = extent.merge(crate::quant::kernel::min_max(piece));
    }
    let range = extent.range();
    let mut histogram = [0; BINS];
    let scale = BINS as f64 / (f64::from(range.max) - f64::from(range.min)).max(f64::MIN_POSITIVE);
    let step = PIECE * elements.div_ceil(SAMPLED);
    for start in (0..elements).step_by(step) {
        for value in model.values(tensor, start..(start + PIECE).min(elements), &mut scratch).iter().filter(|value| value.is_finite()) {
            let bin = ((f64::from(*value) - f64::from(range.min)) * scale) as usize;
            histogram[bin.min(BINS - 1)] += 1;
        }
    }
    Some(ValueSummary { min: range.min, max: range.max, finite: extent.finite, histogram })
}
