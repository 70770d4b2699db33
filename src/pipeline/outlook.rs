//! What can be told of a run before it is carried out.

use super::{LARGEST_PIECE_BYTES, Prepared, onnx};
use crate::error::Result;
use crate::graph::weights::Layer;
use crate::plan::{LayerMode, TensorScheme};
use crate::recipe::Mode;
use crate::report::QuantizeReport;
use std::collections::BTreeMap;

/// How activations of a model are quantized, of some layers at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationUse {
    /// By ranges that are known before the model runs.
    pub known: bool,
    /// By ranges that are found while it runs.
    pub at_run_time: bool,
}

impl Prepared {
    /// What would be done.
    pub fn report(&self) -> QuantizeReport {
        let report = QuantizeReport::new(&self.model, &self.plan, &BTreeMap::new(), &self.target, self.layout.bytes());
        QuantizeReport { notes: self.notes.clone(), ..report }
    }

    /// Number of layers of an ONNX model that would compute in integers if ranges of their activations were known, and do not.
    pub fn wants_ranges(&self) -> usize {
        let Prepared { model, plan, .. } = self;
        let Some(onnx) = model.onnx().filter(|_| plan.mode == Mode::Auto) else { return 0 };
        let could = |(_, layer): &(usize, &Layer)| plan.layer_mode(model, onnx, layer, Mode::Static) == LayerMode::Static;
        plan.layers_of(onnx, LayerMode::WeightOnly).filter(could).count()
    }

    /// Whether methods were asked for that look at what layers take.
    pub fn looks_at_inputs(&self) -> bool {
        let mut schemes = self.plan.quantized().filter_map(|tensor| self.plan.scheme(tensor));
        !self.request.recipe.transforms.is_empty() || schemes.any(TensorScheme::looks_at_inputs)
    }

    /// Makes sure that samples and statistics can be read and are of this model, as far as it shows before the model runs.
    ///
    /// # Errors
    ///
    /// As [`Samples::open`](crate::calibration::samples::Samples::open) and [`Statistics::read`](crate::calibration::stats::Statistics::read).
    pub fn check_calibration(&self) -> Result<()> {
        onnx::check_calibration(&self.model, &self.request.calibration)
    }

    /// Whether the model has a graph.
    pub fn is_onnx(&self) -> bool {
        self.model.onnx().is_some()
    }

    /// How activations will be quantized.
    pub fn activations(&self) -> ActivationUse {
        let Prepared { form, model, plan, .. } = self;
        if model.onnx().is_some() {
            let is_dynamic = plan.layers.contains(&LayerMode::Dynamic);
            return ActivationUse { known: !plan.values.values.is_empty() || !plan.values.given.is_empty(), at_run_time: is_dynamic };
        }
        let has =
            |mode: Mode| plan.quantized().any(|tensor| plan.scheme(tensor).and_then(|scheme| scheme.mode).unwrap_or(plan.mode) == mode);
        ActivationUse { known: has(Mode::Static), at_run_time: has(Mode::Dynamic) && form.quantizes_activations() }
    }

    /// Most memory that buffers will take, in bytes.
    pub fn buffer_bytes(&self) -> u64 {
        self.threads() as u64 * LARGEST_PIECE_BYTES
    }
}
