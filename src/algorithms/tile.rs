//! Some rows of a layer's weights side by side, in the order of a factor: what algorithms work on.

use super::hessian::{Factor, LANES, Lane};
use crate::quant::params::Params;
use crate::quant::scheme::Grid;

/// The weights of a layer as a matrix, with the parameters of their codes.
pub(crate) struct Layer<'a> {
    /// `[rows, features]`, row by row.
    pub(crate) weights: &'a [f32],
    pub(crate) features: usize,
    /// Features that share a scale.
    pub(crate) group: usize,
    /// One for each group of each row, row by row.
    pub(crate) params: &'a [Params],
    /// The codes that values are clipped to.
    pub(crate) clip: Grid,
}

impl Layer<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.weights.len() / self.features.max(1)
    }

    /// Groups of a row.
    pub(crate) fn groups(&self) -> usize {
        self.features.div_ceil(self.group)
    }
}

/// Codes by position, then by row.
pub(crate) type Codes = Vec<[i32; LANES]>;

/// Up to [`LANES`] rows; others repeat the first.
pub(crate) struct Tile {
    /// The first row, and how many there are.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// By position.
    pub(crate) weights: Vec<Lane>,
    /// By position: the group that holds the feature.
    groups: Vec<usize>,
    /// By group.
    scales: Vec<Lane>,
    zero_points: Vec<Lane>,
    low: f32,
    high: f32,
}

impl Tile {
    /// The rows of `layer` from `first` on, in the order of `factor`.
    pub(crate) fn new(layer: &Layer<'_>, first: usize, factor: &Factor) -> Self {
        let count = LANES.min(layer.rows() - first);
        let row = |r: usize| first + if r < count { r } else { 0 };
        let weight = |feature: &usize| std::array::from_fn(|r| layer.weights[row(r) * layer.features + feature]);
        let params = |r: usize, group: usize| layer.params[row(r) * layer.groups() + group];
        Tile {
            first,
            count,
            weights: factor.positions().iter().map(weight).collect(),
            groups: factor.positions().iter().map(|feature| feature / layer.group).collect(),
            scales: (0..layer.groups()).map(|group| std::array::from_fn(|r| params(r, group).scale)).collect(),
            zero_points: (0..layer.groups()).map(|group| std::array::from_fn(|r| params(r, group).zero_point as f32)).collect(),
            low: layer.clip.qmin as f32,
            high: layer.clip.qmax as f32,
        }
    }

    /// The scales at a position.
    pub(crate) fn scales(&self, position: usize) -> &Lane {
        &self.scales[self.groups[position]]
    }

    /// The nearest codes to `targets` at a position.
    pub(crate) fn codes(&self, position: usize, targets: &Lane) -> [i32; LANES] {
        let (scales, zero_points) = (self.scales(position), &self.zero_points[self.groups[position]]);
        std::array::from_fn(|r| {
            let code = (targets[r] / scales[r]).round_ties_even() + zero_points[r];
            code.clamp(self.low, self.high) as i32
        })
    }

    /// Whether a code is one of the grid.
    pub(crate) fn holds(&self, code: i32) -> bool {
        (self.low as i32..=self.high as i32).contains(&code)
    }

    /// What codes at a position stand for.
    pub(crate) fn values(&self, position: usize, codes: &[i32; LANES]) -> Lane {
        let (scales, zero_points) = (self.scales(position), &self.zero_points[self.groups[position]]);
        std::array::from_fn(|r| (codes[r] as f32 - zero_points[r]) * scales[r])
    }

    /// The objective of each row with these codes.
    pub(crate) fn objective(&self, codes: &Codes, factor: &Factor) -> [f64; LANES] {
        let mut errors = vec![[0.0; LANES]; self.weights.len()];
        factor.sweep(&self.weights, &mut errors, |position, _| self.values(position, &codes[position])).objective
    }
}
