//! What may be spared: the weight of one or several layers with all that it quantizes, and which of them to spare first.

use super::measure::Noise;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Share of the multiply-adds, of layers with constant weights, that stays in integers whatever is lost.
pub(super) const LEAST_INTEGER_SHARE: f64 = 0.9;

/// Share of the elements of weights that become floats again at most: the output is to be small, too.
const MOST_FLOAT_SIZE: f64 = 0.1;

/// Most layers whose values are measured with several observers.
const REFINED_LAYERS: usize = 16;

/// What the layers that are not refined may add, as a share of the noise that is allowed.
const NEGLIGIBLE: f64 = 0.25;

/// A layer that adds less than this share of the noise that is allowed is never spared.
pub(super) const TOO_LITTLE: f64 = 0.02;

/// What sparing any layer costs, as a share of all multiply-adds: values are converted around it.
const FIXED_COST: f64 = 0.003;

/// A weight that layers of the top graph compute with in integers, or a small one that is only stored as codes.
pub(super) struct Unit {
    pub tensor: usize,
    pub layers: Vec<usize>,
    /// Its share of all multiply-adds.
    pub share: f64,
    /// Its share of the elements of all weights.
    pub size: f64,
    /// The values that its layers take and give.
    pub values: BTreeSet<String>,
    /// Whether ranges may be found when the model runs.
    pub is_product: bool,
    /// With all that it quantizes.
    pub noise: Noise,
    /// With ranges of its input found when the model runs, where that is better.
    pub dynamic_noise: Option<Noise>,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As the plan has it.
    Planned,
    Dynamic,
    Float,
}

impl Unit {
    /// Of no layer yet.
    pub(super) fn new(tensor: usize) -> Self {
        Unit {
            tensor,
            layers: Vec::new(),
            share: 0.0,
            size: 0.0,
            values: BTreeSet::new(),
            is_product: true,
            noise: Noise::new(),
            dynamic_noise: None,
            state: State::Planned,
        }
    }

    /// What it adds as it is.
    pub(super) fn current(&self) -> Option<&Noise> {
        match self.state {
            State::Planned => Some(&self.noise),
            State::Dynamic => self.dynamic_noise.as_ref(),
            State::Float => None,
        }
    }
}

/// How many of `units`, which come by descending noise, are worth a closer look.
pub(super) fn refined_count(units: &[Unit], allowed: f64) -> usize {
    let mut left: f64 = units.iter().map(|unit| worst(&unit.noise)).sum();
    let mut count = 0;
    while count < units.len().min(REFINED_LAYERS) && left > NEGLIGIBLE * allowed {
        left -= worst(&units[count].noise);
        count += 1;
    }
    count
}

/// The noise of everything, by adding up.
pub(super) fn predicted(units: &[Unit], rest: &Noise) -> Noise {
    units.iter().filter_map(Unit::current).fold(rest.clone(), |sum, noise| add(&sum, noise))
}

/// Spares units until no more than `allowed` is predicted; whether there was one to spare.
pub(super) fn spare(units: &mut [Unit], rest: &Noise, allowed: f64, already_float: f64) -> bool {
    let mut is_any = false;
    while worst(&predicted(units, rest)) > allowed {
        let float = || units.iter().filter(|unit| unit.state == State::Float);
        let spent = already_float + float().map(|unit| unit.share).sum::<f64>();
        let spent_size = float().map(|unit| unit.size).sum::<f64>();
        let fits = |unit: &Unit| spent + unit.share <= 1.0 - LEAST_INTEGER_SHARE && spent_size + unit.size <= MOST_FLOAT_SIZE;
        // What each step gains, and what it costs.
        let step = |unit: &Unit| -> Option<(State, f64)> {
            let now = worst(unit.current()?);
            match (&unit.dynamic_noise, unit.state) {
                (Some(dynamic), State::Planned) => Some((State::Dynamic, (now - worst(dynamic)) / FIXED_COST)),
                _ if now < TOO_LITTLE * allowed || !fits(unit) => None,
                _ => Some((State::Float, now / (unit.share + FIXED_COST))),
            }
        };
        let steps = units.iter().enumerate().filter_map(|(i, unit)| step(unit).map(|(state, gain)| (i, state, gain)));
        let Some((i, state, _)) = steps.min_by(|a, b| descending(a.2, b.2).then(a.0.cmp(&b.0))) else { break };
        units[i].state = state;
        is_any = true;
    }
    is_any
}

