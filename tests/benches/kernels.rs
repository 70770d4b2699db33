//! Values per second of the loops over values: `cargo bench`, or with `QTOOL_SIMD=scalar` for the baseline path.

use qtool::quant::kernel::{Arithmetic, min_max, quantize};
use qtool::quant::params::Params;
use qtool::quant::scheme::Grid;
use qtool::simd::instruction_set;
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
}

fn report(name: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    (0..ROWS).for_each(|_| work());
    println!("{name}: {:.2} G values/s", (ROW * ROWS) as f64 / start.elapsed().as_secs_f64() / 1e9);
}
