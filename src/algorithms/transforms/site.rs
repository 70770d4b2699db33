//! Layers that take the same activation, and what quantization is expected to change of their outputs when its channels are
//! divided by factors `s`, and the weights that meet them multiplied.
//!
//! ```text
//! sum over weights w of channel c:   E[x[c]^2] (e / s[c])^2 + (w s[c])^2 N[c]
//! N[c] = L(x)[c] + E1[c] + sum over values v between:  L(v)[c] E[x[c]^2] / E[v[c]^2],     L = step^2 / 12 + beyond^2 / rows
//! ```
//!
//! `e` is the error of `w s[c]` with the nearest code; `L` is what an activation that is made of integers loses, as it is after the
//! division, to steps and, on other samples, beyond its range; and `E1[c]` is the expected square of
//! what the nearest codes change of the channel, where a layer makes it: that of the errors of its weights times its inputs. What is
//! lost of a value before is taken to stay the same part of it.

use crate::graph::channels::Channels;
use crate::plan::TensorScheme;
use crate::quant::kernel::{Extent, min_max};
use crate::stream;

/// The largest magnitudes of an activation's channels below and above zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extremes {
    pub(super) low: Vec<f32>,
    pub(super) high: Vec<f32>,
    /// Number of values of each channel.
    pub(super) rows: u64,
}

/// What is known of an activation's channels.
#[derive(Clone, Debug, Default)]
pub(super) struct Inputs {
    /// Of all samples, or of each half of them: then it is known how far new samples go beyond the range of known ones.
    pub(super) extremes: Vec<Extremes>,
    /// Mean squares.
    pub(super) squares: Vec<f64>,
}

impl Inputs {
    /// Of so many channels.
    pub(super) fn count(&self) -> usize {
        self.squares.len()
    }

    /// The same activation with its channels divided.
    pub(super) fn divided(&self, factors: &[f32]) -> Inputs {
        let divide = |values: &[f32]| values.iter().zip(factors).map(|(value, factor)| value / factor).collect();
        let extremes =
            self.extremes.iter().map(|Extremes { low, high, rows }| Extremes { low: divide(low), high: divide(high), rows: *rows });
        let squares = self.squares.iter().zip(factors).map(|(square, factor)| square / f64::from(*factor).powi(2)).collect();
        Inputs { extremes: extremes.collect(), squares }
    }

    /// The mean square of what each channel is expected to lose to codes with the range that is `known`, on the other samples.
    fn noise(&self, grid: Grid, known: usize) -> Vec<f64> {
        let (low, high) = self.extremes[known].range(grid);
        let step = (low + high) / grid.steps;
        let mut noise = vec![step * step / 12.0; self.count()];
        for other in self.extremes.iter().enumerate().filter(|(number, _)| *number != known).map(|(_, other)| other) {
            // Of the values of a channel the largest is beyond the range; how many more are is not known.
            let beyond = |value: f32, limit: f64| (f64::from(value) - limit).max(0.0).powi(2) / other.rows.max(1) as f64;
            let values = other.low.iter().zip(&other.high);
            noise.iter_mut().zip(values).for_each(|(noise, values)| *noise += beyond(*values.0, low) + beyond(*values.1, high));
        }
        noise
    }
}

impl Extremes {
    /// The largest magnitude of each channel.
    pub(super) fn abs_max(&self) -> Vec<f32> {
        self.low.iter().zip(&self.high).map(|(low, high)| low.max(*high)).collect()
    }

    /// Those of all samples.
    fn merged(parts: &[Extremes]) -> Extremes {
        let mut merged = parts[0].clone();
        for part in &parts[1..] {
            let larger = |known: &mut Vec<f32>, new: &[f32]| known.iter_mut().zip(new).for_each(|(known, new)| *known = known.max(*new));
            larger(&mut merged.low, &part.low);
            larger(&mut merged.high, &part.high);
            merged.rows += part.rows;
        }
        merged
    }

