//! The searches against enumerations and grids, on rows of several distributions and on the golden inputs.

use super::*;
use crate::method::Method;
use crate::observers::ObserverChoice;
use crate::quant::kernel::min_max;
use crate::quant::scheme::{CodeType, Convention};
use crate::tensor::Dtype;

const DISTRIBUTIONS: [&str; 5] = ["gaussian", "laplace", "student t3", "outliers", "uniform"];

/// Reproducible rows: a linear congruential generator and textbook transformations.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn gaussian(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn value(&mut self, distribution: &str) -> f64 {
        match distribution {
            "gaussian" => self.gaussian(),
            "laplace" => self.uniform().ln() * if self.uniform() < 0.5 { 1.0 } else { -1.0 },
            "student t3" => self.gaussian() / ((0..3).map(|_| self.gaussian().powi(2)).sum::<f64>() / 3.0).sqrt(),
            "outliers" => self.gaussian() * if self.uniform() < 0.002 { 20.0 } else { 1.0 },
            _ => 2.0 * self.uniform() - 1.0,
        }
    }

    fn row(&mut self, distribution: &str, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0.02 * self.value(distribution)) as f32).collect()
    }
}

fn rule(codes: CodeType, symmetric: bool) -> ParamRule {
    ParamRule::new(Convention::Torch, codes, symmetric, Dtype::F32)
}

fn choose(rule: ParamRule, batches: &[&[f32]]) -> Range {
    let mut mse = ObserverChoice::new(&Method::new("mse")).unwrap().build(&Target { rule, single_batch: false });
    for values in batches {
        mse.observe(Batch { extent: min_max(values).range(), values });
    }
    mse.range()
}

/// The definition of the error, in f64.
fn error(values: &[f32], rule: &ParamRule, params: Params) -> f64 {
    let (low, high) = (f64::from(rule.grid.qmin - params.zero_point), f64::from(rule.grid.qmax - params.zero_point));
    let scale = f64::from(params.scale);
    values.iter().map(|x| (f64::from(*x) - (f64::from(*x) / scale).round_ties_even().clamp(low, high) * scale).powi(2)).sum()
}

fn range_error(values: &[f32], rule: &ParamRule, range: Range) -> f64 {
    error(values, rule, rule.choose_params(range))
}

/// The least error over all scales up to the largest that is searched, from all code changes in order.
fn least_error(values: &[f32], rule: &ParamRule) -> f64 {
    let space = Space::new(rule, min_max(values).range()).unwrap();
    let (low, high) = space.ends(space.widest.zero_point);
    let largest = space.largest_scale();
    let mut changes = Vec::new();
    let (mut a, mut b) = (0.0, 0.0);
    for x in values {
        let (magnitude, end) = (f64::from(x.abs()), f64::from(if *x < 0.0 { -low } else { high }));
        let start = (magnitude / largest + 0.5).floor().min(end);
        (a, b) = (a + magnitude * start, b + start * start);
        changes.extend((start as i32 + 1..=end as i32).map(|k| (magnitude / (f64::from(k) - 0.5), magnitude, f64::from(k))));
    }
    changes.sort_by(|x, y| y.0.total_cmp(&x.0));
    let mut gain = if b > 0.0 { a * a / b } else { 0.0f64 };
    for (_, magnitude, k) in changes {
        (a, b) = (a + magnitude, b + 2.0 * k - 1.0);
        gain = gain.max(a * a / b);
    }
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() - gain
}

fn decibels(error: f64, reference: f64) -> f64 {
    10.0 * (error / reference).log10()
}

#[test]
fn rows_are_within_a_hundredth_of_a_decibel_of_the_enumerated_optimum() {
    let mut random = Random(1);
    let mut worst = 0f64;
    for codes in [CodeType::Int8, CodeType::Int4] {
        let rule = rule(codes, true);
        for n in [32, 48, 64, 128, 256, 512, 513, 640, 768, 1024] {
            for distribution in DISTRIBUTIONS {
                for _ in 0..8 {
                    let row = random.row(distribution, n);
                    let gap = decibels(range_error(&row, &rule, choose(rule, &[&row])), least_error(&row, &rule));
                    assert!(gap <= if n <= LARGEST_SWEEP { 1e-4 } else { 0.01 }, "{codes}, {n} {distribution}: {gap} dB");
                    worst = worst.max(gap);
                }
            }
        }
    }
    println!("largest gap: {worst:.5} dB");
}

#[test]
fn no_grid_of_ranges_shrunk_evenly_is_better() {
    let mut random = Random(2);
    for codes in [CodeType::Int8, CodeType::Int4] {
        for symmetric in [true, false] {
            let rule = rule(codes, symmetric);
            for (n, distribution) in [32, 512, 700, 4096].iter().flat_map(|n| DISTRIBUTIONS.map(|d| (*n, d))) {
                let row = random.row(distribution, n);
                let extent = min_max(&row).range();
                let shrunk = |i: i32| Range { min: extent.min * (1.0 - i as f32 / 100.0), max: extent.max * (1.0 - i as f32 / 100.0) };
                let grid = (0..95).map(|i| range_error(&row, &rule, shrunk(i))).fold(f64::INFINITY, f64::min);
                let gap = decibels(range_error(&row, &rule, choose(rule, &[&row])), grid);
                let allowed = if n <= LARGEST_SWEEP && symmetric { 1e-5 } else { 0.01 };
                assert!(gap <= allowed, "{codes} symmetric {symmetric}, {n} {distribution}: {gap} dB");
            }
        }
    }
}

