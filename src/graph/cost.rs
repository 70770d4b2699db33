//! What layers cost: multiply-adds, from the number of values that go through them.

use super::onnx_model::OnnxModel;
use super::weights::Layer;

/// The value of a layer whose number of elements tells its multiply-adds: what a convolution gives, what others take.
pub(crate) fn counted_value<'m>(onnx: &'m OnnxModel, layer: &Layer) -> Option<&'m str> {
    let node = onnx.node(layer);
    match layer.op.as_str() {
        "Conv" => node.output.first().map(String::as_str),
        "MatMul" | "Gemm" | "ConvTranspose" => node.input(if layer.input == 0 { 1 } else { 0 }),
        _ => None,
    }
}

/// Multiply-adds for so many elements of the [`counted_value`], with a weight of this shape.
pub(crate) fn multiply_adds(layer: &Layer, weight: &[usize], elements: u64) -> u64 {
    let each: usize = match layer.op.as_str() {
        // [out, in / groups, kernel ...]
        "Conv" => weight.iter().skip(1).product(),
        // [in, out / groups, kernel ...]
        "ConvTranspose" => weight.iter().skip(1).product(),
        // The channels of the output.
        _ => weight[layer.axis],
    };
    elements * each as u64
}
