//! What all ONNX forms share: quantized weights as constants, and edits of every graph that are made at the end.

use crate::formats::onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto, Payload, TensorProto};
use crate::formats::onnx::tensor::{self, FLOAT, INT4, INT8, INT16, UINT4, UINT8, UINT16};
use crate::graph::edits::Edits;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::onnx_model::OnnxModel;
use crate::graph::scopes;
use crate::graph::sweep;
use crate::graph::weights::{Key, Layer};
use crate::model::Model;
use crate::outputs::Content;
use crate::plan::{LayerMode, Plan, TensorScheme, block_axis};
use crate::quant::params::Params;
use crate::quant::scheme::{CodeType, Granularity};
use crate::tensor::{Dtype, encode_f32};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Parameters of the groups of each quantized tensor.
pub(crate) type ParamsOf = BTreeMap<usize, Vec<Params>>;

/// Everything that was chosen before codes are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    /// Parameters of weights.
    pub weights: ParamsOf,
    /// Parameters of activations, by the name of the value.
    pub activations: BTreeMap<String, Params>,
}

/// A graph being rewritten.
pub(super) struct Rewriter<'a> {
    pub model: &'a Model,
    pub onnx: &'a OnnxModel,
    pub plan: &'a Plan,
    pub params: &'a ParamsOf,
    pub names: Names,
    /// Changes to each graph.
    pub edits: Vec<Edits>,
    pub indexes: Vec<GraphIndex<'a>>,
    /// What deferred payloads are.
    pub deferred: Vec<Content>,
    /// Names of the codes of weights that operators compute with.
    pub for_integers: BTreeSet<String>,
    /// By the graph that constants are put into, the weight, and whether it is transposed.
    made: HashMap<(usize, Key, bool), WeightNames>,
    imports: BTreeSet<&'static str>,
    /// Graph, node and input of weights that become floats when the model runs.
    weight_only: HashSet<(usize, usize, usize)>,
}

/// The constants that stand for a weight.
#[derive(Clone, Debug)]
pub(super) struct WeightNames {
    pub codes: String,
    pub scale: String,
    pub zero_point: String,
    /// The axis that scales are along, of the codes as stored; `None` if there is one scale.
    pub axis: Option<usize>,
    /// Elements of a block along `axis`, where blocks share scales.
    pub block: Option<usize>,
    /// Whether every zero point is 0.
    pub is_symmetric: bool,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(model: &'a Model, onnx: &'a OnnxModel, plan: &'a Plan, params: &'a ParamsOf) -> Self {
        let indexes: Vec<GraphIndex<'a>> = scopes::scopes(&onnx.file.proto).iter().map(|scope| GraphIndex::new(scope.graph)).collect();
        let weight_only = plan.layers_of(onnx, LayerMode::WeightOnly).map(|(_, layer)| layer.place()).collect();
        Rewriter {
            model,
            onnx,
            plan,
            params,
            names: Names::of(&onnx.file.proto),
            edits: indexes.iter().map(|_| Edits::default()).collect(),
            indexes,
            deferred: Vec::new(),
            for_integers: BTreeSet::new(),
            made: HashMap::new(),
            imports: BTreeSet::new(),
            weight_only,
        }
    }

    /// The tensor of a layer's weight and its scheme, if it is quantized.
    pub(super) fn scheme(&self, layer: &Layer) -> Option<(usize, &'a TensorScheme)> {
        let tensor = self.onnx.tensor(&layer.weight)?;
        self.plan.scheme(tensor).map(|scheme| (tensor, scheme))
    }

    /// As [`Rewriter::weight`], for an operator that is to compute with the codes.
    pub(super) fn weight_for_integers(&mut self, layer: &Layer, transposed: bool) -> WeightNames {
        let names = self.weight(layer, transposed);
        self.for_integers.insert(names.codes.clone());
        names
    }

