//! Quantizes a matrix in memory to int8, one scale a row, as PyTorch does: `cargo run --example quantize_tensor`.

use qtool::Range;
use qtool::observers::{Batch, ObserverChoice, Target};
use qtool::quant::kernel::{self, Arithmetic};
use qtool::quant::metrics::ErrorSums;
use qtool::quant::params::ParamRule;
use qtool::quant::scheme::{CodeType, Convention};
use qtool::tensor::Dtype;

/// What a matrix became.
pub(crate) struct Quantized {
    /// One byte a value, in the order of values: two's complement.
    pub(crate) codes: Vec<u8>,
    /// One a row: value = code × scale.
    pub(crate) scales: Vec<f32>,
    /// What was lost.
    pub(crate) error: ErrorSums,
}

/// Quantizes `weights` `[rows, columns]`, which are finite.
pub(crate) fn quantize_rows(weights: &[f32], columns: usize) -> qtool::Result<Quantized> {
    let rule = ParamRule::new(Convention::Torch, CodeType::Int8, true, Dtype::F32);
    let observer = ObserverChoice::new(&"mse".parse()?)?;
    let arithmetic = Arithmetic::of(rule.convention, rule.dtype);
    let mut done = Quantized { codes: vec![0; weights.len()], scales: Vec::new(), error: ErrorSums::default() };
    for (row, codes) in weights.chunks_exact(columns).zip(done.codes.chunks_exact_mut(columns)) {
        let extent: Range = kernel::min_max(row).range();
        let range = observer.observe_once(Batch { extent, values: &row }, &Target { rule, single_batch: true });
        let params = rule.choose_params(range);
        done.error.merge(&kernel::quantize(row, params, arithmetic, rule.grid, codes));
        done.scales.push(params.scale);
    }
    Ok(done)
}

fn main() -> qtool::Result<()> {
    let weights: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.37).sin() * (1 + i / 64) as f32).collect();
    let done = quantize_rows(&weights, 64)?;
    println!("scales {:?}", done.scales);
    println!("{:.1} dB", done.error.metrics().sqnr_db.unwrap_or(f64::INFINITY));
    Ok(())
}
