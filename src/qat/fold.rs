//! Batch normalization that was trained within a fake-quantized layer, folded as `convert` folds it.
//!
//! [`fuse_conv_bn_weights`](https://github.com/pytorch/pytorch/blob/main/torch/nn/utils/fusion.py), every step in f32:
//!
//! ```text
//! r = 1 / sqrt(running_var + eps)
//! weight' = weight * (gamma * r)          bias' = (bias - running_mean) * r * gamma + beta       of a convolution
//!                                         bias' = (bias - running_mean) * (gamma * r) + beta     of a Linear layer
//! ```
//!
//! `eps` is not in a state dict; it is that of `torch.nn.BatchNorm2d` unless told otherwise. `prepare_qat_pt2e` takes that value,
//! whatever the module has.

use super::names::join;
use super::weights::Found;
use crate::error::{Result, show_name};
use crate::model::Model;
use crate::tensor::{Dtype, TensorInfo, encode_f32};
use bytes::Bytes;
use std::collections::HashMap;

/// `eps` of `torch.nn.BatchNorm1d`, `2d` and `3d` where none is given.
const BATCH_NORM_EPS: f32 = 1e-5;

/// Tensors that are stored in another way, or left out, by number.
pub(super) type Changes = HashMap<usize, Option<(TensorInfo, Bytes)>>;

/// The batch normalization of `module`, if it has one of its own.
///
/// # Errors
///
/// [`crate::Error::Tensor`] if it is of a layout that is not read.
pub(super) fn within(model: &Model, index: &HashMap<&str, usize>, module: &str) -> Result<Option<String>> {
    let find = |name: &str| index.get(join(module, name).as_str()).copied();
    if let Some(old) = find("running_var").filter(|_| find("gamma").is_some()) {
        let message = "expected the batch normalization of a fused layer under `bn`, found the layout of PyTorch 1.6 and before";
        return Err(model.tensor_error(old, message).with_hint("load it with a newer PyTorch and save it again"));
    }
    Ok(find("bn.running_var").map(|_| join(module, "bn")))
}

/// Folds the batch normalization `norm` into a layer: changes of weight and bias go to `changes`, the weight's new values are
/// returned.
///
/// # Errors
///
/// [`crate::Error::Tensor`] if there is no such state, it is not F32, lengths do not fit, or variances are negative or no numbers.
pub(super) fn fold(model: &Model, index: &HashMap<&str, usize>, layer: &Found, norm: &str, changes: &mut Changes) -> Result<Vec<f32>> {
    let weight = layer.tensor;
    let find = |name: &str| index.get(join(norm, name).as_str()).copied();
    let shape = &model.tensors()[weight].info.shape;
    let channels = shape.first().copied().unwrap_or(0);
    let read = |tensor: usize| -> Result<Vec<f32>> {
        let info = &model.tensors()[tensor].info;
        if info.dtype != Dtype::F32 || info.elements() != channels {
            let found = format!("expected {channels} values of type F32 to fold into the layer, found {} {:?}", info.dtype, info.shape);
            return Err(model.tensor_error(tensor, found));
        }
        Ok(model.values(tensor, 0..channels, &mut Vec::new()).to_vec())
    };
    let needed = |name: &str| {
        find(name)
            .ok_or_else(|| model.tensor_error(weight, format!("expected {} to fold into it, found none", show_name(&join(norm, name)))))
    };
    let (gamma_tensor, beta_tensor, mean_tensor) = (needed("weight")?, needed("bias")?, needed("running_mean")?);
    let variance = needed("running_var")?;
    let (gamma, beta, mean, var) = (read(gamma_tensor)?, read(beta_tensor)?, read(mean_tensor)?, read(variance)?);
    if let Some(found) = var.iter().find(|var| !(var.is_finite() && **var >= 0.0)) {
        return Err(model.tensor_error(variance, format!("expected finite variances, found {found}")));
    }
    let info = &model.tensors()[weight].info;
    if info.dtype != Dtype::F32 {
        return Err(model.tensor_error(weight, format!("expected F32 to fold batch normalization into, found {}", info.dtype)));
    }
    let of_norm = [gamma_tensor, beta_tensor, mean_tensor, variance];
    if let Some(used) = of_norm.iter().find(|tensor| **tensor == weight || changes.contains_key(*tensor)) {
        let message = format!("expected batch normalization of the layer {} alone, found it in use otherwise", show_name(&layer.module));
        return Err(model.tensor_error(*used, message));
    }
    let bias_name = join(&layer.module, "bias");
    let bias_tensor = index.get(bias_name.as_str()).copied();
    let bias = bias_tensor.map(read).transpose()?.unwrap_or_else(|| vec![0.0; channels]);
    let inverse: Vec<f32> = var.iter().map(|var| 1.0 / (var + BATCH_NORM_EPS).sqrt()).collect();
    let factors: Vec<f32> = gamma.iter().zip(&inverse).map(|(gamma, inverse)| gamma * inverse).collect();
    let elements = info.elements();
    let mut values = model.values(weight, 0..elements, &mut Vec::new()).to_vec();
    let row = elements / channels.max(1);
    values.chunks_mut(row.max(1)).zip(&factors).for_each(|(row, factor)| row.iter_mut().for_each(|value| *value *= factor));
    let is_linear = shape.len() == 2;
    let folded = |c: usize| match is_linear {
        true => (bias[c] - mean[c]) * factors[c] + beta[c],
        false => (bias[c] - mean[c]) * inverse[c] * gamma[c] + beta[c],
    };
    let folded: Vec<f32> = (0..channels).map(folded).collect();
    changes.insert(weight, Some((info.clone(), stored(&values))));
    // A layer that had no bias gets one, in the place of the normalization's.
    let place = bias_tensor.unwrap_or(beta_tensor);
    let of_bias = TensorInfo { name: bias_name, ..model.tensors()[place].info.clone() };
    let names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
    changes.extend(names.iter().filter_map(|name| find(name)).map(|tensor| (tensor, None)));
    changes.insert(place, Some((of_bias, stored(&folded))));
    Ok(values)
}

fn stored(values: &[f32]) -> Bytes {
    let mut bytes = vec![0; size_of_val(values)];
    encode_f32(Dtype::F32, values, &mut bytes);
    bytes.into()
}
