//! A grid over all scales from the widest down to where clipping costs more than the best found, refined around the
//! best: for few codes, whose error is smooth in the scale, and for histograms.

use super::space::Space;
use crate::quant::params::Params;

/// Ratio of neighbouring scales of the first grid.
const RATIO: f64 = 0.975;

/// Smallest scale tried, relative to the largest.
const SMALLEST: f64 = 1.0 / 512.0;

/// Scales, relative to the largest error tolerated while looking further down.
const HOPELESS: f64 = 4.0;

pub(super) fn search(space: &Space, values: &[f32], weights: Option<&[f32]>) -> Vec<Params> {
    let errors = |trials: &[Params]| match weights {
        None => space.errors(values, trials),
        Some(weights) => space.weighted_errors(values, weights, trials),
    };
    let mut tried: Vec<(f64, Params)> = Vec::new();
    let largest = space.largest_scale();
    let mut scale = largest;
    let mut zero_point = space.widest.zero_point;
    let mut least = f64::INFINITY;
    while scale > largest * SMALLEST {
        if space.rule.symmetric {
            let scales: Vec<f64> = (0..4).map(|i| scale * RATIO.powi(i)).collect();
            let trials: Vec<Params> = scales.iter().map(|s| space.params(*s, zero_point)).collect();
            tried.extend(errors(&trials).into_iter().zip(trials));
            scale = scales[3] * RATIO;
        } else {
            let (error, params) = best_zero_point(space, &errors, scale, zero_point);
            zero_point = params.zero_point;
            tried.push((error, params));
            scale *= RATIO;
        }
        least = tried.iter().fold(least, |least, (error, _)| least.min(*error));
        if tried.last().is_some_and(|(error, _)| *error > HOPELESS * least) {
            break;
        }
    }
    refine(space, &errors, tried)
}

/// Walks from `start` to a zero point that is better than its neighbours.
fn best_zero_point(space: &Space, errors: &impl Fn(&[Params]) -> Vec<f64>, scale: f64, start: i32) -> (f64, Params) {
    let (qmin, qmax) = (space.rule.grid.qmin, space.rule.grid.qmax);
    let mut center = start;
    loop {
        let trials: Vec<Params> = (center - 2..=center + 1).filter(|z| (qmin..=qmax).contains(z)).map(|z| space.params(scale, z)).collect();
        let (error, params) = least(errors(&trials).into_iter().zip(trials)).expect("the start is on the grid");
        let inside = params.zero_point == center || params.zero_point == center - 1;
        let at_end = params.zero_point == qmin || params.zero_point == qmax;
        if inside || at_end || params.zero_point == start && center != start {
            return (error, params);
        }
        center = params.zero_point;
    }
}

/// Halves the distance between scales three times around each of the best three.
fn refine(space: &Space, errors: &impl Fn(&[Params]) -> Vec<f64>, mut tried: Vec<(f64, Params)>) -> Vec<Params> {
    sort(&mut tried);
    let mut step = 1.0 - RATIO;
    for _ in 0..6 {
        step *= 0.5;
        let centers: Vec<Params> = tried.iter().take(2).map(|(_, params)| *params).collect();
        let near = |params: &Params| {
            let (scale, zero_point) = (f64::from(params.scale), params.zero_point);
            [(1.0 - step, 0), (1.0 + step, 0), (1.0 - step, -1), (1.0 - step, 1), (1.0 + step, -1), (1.0 + step, 1)]
                .map(|(factor, shift)| (scale * factor, zero_point + shift))
        };
        let free = !space.rule.symmetric;
        let trials: Vec<Params> = centers
            .iter()
            .flat_map(|params| near(params).into_iter().take(if free { 6 } else { 2 }))
            .filter(|(_, z)| (space.rule.grid.qmin..=space.rule.grid.qmax).contains(z))
            .map(|(scale, z)| space.params(scale, z))
            .collect();
        tried.extend(errors(&trials).into_iter().zip(trials));
        sort(&mut tried);
    }
    tried.into_iter().map(|(_, params)| params).collect()
}

fn sort(tried: &mut [(f64, Params)]) {
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
}

fn least(tried: impl Iterator<Item = (f64, Params)>) -> Option<(f64, Params)> {
    tried.min_by(|a, b| a.0.total_cmp(&b.0))
}
