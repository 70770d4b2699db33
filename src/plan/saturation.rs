//! Which weights are multiplied in pairs that could saturate on processors without VNNI, and which of their elements are pairs.
//!
//! ONNX Runtime's kernels (MLAS) interleave four rows of K at a time, of which `vpmaddubsw` adds the first two products and the last two:
//!
//! | operator | weight | order of K |
//! |---|---|---|
//! | MatMul, Gemm, LSTM | the features of each output | as stored |
//! | Conv, and each group of one | `[out, in / groups, positions]` | channels of the first position, then of the second, … |
//! | Conv with one input and one output channel a group | | none: products are added in 32 bits |
//!
//! A convolution whose weight is transposed on the way is not looked at.
//!
//! This is as `MlasGemmU8S8CopyPackBAvx2`, `QLinearConv::ReorderFilter`, `MlasConvSymPackW` and `MlasConvSymDepthwiseKernelAvx2` have it;
//! `tests/interop/test_saturation.py` finds the same pairs by trying all.

use super::{LayerMode, Plan};
use crate::graph::onnx_model::OnnxModel;
use crate::graph::weights::Layer;
use crate::model::Model;
use crate::quant::saturation::{PairCheck, Pairing, Saturation};
use crate::quant::scheme::CodeType;
use std::collections::BTreeMap;

/// Activation codes that a layer takes, as kernels see them: the smallest and the largest; `None` where any may come.
pub(crate) type CodesOf<'a> = &'a dyn Fn(&Layer) -> Option<[i32; 2]>;

/// The pairs of each tensor that layers of `plan` multiply with uint8 codes, by tensor. Layers are written as operators on
/// codes if `as_operators`; else ONNX Runtime makes uint8 codes of int8 ones.
pub(crate) fn find(model: &Model, plan: &Plan, as_operators: bool, observed: CodesOf<'_>) -> BTreeMap<usize, PairCheck> {
    let mut found: BTreeMap<usize, PairCheck> = BTreeMap::new();
    let Some(onnx) = model.onnx().filter(|_| plan.saturation != Saturation::Ignore) else { return found };
    // Operators on int8 activations have a kernel that adds in 32 bits.
    let static_is_exact = as_operators && plan.activation_codes.is_signed();
    for (number, layer) in onnx.weights.layers.iter().enumerate() {
        let Some(tensor) = onnx.tensor(&layer.weight).filter(|tensor| multiplies_in_pairs(plan, number, *tensor)) else { continue };
        if plan.layers[number] == LayerMode::Static && static_is_exact {
            continue;
        }
        let Some(pairing) = pairing(onnx, layer, &model.tensors()[tensor].info.shape) else { continue };
        let codes = observed(layer);
        let nudges = plan.saturation == Saturation::Nudge;
        let check = found.entry(tensor).or_insert(PairCheck { pairings: Vec::new(), nudges, observed: codes, on_samples: None });
        check.observed = check.observed.zip(codes).map(|([a, b], [c, d])| [a.min(c), b.max(d)]);
        if !check.pairings.contains(&pairing) {
            check.pairings.push(pairing);
        }
    }
    found
}

/// Whether a layer multiplies int8 weights with codes of 8 bits.
pub(super) fn multiplies_in_pairs(plan: &Plan, layer: usize, tensor: usize) -> bool {
    let is_integer = match plan.layers[layer] {
        LayerMode::Static => plan.activation_codes.bits() == 8,
        mode => mode == LayerMode::Dynamic,
    };
    is_integer && plan.scheme(tensor).is_some_and(|scheme| scheme.codes == CodeType::Int8)
}

/// The pairs of a layer's weight of `shape`, as it is stored; `None` if its products are not added in pairs.
fn pairing(onnx: &OnnxModel, layer: &Layer, shape: &[usize]) -> Option<Pairing> {
    let rank = shape.len();
    match (layer.op.as_str(), shape) {
        ("MatMul" | "Gemm", [_, _]) => Some(Pairing::along(shape, 1 - layer.axis)),
        ("LSTM", [_, _, _]) => Some(Pairing::along(shape, if layer.path.transposed { 1 } else { 2 })),
        ("Conv", [rows, rest @ ..]) if rank >= 3 && !layer.path.transposed => {
            let groups = usize::try_from(onnx.node(layer).int("group", 1)).unwrap_or(1).max(1);
            let [channels, positions] = [rest[0], rest[1..].iter().product()];
            let is_depthwise = channels == 1 && *rows == groups;
            (!is_depthwise).then(|| Pairing::convolution([*rows, channels, positions]))
        }
        _ => None,
    }
}
