//! An ONNX model with its weights found: what a [`Model`] of that format carries besides its tensors.

use super::weights::{self, Key, Layer, Weights};
use crate::error::{Error, Result};
use crate::formats::onnx::OnnxFile;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::scopes::{BodyPlace, TOP, scopes};
use crate::model::{Model, ModelTensor, Role};
use crate::recipe::CustomLayer;
use crate::tensor::TensorInfo;
use bytes::Bytes;
use std::collections::HashMap;

/// The graph, its weights, and which tensor of the [`Model`] each constant is.
pub(crate) struct OnnxModel {
    pub file: OnnxFile,
    pub weights: Weights,
    /// Layers that the recipe declares.
    pub custom: Vec<CustomLayer>,
    tensors: HashMap<Key, usize>,
    /// For every graph, the number of the one that holds it, and its place there.
    places: Vec<(usize, BodyPlace)>,
}

impl OnnxModel {
    /// The node of a layer.
    pub(crate) fn node(&self, layer: &Layer) -> &NodeProto {
        &self.graph(layer.scope).expect("layers are in graphs of the model").node[layer.node]
    }

    /// The graph of this number.
    fn graph(&self, scope: usize) -> Option<&GraphProto> {
        match scope {
            TOP => self.file.proto.graph.as_deref(),
            _ => self.places.get(scope).and_then(|(parent, place)| place.find(self.graph(*parent)?)),
        }
    }

    /// Stores other bytes of a constant of the top graph.
    pub(crate) fn replace(&mut self, tensor: usize, bytes: &Bytes) {
        let name = self.tensors.iter().find(|(key, place)| **place == tensor && key.0 == TOP).map(|(key, _)| &key.1);
        let constants = self.file.proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        for constant in constants.filter(|constant| Some(&constant.name) == name) {
            let TensorProto { name, data_type, dims, .. } = std::mem::take(constant);
            *constant = TensorProto::raw(name, data_type.unwrap_or_default(), &dims, bytes.clone());
        }
    }

    /// The tensor of the [`Model`] that a constant is.
    pub(crate) fn tensor(&self, key: &Key) -> Option<usize> {
        self.tensors.get(key).copied()
    }
}

/// A model whose tensors are the constants of `file` that this crate has a type for; `custom` are layers that the recipe declares.
///
/// # Errors
///
/// [`Error::Tensor`] if a constant's values do not fit its type and dimensions.
pub(crate) fn into_model(file: OnnxFile, custom: Vec<CustomLayer>) -> Result<Model> {
    let weights = weights::find(&file.proto, &custom);
    let mut roles: HashMap<&Key, Role> = HashMap::new();
    for layer in &weights.layers {
        let role = Role::Weight { layer: layer.name.clone(), op: layer.op.clone(), axis: Some(layer.axis) };
        let merged = match roles.remove(&layer.weight) {
            // Used along different axes: then the channels of neither.
            Some(Role::Weight { layer, op, axis }) if axis != role.axis() => Role::Weight { layer, op, axis: None },
            Some(first) => first,
            None => role,
        };
        roles.insert(&layer.weight, merged);
    }
    let (mut tensors, mut places) = (Vec::new(), HashMap::new());
    let scopes = scopes(&file.proto);
    for (number, scope) in scopes.iter().enumerate() {
        for constant in &scope.graph.initializer {
            let key = (number, constant.name.clone());
            let shown = &weights.shown[&key];
            let role = match roles.remove(&key) {
                Some(role) => role,
                None => Role::Other { reason: weights.others.get(&key).cloned().unwrap_or_default() },
            };
            let position = tensors.len();
            if let Some(tensor) = model_tensor(constant, shown, position, role).map_err(|e| Error::tensor(&file.path, shown, e))? {
                tensors.push(tensor);
                places.insert(key, position);
            }
        }
    }
    let graphs = scopes.iter().map(|scope| (scope.parent, scope.place)).collect();
    Ok(Model::of_onnx(OnnxModel { file, weights, custom, tensors: places, places: graphs }, tensors))
}

fn model_tensor(constant: &TensorProto, name: &str, position: usize, role: Role) -> Result<Option<ModelTensor>, String> {
    let Some(dtype) = constant.dtype() else { return Ok(None) };
    let data = constant.contents()?;
    let info = TensorInfo { name: name.to_owned(), dtype, shape: constant.shape()?, position, bytes: 0..data.len() };
    Ok(Some(ModelTensor { file: 0, info, data, role, former_name: None, rescale: None }))
}