    /// Constants for the codes and parameters of a layer's weight, made once; `transposed` with the last two axes swapped.
    pub(super) fn weight(&mut self, layer: &Layer, transposed: bool) -> WeightNames {
        let home = self.home(layer);
        let made = (home, layer.weight.clone(), transposed);
        if let Some(names) = self.made.get(&made) {
            return names.clone();
        }
        let (tensor, scheme) = self.scheme(layer).expect("only layers with quantized weights are rewritten");
        let name = layer.weight.1.clone();
        let info = &self.model.tensors()[tensor].info;
        let mut shape: Vec<i64> = info.shape.iter().map(|dim| *dim as i64).collect();
        let rank = shape.len();
        let params = &self.params[&tensor];
        let mut axis = match scheme.granularity {
            Granularity::PerTensor => None,
            Granularity::PerChannel => Some(scheme.axis),
            Granularity::PerGroup(_) => Some(block_axis(rank, scheme.axis)),
        };
        let block = match scheme.granularity {
            Granularity::PerGroup(size) => Some(size),
            _ => None,
        };
        let mut parameter_shape: Vec<i64> = axis.map(|axis| shape[axis]).into_iter().collect();
        if let (Some(block), Some(axis)) = (block, axis) {
            parameter_shape.clone_from(&shape);
            parameter_shape[axis] = (shape[axis] as usize).div_ceil(block) as i64;
        }
        let params = match (transposed, block) {
            (true, Some(_)) => &transpose_params(params, &mut parameter_shape),
            _ => params,
        };
        if transposed {
            shape.swap(rank - 1, rank - 2);
            axis = axis.map(|axis| if axis + 2 >= rank { 2 * rank - 3 - axis } else { axis });
        }
        let suffix = if transposed { "_transposed" } else { "" };
        let codes_name = self.names.fresh(&format!("{name}{suffix}_quantized"));
        let id = self.deferred.len();
        self.deferred.push(if transposed { Content::TransposedCodes(tensor) } else { Content::Codes(tensor) });
        let len = tensor::packed_bytes(scheme.codes.bits() as usize, info.elements()).expect("readers have checked sizes") as u64;
        let code_type = element_code(scheme.codes);
        let codes = TensorProto {
            name: codes_name,
            data_type: Some(code_type),
            dims: shape,
            raw_data: Some(Payload::Deferred { id, len }),
            ..TensorProto::default()
        };
        let (scale_type, scale_dtype) = scale_type(info.dtype, layer.path.cast_to);
        let scales: Vec<f32> = params.iter().map(|params| params.scale).collect();
        let mut scale_bytes = vec![0; scales.len() * scale_dtype.bytes().unwrap_or(4) as usize];
        encode_f32(scale_dtype, &scales, &mut scale_bytes);
        let zero_points: Vec<i32> = params.iter().map(|params| params.zero_point).collect();
        let is_symmetric = zero_points.iter().all(|zero_point| *zero_point == 0);
        let scale = TensorProto::raw(self.names.fresh(&format!("{name}_scale")), scale_type, &parameter_shape, scale_bytes);
        let zero_point_name = self.names.fresh(&format!("{name}_zero_point"));
        let zero_point = TensorProto::raw(zero_point_name, code_type, &parameter_shape, pack_codes(scheme.codes, &zero_points));
        let edits = &mut self.edits[home];
        let names =
            WeightNames { codes: edits.add(codes), scale: edits.add(scale), zero_point: edits.add(zero_point), axis, block, is_symmetric };
        self.made.insert(made, names.clone());
        names
    }

    /// The graph that constants of a layer's weight are put into: the weight's own, but for products in bodies that take
    /// floats, of which ONNX Runtime makes MatMulNBits, whose weight must be beside it.
    fn home(&self, layer: &Layer) -> usize {
        let is_float = self.weight_only.contains(&layer.place());
        if is_float && matches!(layer.op.as_str(), "MatMul" | "Gemm") { layer.scope } else { layer.weight.0 }
    }

    /// The size of a dimension of a layer's weight as it is stored.
    pub(super) fn dimension(&self, layer: &Layer, axis: usize) -> Option<i64> {
        let (tensor, _) = self.scheme(layer)?;
        self.model.tensors()[tensor].info.shape.get(axis).and_then(|dim| i64::try_from(*dim).ok())
    }

    /// A constant of shape [n] as a column, [n, 1].
    pub(super) fn column(&mut self, scope: usize, name: &str) -> String {
        let column = format!("{name}_column");
        let edits = &mut self.edits[scope];
        if edits.find(&column).is_none()
            && let Some(tensor) = edits.find(name).cloned()
        {
            let dims = vec![tensor.dims[0], 1];
            edits.add(TensorProto { name: column.clone(), dims, ..tensor });
        }
        column
    }

    /// Parameters that all directions of a recurrent layer share, once for each: [channels] as [directions, channels], a
    /// scalar as [directions].
    pub(super) fn for_each_direction(&mut self, layer: &Layer, name: &str) -> String {
        let directions = self.scheme(layer).map_or(1, |(tensor, _)| self.model.tensors()[tensor].info.shape[0]);
        let repeated = format!("{name}_of_directions");
        let edits = &mut self.edits[layer.weight.0];
        if edits.find(&repeated).is_none()
            && let Some(tensor) = edits.find(name).cloned()
        {
            let bytes = tensor.contents().expect("parameters are known").repeat(directions);
            let dims: Vec<i64> = std::iter::once(directions as i64).chain(tensor.dims.iter().copied()).collect();
            edits.add(TensorProto::raw(repeated.clone(), tensor.data_type.unwrap_or(FLOAT), &dims, bytes));
        }
        repeated
    }

