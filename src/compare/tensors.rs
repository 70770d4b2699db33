//! How far a quantized model is from the float one, tensor by tensor: values as f32, as they are quantized.

use super::{Difference, Sums};
use crate::error::{Error, Result};
use crate::formats::{self, ReadOptions};
use crate::gates::{GateRow, Gates, Kind, Measure, Subject};
use crate::model::Model;
use crate::outputs::document::{self, Document};
use crate::outputs::quantized::{DequantizeScratch, QuantizedModel, sidecar_of_codes};
use crate::recipe::Pattern;
use crate::stream;
use serde::Serialize;
use std::path::Path;

/// Elements that are compared at a time.
const PIECE: usize = 1 << 16;

/// One tensor of a [`Comparison`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// Whether it is stored as codes.
    pub quantized: bool,
    /// How it differs.
    #[serde(flatten)]
    pub difference: Difference,
}

/// The result of [`compare`].
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// All float tensors, worst first.
    pub tensors: Vec<TensorDifference>,
    /// Over all their elements.
    pub total: Difference,
}

impl Comparison {
    /// Judges every tensor, in their order.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Usage`] if a pattern matches no tensor.
    pub fn judge(&self, gates: &Gates) -> Result<Vec<GateRow>> {
        let is_known = |measure, pattern: &_| {
            let matches = |tensor: &TensorDifference| Pattern::matches(pattern, &tensor.name);
            measure != Measure::Top1 && self.tensors.iter().any(matches)
        };
        gates.check_patterns("a float tensor", is_known)?;
        let judge = |tensor: &TensorDifference| {
            let subject = Subject { kind: Kind::Tensor, name: &tensor.name, difference: tensor.difference, top1: None };
            gates.judge(&subject, true, |pattern| pattern.matches(&tensor.name))
        };
        Ok(self.tensors.iter().flat_map(judge).collect())
    }
}

/// Compares the model `float` with `quantized`: an output of ours, or another float model.
///
/// # Errors
///
/// As [`formats::open`] and [`QuantizedModel::open`]; [`crate::Error::Tensor`] if a tensor is missing on one side or has another
/// shape.
pub fn compare(float: &Path, quantized: &Path, read: &ReadOptions, threads: usize) -> Result<Comparison> {
    let float = formats::open(float, read)?;
    let other = Other::open(quantized, read)?;
    match &other {
        Other::Quantized(quantized) => quantized.check_content(threads)?,
        Other::Float(_) if sidecar_of_codes(&float).is_some() => {
            return Err(Error::Usage("compare: expected the float model, then the quantized one, found them the other way round".into()));
        }
        Other::Float(_) => {}
    }
    let index = other.model().index();
    let mut pairs = Vec::new();
    for (tensor, stored) in float.tensors().iter().enumerate() {
        let Some(&counterpart) = index.get(stored.info.name.as_str()) else {
            return Err(float.tensor_error(tensor, "expected in both models, found only here"));
        };
        let (shape, dtype) = other.shape_and_dtype(counterpart);
        let comparable = dtype == stored.info.dtype || (dtype.is_decodable() && stored.info.dtype.is_decodable());
        if shape != stored.info.shape || !comparable {
            let (want, want_shape) = (stored.info.dtype, &stored.info.shape);
            return Err(
                float.tensor_error(tensor, format!("expected {want} {want_shape:?} in the other model too, found {dtype} {shape:?}"))
            );
        }
        if dtype.is_decodable() {
            pairs.push((tensor, counterpart));
        } else if float.tensor_bytes(tensor) != other.model().tensor_bytes(counterpart) {
            return Err(float.tensor_error(tensor, format!("expected the same {dtype} values in the other model, found others")));
        }
    }
    let names = float.index();
    if let Some(extra) = other.tensors().into_iter().find(|tensor| !names.contains_key(other.model().tensors()[*tensor].info.name.as_str()))
    {
        return Err(other.model().tensor_error(extra, "expected in both models, found only here"));
    }
    let sums = stream::map(pairs.len(), threads, |i| compare_tensor(&float, &other, pairs[i]));
    let mut total = Sums::default();
    sums.iter().for_each(|sums| total.merge(sums));
    let difference = |((tensor, counterpart), sums): (&(usize, usize), &Sums)| TensorDifference {
        name: float.tensors()[*tensor].info.name.clone(),
        quantized: other.is_quantized(*counterpart),
        difference: sums.difference(),
    };
    let mut tensors: Vec<TensorDifference> = pairs.iter().zip(&sums).map(difference).collect();
    tensors.sort_by(|a, b| a.difference.quality().total_cmp(&b.difference.quality()).then_with(|| a.name.cmp(&b.name)));
    Ok(Comparison { tensors, total: total.difference() })
}

/// The model that is judged.
pub(super) enum Other {
    Quantized(Box<QuantizedModel>),
    Float(Model),
}

impl Other {
    pub(super) fn open(path: &Path, read: &ReadOptions) -> Result<Self> {
        // A JSON file of the same name need not be a sidecar.
        if QuantizedModel::is_of_others(path, read) {
            return QuantizedModel::open(path, read).map(|model| Other::Quantized(Box::new(model)));
        }
        let sidecar = match document::find(path, read) {
            Ok(sidecar) => Document::read(&sidecar),
            // One that must not be followed: without it codes would be taken for values.
            Err(error) if error.exit_code() == 1 => return Err(error),
            Err(error) => Err(error),
        };
        match sidecar {
            Ok(_) => QuantizedModel::open(path, read).map(|model| Other::Quantized(Box::new(model))),
            Err(error) if path.extension().is_some_and(|extension| extension == "json") => Err(error),
            Err(_) => formats::open(path, read).map(Other::Float),
        }
    }

    pub(super) fn model(&self) -> &Model {
        match self {
            Other::Quantized(quantized) => &quantized.model,
            Other::Float(model) => model,
        }
    }

    fn tensors(&self) -> Vec<usize> {
        match self {
            Other::Quantized(quantized) => quantized.tensors().collect(),
            Other::Float(model) => (0..model.tensors().len()).collect(),
        }
    }

    fn shape_and_dtype(&self, tensor: usize) -> (&[usize], crate::tensor::Dtype) {
        match self {
            Other::Quantized(quantized) => (quantized.shape(tensor), quantized.dtype(tensor)),
            Other::Float(model) => (&model.tensors()[tensor].info.shape, model.tensors()[tensor].info.dtype),
        }
    }

    fn is_quantized(&self, tensor: usize) -> bool {
        matches!(self, Other::Quantized(quantized) if quantized.is_quantized(tensor))
    }

    pub(super) fn values<'a>(&'a self, tensor: usize, elements: std::ops::Range<usize>, scratch: &'a mut DequantizeScratch) -> &'a [f32] {
        match self {
            Other::Quantized(quantized) => quantized.values(tensor, elements, scratch),
            Other::Float(model) => model.values(tensor, elements, &mut scratch.values),
        }
    }
}

fn compare_tensor(float: &Model, other: &Other, (tensor, counterpart): (usize, usize)) -> Sums {
    let elements = float.tensors()[tensor].info.elements();
    let (mut scratch, mut other_scratch) = (Vec::new(), DequantizeScratch::default());
    let mut sums = Sums::default();
    for start in (0..elements).step_by(PIECE) {
        let range = start..(start + PIECE).min(elements);
        let a = float.values(tensor, range.clone(), &mut scratch);
        let b = other.values(counterpart, range, &mut other_scratch);
        a.iter().zip(b).for_each(|(a, b)| sums.add(f64::from(*a), f64::from(*b)));
    }
    sums
}
