//! Values per second of the loops over values: `cargo bench`, or with `QTOOL_SIMD=scalar` for the baseline path.

use qtool::calibration::stats::ActivationStats;
use qtool::observers::{Batch, ObserverChoice};
use qtool::quant::kernel::{Arithmetic, min_max, quantize};
use qtool::quant::params::{ParamRule, Params};
use qtool::quant::scheme::{CodeType, Convention, Grid};
use qtool::simd::instruction_set;
use qtool::tensor::Dtype;
use std::hint::black_box;
use std::time::Instant;

/// One row of a large layer: it fits the second-level cache, as rows do while a file is streamed.
const ROW: usize = 4096;
const ROWS: usize = 20_000;

fn main() {
    let values: Vec<f32> = (0..ROW).map(|i| ((i * 7919) % 10007) as f32 / 10007.0 - 0.5).collect();
    let mut codes = vec![0; ROW];
    let (params, grid) = (Params { scale: 0.004, zero_point: 0 }, Grid { qmin: -128, qmax: 127 });
    println!("instruction set: {}", instruction_set().name());
    report("min_max", || {
        black_box(min_max(black_box(&values)));
    });
    for arithmetic in [Arithmetic::Reciprocal, Arithmetic::Divide] {
        report(&format!("quantize {arithmetic:?}"), || {
            black_box(quantize(black_box(&values), params, arithmetic, grid, &mut codes));
        });
    }
    report_observe("gaussian", |x| x);
    report_observe("relu", |x| x.max(0.0));
    report_observe("zeros", |_| 0.0);
    for row in [1024, ROW, 14_336] {
        report_search(row, true);
        report_search(row, false);
    }
}

fn report(name: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    (0..ROWS).for_each(|_| work());
    println!("{name}: {:.2} G values/s", (ROW * ROWS) as f64 / start.elapsed().as_secs_f64() / 1e9);
}

/// The cost of statistics of activations, for samples of 64 Ki values.
fn report_observe(name: &str, map: fn(f32) -> f32) {
    let values: Vec<f32> = gaussian(16 * ROW, 3).into_iter().map(map).collect();
    let mut stats = ActivationStats::new();
    let start = Instant::now();
    for _ in 0..ROWS / 64 {
        stats.observe(black_box(&values)).expect("the values are finite");
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("observe statistics, {name}: {:.2} G values/s, {} KiB", stats.values() as f64 / seconds / 1e9, stats.memory() >> 10);
}

/// The cost of choosing a range with `mse`, for int8 rows of a large layer.
fn report_search(row: usize, symmetric: bool) {
    let rule = ParamRule::new(Convention::Torch, CodeType::Int8, symmetric, Dtype::F32);
    let target = qtool::observers::Target { rule, single_batch: true };
    let mse = ObserverChoice::new(&qtool::method::Method::new("mse")).expect("mse is in the table");
    let rows: Vec<Vec<f32>> = (0..16).map(|seed| gaussian(row, seed)).collect();
    let repeats = (1 << 23) / row / rows.len();
    let start = Instant::now();
    for values in (0..repeats).flat_map(|_| &rows) {
        let batch = Batch { extent: min_max(values).range(), values: &values.as_slice() };
        black_box(mse.observe_once(batch, &target));
    }
    let ns = start.elapsed().as_secs_f64() * 1e9 / (repeats * rows.len() * row) as f64;
    println!("mse, int8 rows of {row}, {}: {ns:.2} ns/value", if symmetric { "symmetric" } else { "affine" });
}

/// Sums of twelve uniform values: close enough to a Gaussian.
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect()
}
