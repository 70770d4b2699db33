//! One layer from values to codes: parameters, rounding, and the nearest codes where rounding otherwise gains nothing.

use super::hessian::{Hessian, LANES};
use super::tile::{Codes, Layer, Tile};
use super::{Context, Rounding, output_mse};
use crate::plan::TensorScheme;
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel;
use crate::quant::metrics::ErrorSums;
use crate::quant::params::Params;
use crate::quant::saturation::{PairCheck, SaturationSums};
use crate::stream;
use std::ops::Range;
use std::sync::Arc;

/// A weight as a matrix `[rows, features]`: where its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) rows: usize,
    pub(crate) features: usize,
    /// Elements from one row to the next.
    pub(crate) row_step: usize,
    /// Elements from one feature to the next.
    pub(crate) feature_step: usize,
}

impl View {
    /// The element of a row and a feature.
    pub(crate) fn element(&self, row: usize, feature: usize) -> usize {
        row * self.row_step + feature * self.feature_step
    }
}

/// What layers with the same inputs share.
pub(crate) struct Prepared {
    pub(crate) hessian: Arc<Hessian>,
    /// `None` for the nearest codes.
    pub(crate) rounding: Option<Arc<dyn Rounding>>,
}

/// What was found for one layer.
pub(crate) struct Solved {
    /// One for each group, in the order of the tensor's layout.
    pub(crate) params: Vec<Params>,
    /// A byte for each element, in the tensor's order.
    pub(crate) codes: Vec<u8>,
    pub(crate) sums: ErrorSums,
    pub(crate) gain: Gain,
    pub(crate) saturation: SaturationSums,
}

/// What an algorithm gained over the nearest codes with the same parameters, on the samples.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gain {
    /// The objective of the nearest codes.
    pub(crate) nearest: f64,
    /// That of the codes that were chosen.
    pub(crate) chosen: f64,
    /// Rows, and those that keep the nearest codes because others would be worse.
    pub(crate) rows: usize,
    pub(crate) nearest_rows: usize,
}