    /// How far codes have to reach below and above zero.
    fn range(&self, grid: Grid) -> (f64, f64) {
        let largest = |values: &[f32]| f64::from(values.iter().copied().fold(0f32, f32::max));
        let (low, high) = (largest(&self.low), largest(&self.high));
        if grid.symmetric { (low.max(high), low.max(high)) } else { (low, high) }
    }
}

/// A weight, the channel of the activation that each element belongs to, and how it is quantized, if it is.
pub(super) struct Weight<'a> {
    pub(super) values: Vec<f32>,
    pub(super) channels: Channels,
    pub(super) scheme: Option<&'a TensorScheme>,
}

/// A weight that makes the channels, with what it takes.
pub(super) struct Before<'a> {
    pub(super) weight: Weight<'a>,
    pub(super) inputs: Channels,
    /// Mean squares of the channels of its own inputs.
    pub(super) squares: Vec<f64>,
    /// Mean squares of the activation's channels, of those of its own outputs.
    pub(super) parts: Vec<f64>,
}

/// Codes of an activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Steps between the lowest code and the highest.
    pub(crate) steps: f64,
    pub(crate) symmetric: bool,
}

/// Factors that gain something.
pub(super) struct Best {
    pub(super) factors: Vec<f32>,
    /// The expected change of outputs without them, of that with them.
    pub(super) gain: f64,
}

/// Layers with a common input.
pub(crate) struct Site<'a> {
    pub(super) inputs: Inputs,
    pub(super) after: Vec<Weight<'a>>,
    pub(super) before: Vec<Before<'a>>,
    /// Values that are divided on the way to the activation and become integers.
    pub(super) between: Vec<(Inputs, Grid)>,
    /// Of the activation, if it becomes integers.
    pub(super) grid: Option<Grid>,
}

impl Site<'_> {
    /// The largest magnitude of the weights of each channel.
    pub(super) fn largest_after(&self) -> Vec<f32> {
        largest(self.inputs.count(), self.after.iter())
    }

    /// The largest magnitude of the weights that make each channel.
    pub(super) fn largest_before(&self) -> Vec<f32> {
        largest(self.inputs.count(), self.before.iter().map(|before| &before.weight))
    }

    /// Those of the factors that are proposed for the extremes of channels of which the least change is expected; `None` if the
    /// activation had better stay as it is. Each half of the samples is judged by what is proposed for the other, or what suits
    /// the known samples by chance would look like a gain.
    pub(super) fn best(&self, propose: impl Fn(&Extremes) -> Vec<Vec<f32>>, threads: usize) -> Option<Best> {
        let halves = &self.inputs.extremes;
        let unchanged = vec![1.0; self.inputs.count()];
        let (mut before, mut after) = (0.0, Vec::new());
        for (known, half) in halves.iter().enumerate() {
            let candidates = propose(half);
            let objectives = stream::map(candidates.len() + 1, threads, |number| {
                self.objective(if number == 0 { &unchanged } else { &candidates[number - 1] }, known)
            });
            before += objectives[0];
            after.resize(candidates.len(), 0.0);
            after.iter_mut().zip(&objectives[1..]).for_each(|(sum, objective)| *sum += objective);
        }
        let (number, after) = after.into_iter().enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let factors = || propose(&Extremes::merged(halves)).swap_remove(number);
        (after < before).then(|| Best { factors: factors(), gain: before / after.max(f64::MIN_POSITIVE) })
    }

    /// The expected change of outputs, with ranges from some samples.
    fn objective(&self, factors: &[f32], known: usize) -> f64 {
        let inputs = self.inputs.divided(factors);
        let mut noise = self.grid.map_or_else(|| vec![0.0; inputs.count()], |grid| inputs.noise(grid, known));
        for (value, grid) in &self.between {
            let value = value.divided(factors);
            for (c, lost) in value.noise(*grid, known).into_iter().enumerate() {
                noise[c] += lost * part(inputs.squares[c], value.squares[c]);
            }
        }
        for before in &self.before {
            let divisors: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
            let Some(errors) = before.weight.square_errors(&divisors) else { continue };
            let squares = before.inputs.spread(&before.squares, errors.len());
            for (i, (error, square)) in errors.iter().zip(squares).enumerate() {
                let c = before.weight.channels.of(i);
                noise[c] += f64::from(*error) * square * before.parts[c];
            }
        }
        let of_weight = |weight: &Weight<'_>| {
            let scaled = weight.scaled(factors);
            let noise = weight.channels.spread(&noise, scaled.len());
            let by_noise: f64 = scaled.iter().zip(noise).map(|(weight, noise)| f64::from(*weight).powi(2) * noise).sum();
            let by_codes: f64 = match weight.square_errors(factors) {
                None => 0.0,
                Some(errors) => {
                    let squares = weight.channels.spread(&inputs.squares, errors.len());
                    errors.iter().zip(squares).map(|(error, square)| f64::from(*error) * square).sum()
                }
            };
            by_noise + by_codes
        };
        self.after.iter().map(of_weight).sum()
    }
}

