//! ONNX out: the model with quantized weights in place of float ones, in the forms that ONNX Runtime computes with.

mod dynamic;
mod file;
pub(crate) mod rewrite;
mod weight_only;

use super::{Output, OutputLayout};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{LayerMode, Plan};
use rewrite::{ParamsOf, Rewriter};

/// QuantizeLinear and DequantizeLinear around what is quantized.
pub(crate) struct Qdq;

impl Output for Qdq {
    fn name(&self) -> &'static str {
        "qdq"
    }

    fn summary(&self) -> &'static str {
        "ONNX with QuantizeLinear and DequantizeLinear where runtimes fuse them"
    }

    fn is_for(&self, model: &Model) -> bool {
        model.onnx().is_some()
    }

    fn needs_params(&self) -> bool {
        true
    }

    fn lay_out(&self, model: &Model, plan: &Plan, params: &ParamsOf, name: &str) -> Result<OutputLayout> {
        let Some(onnx) = model.onnx() else {
            return Err(Error::Usage("--format qdq: expected an ONNX model, found another".into()));
        };
        let mut rewriter = Rewriter::new(model, onnx, plan, params);
        let mut quantized = dynamic::Quantized::new();
        for (i, layer) in onnx.weights.layers.iter().enumerate() {
            match plan.layers[i] {
                LayerMode::Keep => {}
                LayerMode::WeightOnly => weight_only::rewrite(&mut rewriter, layer),
                LayerMode::Dynamic if layer.op == "LSTM" => {
                    if let Some(recurrent) = onnx.weights.layers.get(i + 1).filter(|_| layer.input == 1) {
                        dynamic::rewrite_lstm(&mut rewriter, layer, recurrent);
                    }
                }
                LayerMode::Dynamic => dynamic::rewrite_product(&mut rewriter, layer, &mut quantized),
            }
        }
        let (proto, deferred) = rewriter.finish();
        Ok(OutputLayout { files: file::lay_out(proto, &deferred, name, onnx.file.has_external_data), documents: Vec::new() })
    }
}