pub(super) fn worst(noise: &[f64]) -> f64 {
    noise.iter().copied().fold(0.0, f64::max)
}

pub(super) fn add(a: &[f64], b: &[f64]) -> Noise {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

pub(super) fn descending(a: f64, b: f64) -> Ordering {
    b.total_cmp(&a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(tensor: usize, share: f64, noise: f64, dynamic_noise: Option<f64>) -> Unit {
        let dynamic_noise = dynamic_noise.map(|noise| vec![noise]);
        Unit { share, noise: vec![noise], dynamic_noise, ..Unit::new(tensor) }
    }

    struct Case {
        /// Share of multiply-adds, noise, noise with dynamic ranges.
        units: &'static [(f64, f64, Option<f64>)],
        already_float: f64,
        expected: &'static [State],
    }

    #[test]
    fn those_are_spared_that_gain_most_for_what_they_cost() {
        use State::{Dynamic, Float, Planned};
        let cases = [
            // Enough is left.
            Case { units: &[(0.5, 0.4, None), (0.5, 0.4, None)], already_float: 0.0, expected: &[Planned, Planned] },
            // The small one of two that lose the same.
            Case {
                units: &[(0.05, 0.8, None), (0.01, 0.8, None), (0.94, 0.1, None)],
                already_float: 0.0,
                expected: &[Planned, Float, Planned],
            },
            // Both, as one is not enough.
            Case {
                units: &[(0.05, 2.0, None), (0.01, 2.0, None), (0.94, 0.1, None)],
                already_float: 0.0,
                expected: &[Float, Float, Planned],
            },
            // Not more than a tenth.
            Case {
                units: &[(0.08, 2.0, None), (0.04, 2.0, None), (0.88, 0.1, None)],
                already_float: 0.0,
                expected: &[Planned, Float, Planned],
            },
            Case { units: &[(0.03, 2.0, None), (0.97, 0.1, None)], already_float: 0.08, expected: &[Planned, Planned] },
            // Dynamic ranges cost nothing, and are tried before.
            Case { units: &[(0.5, 2.0, Some(0.2)), (0.01, 0.3, None)], already_float: 0.0, expected: &[Dynamic, Planned] },
            Case { units: &[(0.05, 9.0, Some(2.0)), (0.95, 0.3, None)], already_float: 0.0, expected: &[Float, Planned] },
            // What adds next to nothing is left alone, whatever is missing.
            Case { units: &[(0.5, 2.0, None), (0.001, 0.01, None)], already_float: 0.0, expected: &[Planned, Planned] },
        ];
        for Case { units, already_float, expected } in cases {
            let mut found: Vec<Unit> =
                units.iter().enumerate().map(|(i, (share, noise, dynamic))| unit(i, *share, *noise, *dynamic)).collect();
            let is_any = spare(&mut found, &vec![0.0], 1.0, already_float);
            assert!(found.iter().map(|unit| unit.state).eq(expected.iter().copied()), "{units:?}");
            assert_eq!(is_any, expected.iter().any(|state| *state != Planned), "{units:?}");
        }
    }

    #[test]
    fn layers_are_looked_at_until_the_rest_is_negligible() {
        let units = |noise: &[f64]| noise.iter().enumerate().map(|(i, noise)| unit(i, 0.1, *noise, None)).collect::<Vec<_>>();
        assert_eq!(refined_count(&units(&[]), 1.0), 0);
        assert_eq!(refined_count(&units(&[0.1, 0.1]), 1.0), 0);
        assert_eq!(refined_count(&units(&[3.0, 0.2, 0.1, 0.01]), 1.0), 2);
        assert_eq!(refined_count(&units(&[1.0; 40]), 1.0), REFINED_LAYERS);
    }
}
