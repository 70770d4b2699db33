//! An observer of one's own, by name: `cargo run --example custom_observer MODEL.safetensors`.

use qtool::report::QuantizeReport;
use qtool::{Batch, Observer, Prepared, Range, Request, Silent};
use std::path::Path;

/// Three standard deviations around the mean, but no more than there is.
struct ThreeSigma {
    count: f64,
    sum: f64,
    squares: f64,
    extent: Range,
}

impl Observer for ThreeSigma {
    fn observe(&mut self, batch: Batch<'_>) {
        self.extent = Range { min: self.extent.min.min(batch.extent.min), max: self.extent.max.max(batch.extent.max) };
        batch.values.for_each_piece(&mut |piece| {
            for value in piece.iter().copied().map(f64::from) {
                self.count += 1.0;
                self.sum += value;
                self.squares += value * value;
            }
        });
    }

    fn range(&self) -> Range {
        let mean = self.sum / self.count;
        let reach = 3.0 * (self.squares / self.count - mean * mean).max(0.0).sqrt();
        Range { min: self.extent.min.max((mean - reach) as f32), max: self.extent.max.min((mean + reach) as f32) }
    }
}

/// Quantizes `model` with it; writes beside it.
pub(crate) fn quantize(model: &Path) -> qtool::Result<QuantizeReport> {
    let mut request = Request::new(model);
    request.recipe.observers.register("three-sigma", |_target| {
        let extent = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };
        Box::new(ThreeSigma { count: 0.0, sum: 0.0, squares: 0.0, extent })
    })?;
    request.recipe.settings.observer = "three-sigma".parse()?;
    Prepared::new(request)?.run(&Silent)
}

fn main() -> qtool::Result<()> {
    for model in std::env::args_os().skip(1) {
        println!("wrote {}", quantize(Path::new(&model))?.output.display());
    }
    Ok(())
}
