//! How far a quantized model is from the float one, tensor by tensor: values as f32, as they are quantized, sums in f64.
//!
//! ```text
//! SQNR = 10 log10(Σ x² / Σ (x − x')²) dB      MSE = Σ (x − x')² / n      cosine = Σ x x' / √(Σ x² Σ x'²)
//! ```

use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::model::Model;
use crate::outputs::document::{self, Document};
use crate::outputs::quantized::{DequantizeScratch, QuantizedModel};
use crate::stream;
use serde::Serialize;
use std::path::Path;

/// Elements that are compared at a time.
const PIECE: usize = 1 << 16;

/// The difference of two tensors, or of two models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Cosine of the angle between both; `None` where one is all zero.
    pub cosine: Option<f64>,
    /// Largest absolute difference, in real units.
    pub max_abs: f64,
    /// Mean squared difference, in squared real units.
    pub mse: f64,
    /// Signal to noise in dB; `None` where there is no difference, or no signal.
    pub sqnr_db: Option<f64>,
}

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

/// What a comparison must not fall short of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gates {
    /// Least SQNR of every tensor, in dB.
    pub min_sqnr: Option<f64>,
    /// Largest MSE of every tensor.
    pub max_mse: Option<f64>,
}

impl Comparison {
    /// The tensors that do not pass.
    pub fn failing(&self, gates: &Gates) -> Vec<&TensorDifference> {
        let fails = |tensor: &&TensorDifference| {
            let Difference { sqnr_db, mse, .. } = tensor.difference;
            // A tensor that lost everything it had has no SQNR to compare; without any error it passes.
            let sqnr = sqnr_db.unwrap_or(if mse == 0.0 { f64::INFINITY } else { f64::NEG_INFINITY });
            gates.min_sqnr.is_some_and(|min| sqnr < min) || gates.max_mse.is_some_and(|max| mse > max || mse.is_nan())
        };
        self.tensors.iter().filter(fails).collect()
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
    let badness = |tensor: &TensorDifference| match tensor.difference {
        Difference { sqnr_db: Some(db), .. } => db,
        Difference { mse: 0.0, .. } => f64::INFINITY,
        _ => f64::NEG_INFINITY,
    };
    tensors.sort_by(|a, b| badness(a).total_cmp(&badness(b)).then_with(|| a.name.cmp(&b.name)));
    Ok(Comparison { tensors, total: total.difference() })
}

/// The model that is judged.
enum Other {
    Quantized(Box<QuantizedModel>),
    Float(Model),
}

impl Other {
    fn open(path: &Path, read: &ReadOptions) -> Result<Self> {
        // A JSON file of the same name need not be a sidecar.
        let sidecar = document::find(path).and_then(|sidecar| Document::read(&sidecar));
        match sidecar {
            Ok(_) => QuantizedModel::open(path, read).map(|model| Other::Quantized(Box::new(model))),
            Err(error) if path.extension().is_some_and(|extension| extension == "json") => Err(error),
            Err(_) => formats::open(path, read).map(Other::Float),
        }
    }

    fn model(&self) -> &Model {
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

    fn values<'a>(&'a self, tensor: usize, elements: std::ops::Range<usize>, scratch: &'a mut DequantizeScratch) -> &'a [f32] {
        match self {
            Other::Quantized(quantized) => quantized.values(tensor, elements, scratch),
            Other::Float(model) => model.values(tensor, elements, &mut scratch.values),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Sums {
    count: u64,
    error: f64,
    a: f64,
    b: f64,
    product: f64,
    max: f64,
}

impl Sums {
    fn merge(&mut self, other: &Sums) {
        self.count += other.count;
        self.error += other.error;
        self.a += other.a;
        self.b += other.b;
        self.product += other.product;
        self.max = self.max.max(other.max);
    }

    fn difference(&self) -> Difference {
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        Difference {
            cosine: finite(self.product / (self.a * self.b).sqrt()).map(|cosine| cosine.clamp(-1.0, 1.0)),
            max_abs: self.max,
            mse: if self.count == 0 { 0.0 } else { self.error / self.count as f64 },
            sqnr_db: finite(10.0 * (self.a / self.error).log10()),
        }
    }
}

fn compare_tensor(float: &Model, other: &Other, (tensor, counterpart): (usize, usize)) -> Sums {
    let elements = float.tensors()[tensor].info.elements();
    let (mut scratch, mut other_scratch) = (Vec::new(), DequantizeScratch::default());
    let mut sums = Sums { count: elements as u64, ..Sums::default() };
    for start in (0..elements).step_by(PIECE) {
        let range = start..(start + PIECE).min(elements);
        let a = float.values(tensor, range.clone(), &mut scratch);
        let b = other.values(counterpart, range, &mut other_scratch);
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            // Values that both keep, such as infinities of a mask, do not differ.
            let error = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { a - b };
            sums.error += error * error;
            sums.a += a * a;
            sums.b += b * b;
            sums.product += a * b;
            sums.max = sums.max.max(error.abs());
        }
    }
    sums
}
