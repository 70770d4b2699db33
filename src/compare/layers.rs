//! Values within two models of one graph: how each differs with all that came before, and by its own node alone.
//!
//! For the latter the quantized model takes every value that both have from the float model: the node that computes `v`
//! computes `v__own` instead, and all others take `v` as an input. One run then tells the error of each value alone.

use super::Sums;
use super::onnx::{LayerDifference, sums_of};
use crate::calibration::array::Array;
use crate::calibration::engine::{self, Engine, EngineChoice};
use crate::calibration::samples::Samples;
use crate::error::{Error, Result, show_name};
use crate::formats::onnx::proto::{ModelProto, TensorTypeProto, TypeProto, ValueInfoProto};
use crate::formats::onnx::tensor::FLOAT;
use crate::graph::names::Names;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The values that both models have.
pub(super) struct Layers {
    path: PathBuf,
    /// Their names, and the operators that they come from.
    values: Vec<String>,
    ops: Vec<String>,
    /// The quantized model that takes them.
    local: Box<dyn Engine>,
    /// What it calls what it computes itself, in the same order.
    own: Vec<String>,
}

impl Layers {
    /// Finds the values, which are told from integers by the first of `samples`.
    pub(super) fn new(float: &ModelProto, quantized: &ModelProto, path: &Path, engine: &dyn Engine, samples: &Samples) -> Result<Self> {
        let nodes = |proto: &ModelProto| -> HashMap<String, String> {
            let nodes = proto.graph.iter().flat_map(|graph| &graph.node);
            nodes.flat_map(|node| node.output.iter().map(|name| (name.clone(), node.op_type.clone()))).collect()
        };
        let (ops, computed) = (nodes(float), nodes(quantized));
        let candidates: Vec<String> =
            engine.values().into_iter().filter(|name| ops.contains_key(name) && computed.contains_key(name)).collect();
        let mut is_float = vec![false; candidates.len()];
        engine.for_each_value(&samples.load(0)?, &candidates, &mut |i, array| {
            is_float[i] = array.floats().is_some();
            Ok(())
        })?;
        let values: Vec<String> = candidates.into_iter().zip(is_float).filter(|(_, is_float)| *is_float).map(|(name, _)| name).collect();
        let (proto, own) = isolate(quantized.clone(), &values);
        let local = engine::load_model(EngineChoice::Auto, path, proto, &engine::Options::default())?;
        let ops = values.iter().map(|name| ops[name].clone()).collect();
        Ok(Layers { path: path.to_owned(), values, ops, local, own })
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Sums of one sample: with all that came before, and alone.
    pub(super) fn compare(&self, sample: &[(String, Array)], float: &dyn Engine, quantized: &dyn Engine) -> Result<Vec<[Sums; 2]>> {
        let expected = float.run(sample, &self.values)?;
        let mut sums = vec![<[Sums; 2]>::default(); self.values.len()];
        let compare = |i: usize, found: &Array| {
            sums_of(&expected[i], found).map_err(|e| Error::malformed(&self.path, format!("value {}: {e}", show_name(&self.values[i]))))
        };
        quantized.for_each_value(sample, &self.values, &mut |i, found| compare(i, found).map(|found| sums[i][0] = found))?;
        let mut local: Vec<[Sums; 2]> = sums;
        let given = self.values.iter().cloned().zip(expected.iter().cloned());
        let inputs: Vec<(String, Array)> = sample.iter().cloned().chain(given).collect();
        self.local.for_each_value(&inputs, &self.own, &mut |i, found| compare(i, found).map(|found| local[i][1] = found))?;
        Ok(local)
    }

    /// What to report, worst first.
    pub(super) fn report(&self, totals: &[[Sums; 2]]) -> Vec<LayerDifference> {
        let named = self.values.iter().zip(&self.ops).zip(totals);
        let mut layers: Vec<LayerDifference> = named
            .map(|((name, op), [total, local])| LayerDifference {
                name: name.clone(),
                op: op.clone(),
                difference: total.difference(),
                local: local.difference(),
            })
            .collect();
        layers.sort_by(|a, b| a.difference.quality().total_cmp(&b.difference.quality()).then_with(|| a.name.cmp(&b.name)));
        layers
    }
}

/// The model with `values` as inputs, and the names of what it computes in their place.
fn isolate(mut proto: ModelProto, values: &[String]) -> (ModelProto, Vec<String>) {
    let mut names = Names::of(&proto);
    let own: Vec<String> = values.iter().map(|name| names.fresh(&format!("{name}__own"))).collect();
    let renamed: HashMap<&String, &String> = values.iter().zip(&own).collect();
    if let Some(graph) = proto.graph.as_deref_mut() {
        for name in graph.node.iter_mut().flat_map(|node| &mut node.output) {
            if let Some(own) = renamed.get(name) {
                *name = (*own).clone();
            }
        }
        let info = |name: &String| {
            let tensor_type = Some(Box::new(TensorTypeProto { elem_type: Some(FLOAT), ..TensorTypeProto::default() }));
            let kind = TypeProto { tensor_type, ..TypeProto::default() };
            ValueInfoProto { name: name.clone(), r#type: Some(Box::new(kind)), ..ValueInfoProto::default() }
        };
        let taken: HashSet<&String> = values.iter().collect();
        graph.value_info.retain(|value| !taken.contains(&value.name));
        graph.input.extend(values.iter().map(info));
        graph.output = own.iter().map(info).collect();
    }
    (proto, own)
}
