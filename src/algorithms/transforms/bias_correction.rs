//! Bias correction: the mean of what quantization changes of a layer's outputs is subtracted from its bias.
//!
//! ```text
//! bias' = bias + (W - W') mean(X)
//! ```
//!
//! [Nagel et al. 2019](https://arxiv.org/abs/1906.04721), section 4.2, with means that were observed: exact, output channel by
//! output channel. What is left of the error of outputs has the mean 0, so it is never larger. Layers are solved for it once
//! more than they are otherwise.

use super::on_graph::OnGraph;
use super::{Calibrated, Transform, TransformEntry};
use crate::algorithms::solve::View;
use crate::algorithms::solver::Solver;
use crate::calibration::inputs::stats::Detail;
use crate::error::{Error, Result};
use crate::plan::TensorScheme;
use crate::quant::params::Params;

/// Its name.
pub(crate) const NAME: &str = "bias-correction";

pub(super) const ENTRY: TransformEntry = TransformEntry {
    name: NAME,
    parameter: None,
    summary: "the mean error of outputs goes into biases, where layers have them",
    checkpoint: Some(&BiasCorrection),
    graph: Some(OnGraph::Biases),
};

struct BiasCorrection;

impl Transform for BiasCorrection {
    fn apply(&self, _value: Option<f64>, calibrated: Calibrated<'_>) -> Result<String> {
        let Calibrated { model, plan, inputs, layers, context } = calibrated;
        let mut corrected = Vec::new();
        {
            let model = &*model;
            let index = model.index();
            let solver = Solver::new(model, plan, inputs, layers.clone(), context);
            for (tensor, layer) in layers {
                let name = &model.tensors()[*tensor].info.name;
                let bias = name.strip_suffix(".weight").and_then(|layer| index.get(format!("{layer}.bias").as_str()).copied());
                let fits = |bias: &usize| {
                    let info = &model.tensors()[*bias].info;
                    info.dtype.is_decodable() && info.shape == [layer.view.rows]
                };
                let (Some(bias), [input]) = (bias.filter(fits), &layer.inputs[..]) else { continue };
                let mut means = inputs.inputs(input, Detail::Features, context.threads)?.means();
                if let Some(divisors) = inputs.divisors(input) {
                    means.iter_mut().zip(divisors).for_each(|(mean, divisor)| *mean /= f64::from(*divisor));
                }
                let solved = solver.solve(*tensor, None)?;
                let scheme = plan.scheme(*tensor).expect("only quantized tensors are solved");
                let mut scratch = Vec::new();
                let values = model.values(*tensor, 0..layer.view.rows * layer.view.features, &mut scratch);
                let quantized = Quantized { values, codes: &solved.codes, params: &solved.params, scheme };
                let corrections = quantized.corrections(layer.view, &[means]);
                let mut scratch = Vec::new();
                let old = model.values(bias, 0..layer.view.rows, &mut scratch);
                let new: Vec<f32> = old.iter().zip(corrections).map(|(old, by)| (f64::from(*old) + by) as f32).collect();
                corrected.push((bias, new));
            }
        }
        if corrected.is_empty() {
            let found = format!("{NAME}: expected a layer with a bias and known inputs, found none");
            return Err(Error::malformed(model.path(), found));
        }
        corrected.iter().for_each(|(bias, values)| model.replace(*bias, values));
        Ok(summary(corrected.len(), layers.len()))
    }
}

/// What was done, in a sentence.
pub(crate) fn summary(corrected: usize, layers: usize) -> String {
    format!("changed {corrected} biases of {layers} layers")
}

/// A weight with its codes.
pub(crate) struct Quantized<'a> {
    pub(crate) values: &'a [f32],
    /// A byte for each value.
    pub(crate) codes: &'a [u8],
    /// One for each group.
    pub(crate) params: &'a [Params],
    pub(crate) scheme: &'a TensorScheme,
}

impl Quantized<'_> {
    /// What has to be added to the output of each row of `view`, given the means of the features of inputs, of each equal share of
    /// the rows.
    pub(crate) fn corrections(&self, view: View, means: &[Vec<f64>]) -> Vec<f64> {
        let share = view.rows / means.len().max(1);
        let is_signed = self.scheme.codes.is_signed();
        let of_row = |row: usize| {
            let error = |feature: usize| {
                let element = view.element(row, feature);
                let params = self.params[self.scheme.layout.group_of(element)];
                let code = self.codes[element];
                let code = if is_signed { i32::from(code as i8) } else { i32::from(code) };
                f64::from(self.values[element]) - f64::from(code - params.zero_point) * f64::from(params.scale)
            };
            means[row / share].iter().enumerate().map(|(feature, mean)| error(feature) * mean).sum()
        };
        (0..view.rows).map(of_row).collect()
    }
}
