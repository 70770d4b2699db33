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
//! `eps` is not in a state dict; it is that of `torch.nn.BatchNorm2d` unless told otherwise.

use super::names::join;
use crate::error::{Result, show_name};
use crate::model::Model;
use crate::tensor::{Dtype, TensorInfo, encode_f32};
use bytes::Bytes;
use std::collections::HashMap;

/// `eps` of `torch.nn.BatchNorm1d`, `2d` and `3d` where none is given.
pub(super) const BATCH_NORM_EPS: f32 = 1e-5;

/// Tensors that are stored in another way, or left out, by number.
pub(super) type Changes = HashMap<usize, Option<(TensorInfo, Bytes)>>;

/// Folds the batch normalization of `module`, if it has one of its own: changes of weight and bias go to `changes`, the
/// weight's new values are returned.
///
/// # Errors
///
/// [`crate::Error::Tensor`] if the state is not F32, lengths do not fit, or variances are negative or no numbers.
pub(super) fn fold(
    model: &Model,
    index: &HashMap<&str, usize>,
    module: &str,
    weight: usize,
    changes: &mut Changes,
) -> Result<Option<Vec<f32>>> {
    let find = |name: &str| index.get(join(module, name).as_str()).copied();
    if let Some(old) = find("running_var").filter(|_| find("gamma").is_some()) {
        let message = "expected the batch normalization of a fused layer under `bn`, found the layout of PyTorch 1.6 and before";
        return Err(model.tensor_error(old, message).with_hint("load it with a newer PyTorch and save it again"));
    }
    let Some(variance) = find("bn.running_var") else { return Ok(None) };
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
        find(name).ok_or_else(|| model.tensor_error(variance, format!("expected {} beside it, found none", show_name(&join(module, name)))))
    };
    let (gamma_tensor, beta_tensor, mean_tensor) = (needed("bn.weight")?, needed("bn.bias")?, needed("bn.running_mean")?);
    let (gamma, beta, mean, var) = (read(gamma_tensor)?, read(beta_tensor)?, read(mean_tensor)?, read(variance)?);
    if let Some(found) = var.iter().find(|var| !(var.is_finite() && **var >= 0.0)) {
        return Err(model.tensor_error(variance, format!("expected finite variances, found {found}")));
    }
    let info = &model.tensors()[weight].info;
    if info.dtype != Dtype::F32 {
        return Err(model.tensor_error(weight, format!("expected F32 to fold batch normalization into, found {}", info.dtype)));
    }
    let bias_tensor = find("bias");
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
    let of_bias = TensorInfo { name: join(module, "bias"), ..model.tensors()[place].info.clone() };
    let names = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"];
    changes.extend(names.iter().filter_map(|name| find(name)).map(|tensor| (tensor, None)));
    changes.insert(place, Some((of_bias, stored(&folded))));
    Ok(Some(values))
}

fn stored(values: &[f32]) -> Bytes {
    let mut bytes = vec![0; size_of_val(values)];
    encode_f32(Dtype::F32, values, &mut bytes);
    bytes.into()
}