/// A weight with what its layers take: one of `inputs` for each equal share of the rows.
pub(crate) struct Problem<'a> {
    scheme: &'a TensorScheme,
    values: &'a [f32],
    view: View,
    inputs: &'a [Arc<Prepared>],
    context: Context,
    /// Pairs that are checked when codes were chosen.
    pairs: Option<&'a PairCheck>,
    /// `[rows, features]`.
    matrix: Vec<f32>,
    /// Features that share a scale, and groups of them in a row.
    group: usize,
    groups: usize,
    /// The group of the tensor's layout that each group of each row is.
    places: Vec<usize>,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(values: &'a [f32], view: View, scheme: &'a TensorScheme, inputs: &'a [Arc<Prepared>], context: Context) -> Self {
        let group = group_len(&scheme.layout, &view);
        let groups = view.features.div_ceil(group);
        let of_row = |row: usize| (0..groups).map(move |number| scheme.layout.group_of(view.element(row, number * group)));
        let matrix = if view.feature_step == 1 && view.row_step == view.features {
            values.to_vec()
        } else {
            (0..view.rows).flat_map(|row| (0..view.features).map(move |feature| values[view.element(row, feature)])).collect()
        };
        let places = (0..view.rows).flat_map(of_row).collect();
        Problem { scheme, values, view, inputs, context, pairs: None, matrix, group, groups, places }
    }

    /// The same with pairs that are checked, if there are any.
    pub(crate) fn with_pairs(self, pairs: Option<&'a PairCheck>) -> Self {
        Problem { pairs, ..self }
    }

    /// The rows that share inputs.
    fn rows(&self, number: usize) -> Range<usize> {
        let share = self.view.rows / self.inputs.len().max(1);
        number * share..(number + 1) * share
    }

    fn weights(&self, rows: &Range<usize>) -> &[f32] {
        &self.matrix[rows.start * self.view.features..rows.end * self.view.features]
    }

    /// Parameters of every group: those that were observed, or others that suit the inputs better.
    pub(crate) fn choose(&self, mut params: Vec<Params>) -> Vec<Params> {
        let is_shared = self.scheme.layout.groups() < self.places.len();
        if !self.scheme.observer.looks_at_inputs() || is_shared {
            return params;
        }
        for (number, inputs) in self.inputs.iter().enumerate() {
            let rows = self.rows(number);
            let places = &self.places[rows.start * self.groups..rows.end * self.groups];
            let start: Vec<Params> = places.iter().map(|place| params[*place]).collect();
            let layer = Layer {
                weights: self.weights(&rows),
                features: self.view.features,
                group: self.group,
                params: &start,
                clip: self.scheme.clip,
            };
            let chosen = output_mse::choose(&layer, &self.scheme.rule, &inputs.hessian, self.context.threads);
            places.iter().zip(chosen).for_each(|(place, chosen)| params[*place] = chosen);
        }
        params
    }

    /// Codes with these parameters.
    pub(crate) fn round(&self, params: Vec<Params>) -> Solved {
        let Problem { scheme, values, view, inputs, context, .. } = *self;
        let layout = &scheme.layout;
        let mut codes = vec![0; values.len()];
        layout.for_each_run(0..values.len(), |group, run| {
            kernel::quantize(&values[run.clone()], params[group], scheme.arithmetic, scheme.clip, &mut codes[run]);
        });
        let by_row: Vec<Params> = self.places.iter().map(|place| params[*place]).collect();
        let mut gain = Gain::default();
        let signed = scheme.codes.is_signed();
        for (number, prepared) in inputs.iter().enumerate() {
            let Some(rounding) = &prepared.rounding else { continue };
            let rows = self.rows(number);
            let layer = self.layer(&rows, &by_row);
            let positions = rounding.factor().positions();
            let tiles = stream::map(rows.len().div_ceil(LANES), context.threads, |number| {
                let tile = Tile::new(&layer, number * LANES, rounding.factor());
                let nearest = self.codes_of(&tile, rows.start, &codes, positions);
                let found = rounding.round(&tile);
                let before = tile.objective(&nearest, rounding.factor());
                let after = tile.objective(&found, rounding.factor());
                (tile.first, tile.count, found, before, after)
            });
            for (first, count, found, before, after) in tiles {
                for r in 0..count {
                    gain.rows += 1;
                    gain.nearest += before[r];
                    gain.chosen += before[r].min(after[r]);
                    if after[r] > before[r] {
                        gain.nearest_rows += 1;
                        continue;
                    }
                    let row = rows.start + first + r;
                    positions.iter().zip(&found).for_each(|(feature, found)| codes[view.element(row, *feature)] = found[r] as u8);
                }
            }
        }
        let params_of = |element: usize| params[layout.group_of(element)];
        let check = |check: &PairCheck| check.apply(0..values.len(), values, &mut codes, params_of, &mut ErrorSums::default());
        let saturation = self.pairs.map(check).unwrap_or_default();
        if saturation.changed > 0 {
            gain.chosen = self.objective(&codes, &by_row);
        }
        let mut sums = ErrorSums::default();
        layout.for_each_run(0..values.len(), |group, run| {
            sums.merge(&ErrorSums::exact(&values[run.clone()], &codes[run], signed, params[group]));
        });
        Solved { params, codes, sums, gain, saturation }
    }

    /// Rows as algorithms take them, with the parameters of all groups row by row.
    fn layer<'p>(&'p self, rows: &Range<usize>, by_row: &'p [Params]) -> Layer<'p> {
        Layer {
            weights: self.weights(rows),
            features: self.view.features,
            group: self.group,
            params: &by_row[rows.start * self.groups..rows.end * self.groups],
            clip: self.scheme.clip,
        }
    }

    /// The codes of a tile of the rows from `first` on, by position.
    fn codes_of(&self, tile: &Tile, first: usize, codes: &[u8], positions: &[usize]) -> Codes {
        let row = |r: usize| first + tile.first + if r < tile.count { r } else { 0 };
        let stored = |r: usize, feature: usize| {
            let code = codes[self.view.element(row(r), feature)];
            if self.scheme.codes.is_signed() { i32::from(code as i8) } else { i32::from(code) }
        };
        positions.iter().map(|feature| std::array::from_fn(|r| stored(r, *feature))).collect()
    }

    /// The objective of these codes, of all rows that have one.
    fn objective(&self, codes: &[u8], by_row: &[Params]) -> f64 {
        let of_inputs = |(number, prepared): (usize, &Arc<Prepared>)| {
            let Some(rounding) = &prepared.rounding else { return 0.0 };
            let (rows, factor) = (self.rows(number), rounding.factor());
            let layer = self.layer(&rows, by_row);
            let tiles = stream::map(rows.len().div_ceil(LANES), self.context.threads, |number| {
                let tile = Tile::new(&layer, number * LANES, factor);
                let objective = tile.objective(&self.codes_of(&tile, rows.start, codes, factor.positions()), factor);
                objective[..tile.count].iter().sum::<f64>()
            });
            tiles.into_iter().sum::<f64>()
        };
        self.inputs.iter().enumerate().map(of_inputs).sum()
    }
}

/// Features that share a scale.
fn group_len(layout: &GroupLayout, view: &View) -> usize {
    let group = |feature: usize| layout.group_of(view.element(0, feature));
    let first = group(0);
    (1..view.features).find(|feature| group(*feature) != first).unwrap_or(view.features)
}