impl Weight<'_> {
    /// Each element multiplied by the factor of its channel.
    pub(super) fn scaled(&self, factors: &[f32]) -> Vec<f32> {
        let mut scaled = self.channels.spread(factors, self.values.len());
        scaled.iter_mut().zip(&self.values).for_each(|(factor, value)| *factor *= value);
        scaled
    }

    /// The square of what the nearest code changes of each element, multiplied by the factor of its channel; `None` if it
    /// stays as it is.
    fn square_errors(&self, factors: &[f32]) -> Option<Vec<f32>> {
        let scheme = self.scheme?;
        let mut values = self.scaled(factors);
        let mut extents: Vec<Option<Extent>> = vec![None; scheme.layout.groups()];
        scheme.layout.for_each_run(0..values.len(), |group, run| {
            let extent = min_max(&values[run]);
            extents[group] = Some(extents[group].map_or(extent, |known| known.merge(extent)));
        });
        let params: Vec<_> = extents.iter().map(|extent| extent.map(|extent| scheme.rule.choose_params(extent.range()))).collect();
        scheme.layout.for_each_run(0..values.len(), |group, run| {
            let params = params[group].expect("a group has values");
            for value in &mut values[run] {
                *value = (*value - params.fake_quantize(*value, scheme.clip)).powi(2);
            }
        });
        Some(values)
    }
}

fn largest<'a, 'b: 'a>(count: usize, weights: impl Iterator<Item = &'a Weight<'b>>) -> Vec<f32> {
    let mut largest = vec![0f32; count];
    for weight in weights {
        largest.iter_mut().zip(weight.channels.largest(&weight.values)).for_each(|(known, new)| *known = known.max(new));
    }
    largest
}

/// What becomes of a mean square of 1 in a channel from one value to the next.
pub(super) fn part(after: f64, before: f64) -> f64 {
    let part = after / before;
    if part.is_finite() { part } else { 1.0 }
}

/// Factors whose product is 1, as only their ratios matter, from what they are proportional to.
pub(super) fn balanced(factors: Vec<f64>) -> Vec<f32> {
    let mean = factors.iter().map(|factor| factor.log2()).sum::<f64>() / factors.len().max(1) as f64;
    factors.iter().map(|factor| (factor.log2() - mean).exp2() as f32).collect()
}

/// What was done at some of `places`, in a sentence.
pub(super) fn summary(places: usize, gains: &[f64]) -> String {
    if gains.is_empty() {
        return format!("changed nothing: it would gain nothing at any of {places} places");
    }
    let mean = 10.0 * gains.iter().map(|gain| gain.log10()).sum::<f64>() / gains.len() as f64;
    format!("changed {} of {places} places, by which their outputs are expected to change {mean:.1} dB less", gains.len())
}