#[test]
fn affine_ranges_match_a_grid_over_both_ends() {
    let mut random = Random(3);
    let mut rows: Vec<Vec<f32>> =
        [32, 96, 600].iter().flat_map(|n| DISTRIBUTIONS.map(|d| (*n, d))).map(|(n, d)| random.row(d, n)).collect();
    rows.push(random.row("gaussian", 64).iter().map(|x| x.abs()).collect());
    rows.push(random.row("laplace", 64).iter().map(|x| x + 0.05).collect());
    let mut worst = f64::NEG_INFINITY;
    for codes in [CodeType::Uint8, CodeType::Int4] {
        let rule = rule(codes, false);
        for row in &rows {
            let extent = min_max(row).range().with_zero();
            let ours = range_error(row, &rule, choose(rule, &[row]));
            let share = |i: i32| 1.0 - 0.8 * i as f32 / 200.0;
            let ranges = (0..200).flat_map(|i| (0..200).map(move |k| Range { min: extent.min * share(i), max: extent.max * share(k) }));
            let mut grid: Vec<Params> = ranges.map(|range| rule.choose_params(range)).collect();
            grid.dedup();
            let least = Space::new(&rule, extent).unwrap().errors(row, &grid).into_iter().fold(f64::INFINITY, f64::min);
            let gap = decibels(ours, least);
            assert!(gap <= 0.01, "{codes}, {} values: {gap} dB", row.len());
            worst = worst.max(gap);
        }
    }
    println!("largest gap to the grid: {worst:.5} dB");
}

#[test]
fn never_worse_than_min_max_whatever_the_convention_and_type() {
    let mut random = Random(4);
    for (convention, dtype) in [
        (Convention::Torch, Dtype::F32),
        (Convention::Ort, Dtype::F32),
        (Convention::Ort, Dtype::F16),
        (Convention::CompressedTensors, Dtype::F32),
        (Convention::CompressedTensors, Dtype::F16),
        (Convention::CompressedTensors, Dtype::BF16),
    ] {
        for codes in [CodeType::Int8, CodeType::Uint8, CodeType::Int4, CodeType::Uint4] {
            for (symmetric, n, distribution) in
                [true, false].iter().flat_map(|s| DISTRIBUTIONS.map(|d| [(*s, 40, d), (*s, 1500, d)])).flatten()
            {
                let rule = ParamRule::new(convention, codes, symmetric, dtype);
                let row: Vec<f32> = random.row(distribution, n).iter().map(|x| crate::tensor::round_to(dtype, *x)).collect();
                let extent = min_max(&row).range();
                let arithmetic = crate::quant::kernel::Arithmetic::of(convention, dtype);
                let lost = |range: Range| {
                    let mut codes = vec![0; row.len()];
                    crate::quant::kernel::quantize(&row, rule.choose_params(range), arithmetic, rule.grid, &mut codes).error
                };
                let (ours, widest) = (lost(choose(rule, &[&row])), lost(extent));
                assert!(ours <= widest * 1.00001, "{convention} {dtype} {codes} symmetric {symmetric} {n} {distribution}: {ours} {widest}");
            }
        }
    }
}

#[test]
fn batches_together_come_close_to_one_batch_of_all_values() {
    let mut random = Random(5);
    for symmetric in [true, false] {
        let rule = rule(CodeType::Uint8, symmetric);
        let batches: Vec<Vec<f32>> =
            [0.1f32, 1.0, 3.0].iter().map(|s| random.row("gaussian", 20_000).iter().map(|x| x * s).collect()).collect();
        let slices: Vec<&[f32]> = batches.iter().map(Vec::as_slice).collect();
        let all = batches.concat();
        let (several, once) = (range_error(&all, &rule, choose(rule, &slices)), range_error(&all, &rule, choose(rule, &[&all])));
        assert!(decibels(several, once) < 0.02, "{several} {once}");
        assert!(several <= range_error(&all, &rule, min_max(&all).range()));
    }
}

#[test]
fn degenerate_rows_get_their_extent() {
    for symmetric in [true, false] {
        for row in [vec![0.0; 40], vec![-0.0], vec![1e-45, 0.0], vec![f32::MAX, f32::MIN], vec![1e-12; 700], vec![f32::MAX; 40_000]] {
            let rule = rule(CodeType::Int8, symmetric);
            let range = choose(rule, &[&row]);
            assert!(range.min.is_finite() && range.max.is_finite(), "{} values of {}", row.len(), row[0]);
            assert!(choose(rule, &[&row, &row]).max.is_finite());
        }
    }
}
