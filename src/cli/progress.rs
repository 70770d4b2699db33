//! A bar of bytes or samples with rate and time left, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qtool::stream::Progress;

const BYTES: &str = "{wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
const MEASUREMENTS: &str = "{wide_bar} layers measured: {pos} of {len}  {eta} left";
const SAMPLES: &str = "{wide_bar} sample {pos} of {len}  {per_sec}  {eta} left";

/// Drawn on standard error; does nothing where that is no terminal, or when asked to be quiet.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar that waits to be told of the work.
    pub(super) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
        Bar(ProgressBar::with_draw_target(None, target))
    }

    fn start(&self, total: u64, template: &str) {
        self.0.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
        self.0.reset();
        self.0.set_length(total);
    }

    /// Removes the bar.
    pub(super) fn finish(self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&self, total: u64) {
        self.start(total, BYTES);
    }

    fn begin_samples(&self, total: u64) {
        self.start(total, SAMPLES);
    }

    fn begin_measurements(&self, total: u64) {
        self.start(total, MEASUREMENTS);
    }

    fn advance(&self, count: u64) {
        self.0.inc(count);
    }
}
