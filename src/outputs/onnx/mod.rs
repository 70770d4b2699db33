//! ONNX out: the model with quantized weights in place of float ones, in the forms that ONNX Runtime computes with.

mod dynamic;
pub(crate) mod file;
pub(crate) mod rewrite;
pub(crate) mod static_qdq;
mod weight_only;

use super::{Output, OutputLayout, QuantizedGraph};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{LayerMode, Plan};
use rewrite::{Chosen, Rewriter};
use static_qdq::{Static, Style};

/// A form of ONNX.
pub(crate) struct Onnx {
    name: &'static str,
    summary: &'static str,
    style: Style,
}

/// QuantizeLinear and DequantizeLinear around what is quantized.
pub(crate) const QDQ: Onnx =
    Onnx { name: "qdq", summary: "ONNX with QuantizeLinear and DequantizeLinear where runtimes fuse them", style: Style::Pairs };

/// Operators on codes.
pub(crate) const QOPERATOR: Onnx =
    Onnx { name: "qoperator", summary: "ONNX with operators on codes, such as QLinearConv", style: Style::Operators };

impl Output for Onnx {
    fn name(&self) -> &'static str {
        self.name
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn is_for(&self, model: &Model) -> bool {
        model.onnx().is_some()
    }

    fn needs_params(&self, _model: &Model) -> bool {
        true
    }

    fn lay_out(&self, model: &Model, plan: &Plan, chosen: &Chosen, name: &str) -> Result<OutputLayout> {
        let (Some(onnx), Some(graph)) = (model.onnx(), self.quantized_graph(model, plan, chosen)) else {
            return Err(Error::Usage(format!("--format {}: expected an ONNX model, found another", self.name)));
        };
        let files = file::lay_out(graph.proto, &graph.deferred, name, onnx.file.has_external_data);
        Ok(OutputLayout { files, documents: Vec::new() })
    }

    fn quantized_graph(&self, model: &Model, plan: &Plan, chosen: &Chosen) -> Option<QuantizedGraph> {
        let onnx = model.onnx()?;
        let mut rewriter = Rewriter::new(model, onnx, plan, &chosen.weights);
        let mut fixed = Static::new(self.style, &plan.values, &chosen.activations);
        fixed.quantize_outputs(&mut rewriter);
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
                LayerMode::Static => fixed.rewrite(&mut rewriter, i, layer),
                LayerMode::Dynamic => dynamic::rewrite_product(&mut rewriter, layer, &mut quantized),
            }
        }
        fixed.finish(&mut rewriter);
        let for_integers = std::mem::take(&mut rewriter.for_integers);
        let (proto, deferred) = rewriter.finish();
        Some(QuantizedGraph { proto, deferred, for_integers })
    }
}