    /// Adds the operators of `domain` to those that the model imports.
    pub(super) fn import(&mut self, domain: &'static str) {
        self.imports.insert(domain);
    }

    /// Makes all changes, in a copy of the model, and drops constants and nodes that nothing takes any more.
    pub(super) fn finish(self) -> (ModelProto, Vec<Content>) {
        let Rewriter { onnx, edits, deferred, imports, .. } = self;
        let mut proto = onnx.file.proto.clone();
        let mut edits: Vec<Option<Edits>> = edits.into_iter().map(Some).collect();
        let mut unused: Vec<HashSet<String>> = scopes::scopes(&proto).iter().map(|scope| sweep::unused(scope.graph)).collect();
        scopes::for_each_mut(&mut proto, &mut |number, graph| {
            if let Some(edits) = edits.get_mut(number).and_then(Option::take) {
                // Parameters that are stored in another shape too stay, to be found by name.
                unused[number].extend(edits.added().iter().map(|tensor| tensor.name.clone()));
                edits.apply(graph);
                sweep::remove(graph, &unused[number]);
            }
        });
        for domain in imports {
            if !proto.opset_import.iter().any(|import| import.domain == domain) {
                proto.opset_import.push(OperatorSetIdProto { domain: domain.into(), version: Some(1), ..Default::default() });
            }
        }
        // Constants that became unused: those of the original whose only uses were rewritten.
        let used_before = used_names(onnx.file.proto.graph.as_deref());
        let used_now = used_names(proto.graph.as_deref());
        scopes::for_each_mut(&mut proto, &mut |_, graph| {
            graph.initializer.retain(|tensor| used_now.contains(&tensor.name) || !used_before.contains(&tensor.name));
        });
        (proto, deferred)
    }
}

fn used_names(graph: Option<&GraphProto>) -> HashSet<String> {
    fn collect(graph: &GraphProto, used: &mut HashSet<String>) {
        used.extend(graph.output.iter().map(|value| value.name.clone()));
        for node in &graph.node {
            used.extend(node.input.iter().cloned());
            node.bodies().for_each(|body| collect(body, used));
        }
    }
    let mut used = HashSet::new();
    graph.into_iter().for_each(|graph| collect(graph, &mut used));
    used
}

/// Params of blocks for codes with the last two axes swapped.
fn transpose_params(params: &[Params], shape: &mut [i64]) -> Vec<Params> {
    let rank = shape.len();
    let (rows, columns) = (shape[rank - 2] as usize, shape[rank - 1] as usize);
    shape.swap(rank - 2, rank - 1);
    let of_matrix = |matrix: &[Params]| (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect::<Vec<_>>();
    params.chunks(rows * columns).flat_map(of_matrix).collect()
}

/// The ONNX element type of codes.
pub(crate) fn element_code(codes: CodeType) -> i64 {
    match codes {
        CodeType::Int8 => INT8,
        CodeType::Uint8 => UINT8,
        CodeType::Int4 => INT4,
        CodeType::Uint4 => UINT4,
        CodeType::Int16 => INT16,
        CodeType::Uint16 => UINT16,
    }
}

/// The type of scales, which is also that of dequantized values: the weight's own or what it is cast to; wider types than
/// f32 have no scales in ONNX.
fn scale_type(dtype: Dtype, cast_to: Option<i64>) -> (i64, Dtype) {
    let wanted = cast_to.or_else(|| tensor::code_of(dtype)).unwrap_or(FLOAT);
    match tensor::element_type(wanted).and_then(|element| element.dtype) {
        Some(dtype @ (Dtype::F16 | Dtype::BF16)) => (wanted, dtype),
        _ => (FLOAT, Dtype::F32),
    }
}

/// Codes as bytes; those of four bits two to a byte, the first in the low half.
pub(super) fn pack_codes(codes: CodeType, values: &[i32]) -> Vec<u8> {
    match codes.bits() {
        4 => values.chunks(2).map(|pair| (pair[0] & 15) as u8 | (pair.get(1).copied().unwrap_or(0) as u8) << 4).collect(),
        16 => values.iter().flat_map(|value| (*value as u16).to_le_bytes()).collect(),
        _ => values.iter().map(|value| *value as u8).collect(),
    }
}
