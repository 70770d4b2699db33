//! What is known of the values of a model without running it: constants, element types, shapes, and how they are quantized.

use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::formats::onnx::tensor::{FLOAT, INT8, UINT8};
use crate::graph::facts::{Facts, only_floats};
use crate::graph::index::{GraphIndex, Use};
use crate::graph::pairs::{is_dequantize, is_quantize};
use crate::graph::scopes::{Scope, TOP, scopes};
use std::cell::RefCell;
use std::collections::HashMap;

/// Most nodes that are followed from a value to what it is made of.
const LONGEST_WAY: usize = 64;

/// The first IR version in which callers may replace constants that are listed as inputs.
const INPUTS_REPLACE: i64 = 4;

/// All graphs of a model, looked at one by one.
pub(super) struct Graphs<'g> {
    pub scopes: Vec<Scope<'g>>,
    pub indexes: Vec<GraphIndex<'g>>,
    /// The version of the standard operators.
    pub opset: i64,
    inputs_replace: bool,
    /// What the model declares of values, by graph.
    declared: Vec<HashMap<&'g str, &'g ValueInfoProto>>,
    /// What was found before: values that many others are made of are asked for many times.
    constants: RefCell<HashMap<(usize, String), Option<Constant<'g>>>>,
    shapes: RefCell<HashMap<(usize, String), Option<Shape>>>,
    /// Numbers of dimensions of what matrix products of the top graph take, as far as they follow.
    ranks: HashMap<&'g str, usize>,
}

/// Dimensions; those that are known only when the model runs are `None`.
type Shape = Vec<Option<i64>>;

/// A value that is known before the model runs, whether it is stored or follows from what is.
#[derive(Clone, Debug, Default)]
pub(super) struct Constant<'g> {
    /// The tensor, if it is stored as such.
    pub tensor: Option<&'g TensorProto>,
    pub element: Option<i64>,
    pub dims: Option<Vec<i64>>,
}

/// A scale or a zero point.
#[derive(Clone, Debug)]
pub(super) struct Param<'g> {
    pub name: &'g str,
    pub constant: Option<Constant<'g>>,
    pub dims: Option<Vec<i64>>,
}

/// A QuantizeLinear or a DequantizeLinear.
#[derive(Clone, Debug)]
pub(super) struct Linear<'g> {
    pub node: &'g NodeProto,
    /// The element type of the codes.
    pub codes: Option<i64>,
    pub scale: Param<'g>,
    pub zero_point: Option<Param<'g>>,
    /// The axis of scales, as it is written or as a Transpose behind moved it.
    pub axis: i64,
    /// Elements that share a scale along the axis, 0 if there are no blocks.
    pub block: i64,
    /// The codes of a constant.
    pub stored: Option<Constant<'g>>,
}

impl Param<'_> {
    /// Whether it is one number: a scalar, or a list of one.
    pub(super) fn is_single(&self) -> bool {
        matches!(self.dims.as_deref(), Some([] | [1]))
    }

    /// Its numbers, if they are stored.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        self.constant.as_ref()?.tensor?.to_floats()
    }

    /// Its integers, if they are stored.
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        self.constant.as_ref()?.tensor?.to_ints()
    }
}

impl Linear<'_> {
    /// Whether one constant scale and one constant zero point (or none) are for all values.
    pub(super) fn is_single_constant(&self) -> bool {
        let is_fixed = |param: &Param<'_>| param.is_single() && param.constant.is_some();
        is_fixed(&self.scale) && self.zero_point.as_ref().is_none_or(is_fixed)
    }

    /// The zero points, all 0 where none are given.
    pub(super) fn zero_points(&self) -> Option<Vec<i64>> {
        match &self.zero_point {
            None => Some(vec![0]),
            Some(param) => param.ints(),
        }
    }
}

impl<'g> Graphs<'g> {
    pub(super) fn new(model: &'g ModelProto) -> Self {
        let scopes = scopes(model);
        let declared = scopes.iter().map(|scope| {
            let graph = scope.graph;
            let values = graph.value_info.iter().chain(&graph.output).chain(&graph.input);
            values.map(|value| (value.name.as_str(), value)).collect()
        });
        Graphs {
            indexes: scopes.iter().map(|scope| GraphIndex::new(scope.graph)).collect(),
            declared: declared.collect(),
            opset: model.opset(),
            inputs_replace: model.ir_version.unwrap_or(0) >= INPUTS_REPLACE,
            constants: RefCell::default(),
            shapes: RefCell::default(),
            ranks: model.graph.as_deref().map(|graph| ranks(model, graph)).unwrap_or_default(),
            scopes,
        }
    }

    pub(super) fn index(&self, scope: usize) -> &GraphIndex<'g> {
        &self.indexes[scope]
    }

    /// The node of a place.
    pub(super) fn node(&self, scope: usize, place: usize) -> &'g NodeProto {
        &self.scopes[scope].graph.node[place]
    }

    /// How often nodes and bodies take a value. Each body counts once at least.
    pub(super) fn edges(&self, scope: usize, value: &str) -> usize {
        let index = self.index(scope);
        index.uses(value).len() + usize::from(index.is_captured(value))
    }

    /// The only node input that takes a value which nobody else can see.
    pub(super) fn only_use(&self, scope: usize, value: &str) -> Option<Use> {
        self.index(scope).only_use(value)
    }

    /// The constant that a value is: stored, in this graph or around it, or made of constants.
    pub(super) fn constant(&self, scope: usize, value: &str) -> Option<Constant<'g>> {
        self.constant_within(scope, value, LONGEST_WAY)
    }

    fn constant_within(&self, scope: usize, value: &str, longest: usize) -> Option<Constant<'g>> {
        let key = (scope, value.to_owned());
        if let Some(known) = self.constants.borrow().get(&key) {
            return known.clone();
        }
        let found = self.find_constant(scope, value, longest);
        self.constants.borrow_mut().insert(key, found.clone());
        found
    }

    fn find_constant(&self, scope: usize, value: &str, longest: usize) -> Option<Constant<'g>> {
        let index = self.index(scope);
        if let Some(tensor) = index.initializer(value) {
            let replaced = self.inputs_replace && index.is_input(value);
            return (!replaced).then(|| Constant { tensor: Some(tensor), element: tensor.data_type, dims: Some(tensor.dims.clone()) });
        }
        if let Some((_, node)) = index.producer(value) {
            return self.folded(scope, node, longest.checked_sub(1)?);
        }
        let parent = self.scopes[scope].parent;
        if index.is_input(value) || parent == scope { None } else { self.constant_within(parent, value, longest) }
    }

    /// What a node makes, if it takes nothing but constants. DequantizeLinear is left alone, as fusions need it.
    fn folded(&self, scope: usize, node: &'g NodeProto, longest: usize) -> Option<Constant<'g>> {
        if node.is("Constant") {
            let attribute = node.attribute.first()?;
            return Some(match attribute.name.as_str() {
                "value" => {
                    let tensor = attribute.t.as_deref()?;
                    Constant { tensor: Some(tensor), element: tensor.data_type, dims: Some(tensor.dims.clone()) }
                }
                "value_float" => Constant { tensor: None, element: Some(FLOAT), dims: Some(vec![]) },
                _ => Constant::default(),
            });
        }
        let is_fixed = node.is_standard() && node.bodies().next().is_none() && !is_dequantize(node) && !node.op_type.starts_with("Random");
        let mut inputs = node.input.iter().filter(|name| !name.is_empty());
        if !(is_fixed && !node.input.is_empty() && inputs.all(|input| self.constant_within(scope, input, longest).is_some())) {
            return None;
        }
        let first = self.constant_within(scope, node.input(0)?, longest)?;
        let kept = Constant { tensor: None, ..first.clone() };
        Some(match node.op_type.as_str() {
            "Identity" => first,
            "QuantizeLinear" => Constant { element: self.code_type_of_quantize(scope, node), ..kept },
            "Cast" => Constant { element: node.attribute("to").and_then(|to| to.i), ..kept },
            "Transpose" => Constant { dims: first.dims.and_then(|dims| permuted(&dims, node)), ..kept },
            "Clip" | "Neg" | "Sqrt" | "Abs" => kept,
            _ => Constant::default(),
        })
    }

    /// The codes that a QuantizeLinear makes.
    fn code_type_of_quantize(&self, scope: usize, node: &NodeProto) -> Option<i64> {
        let declared = node.attribute("output_dtype").and_then(|attribute| attribute.i).filter(|code| *code != 0);
        match node.input(2) {
            Some(zero_point) => self.element(scope, zero_point),
            None => declared.or(Some(UINT8)),
        }
    }

    /// The element type of a value, as far as it is declared or follows.
    pub(super) fn element(&self, scope: usize, value: &str) -> Option<i64> {
        self.element_within(scope, value, LONGEST_WAY)
    }

    fn element_within(&self, scope: usize, value: &str, longest: usize) -> Option<i64> {
        let index = self.index(scope);
        if let Some(tensor) = index.initializer(value) {
            return tensor.data_type;
        }
        let declared = self.declared[scope].get(value).and_then(|value| value.r#type.as_deref()?.tensor_type.as_deref()?.elem_type);
        if let Some(code) = declared.filter(|code| *code != 0) {
            return Some(code);
        }
        let longest = longest.checked_sub(1)?;
        let Some((_, node)) = index.producer(value) else {
            let parent = self.scopes[scope].parent;
            return if parent == scope { None } else { self.element_within(parent, value, longest) };
        };
        let of = |input: usize| node.input(input).and_then(|name| self.element_within(scope, name, longest));
        match node.op_type.as_str() {
            "Constant" => self.constant(scope, value)?.element,
            _ if is_quantize(node) => self.code_type_of_quantize(scope, node),
            "DynamicQuantizeLinear" => Some(UINT8).filter(|_| node.output.iter().position(|output| output == value) != Some(1)),
            "QLinearConv" | "QLinearMatMul" => of(7),
            "QLinearAdd" | "QLinearMul" => of(0),
            "Cast" => node.attribute("to").and_then(|to| to.i),
            "MaxPool" | "Transpose" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Slice" | "Expand" | "Tile" | "Identity"
            | "Clip" | "Gather" | "Concat" | "Pad" | "Resize" | "Split" => of(0),
            _ => None,
        }
    }

    /// The dimensions of a value; those that are known only when the model runs are `None`.
    pub(super) fn shape(&self, scope: usize, value: &str) -> Option<Shape> {
        self.shape_within(scope, value, LONGEST_WAY)
    }

    fn shape_within(&self, scope: usize, value: &str, longest: usize) -> Option<Shape> {
        let key = (scope, value.to_owned());
        if let Some(known) = self.shapes.borrow().get(&key) {
            return known.clone();
        }
        let found = self.find_shape(scope, value, longest);
        let rank = if scope == TOP { self.ranks.get(value) } else { None };
        let found = found.or_else(|| rank.map(|rank| vec![None; *rank]));
        self.shapes.borrow_mut().insert(key, found.clone());
        found
    }

    fn find_shape(&self, scope: usize, value: &str, longest: usize) -> Option<Shape> {
        let index = self.index(scope);
        if let Some(tensor) = index.initializer(value) {
            return Some(tensor.dims.iter().map(|dim| Some(*dim)).collect());
        }
        let declared = self.declared[scope].get(value).and_then(|value| value.r#type.as_deref()?.tensor_type.as_deref()?.shape.as_deref());
        if let Some(shape) = declared {
            return Some(shape.dim.iter().map(|dim| dim.dim_value).collect());
        }
        let longest = longest.checked_sub(1)?;
        let Some((_, node)) = index.producer(value) else {
            let parent = self.scopes[scope].parent;
            return if parent == scope { None } else { self.shape_within(parent, value, longest) };
        };
        let of = |input: usize| node.input(input).and_then(|name| self.shape_within(scope, name, longest));
        match node.op_type.as_str() {
            "Constant" => self.constant(scope, value)?.dims.map(|dims| dims.into_iter().map(Some).collect()),
            "QuantizeLinear"
            | "DequantizeLinear"
            | "Abs"
            | "Exp"
            | "Neg"
            | "Sqrt"
            | "Relu"
            | "Sigmoid"
            | "Tanh"
            | "Clip"
            | "LeakyRelu"
            | "Softmax"
            | "Identity"
            | "Cast"
            | "Gelu"
            | "Erf"
            | "HardSwish"
            | "LayerNormalization"
            | "Dropout"
            | "BatchNormalization"
            | "DynamicQuantizeLinear" => of(0),
            "Reshape" => {
                let shape = self.constant(scope, node.input(1)?)?.tensor?.to_ints()?;
                Some(shape.into_iter().map(|dim| Some(dim).filter(|dim| *dim > 0)).collect())
            }
            "Flatten" => Some(vec![None, None]),
            "Gemm" => {
                let weight = of(1).filter(|weight| weight.len() == 2);
                let columns = weight.and_then(|weight| weight[usize::from(node.int("transB", 0) == 0)]);
                let rows = of(0).filter(|a| a.len() == 2).and_then(|a| a[usize::from(node.int("transA", 0) != 0)]);
                Some(vec![rows, columns])
            }
            "MatMul" => {
                let (mut a, b) = (of(0)?, of(1)?);
                if a.len() < 2 || b.len() != 2 {
                    return None;
                }
                *a.last_mut()? = b[1];
                Some(a)
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let (a, b) = (of(0)?, of(1)?);
                let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
                let offset = long.len() - short.len();
                let joined = long.iter().enumerate().map(|(i, dim)| match (dim, i.checked_sub(offset).map(|i| short[i])) {
                    (dim, None | Some(Some(1))) => *dim,
                    (Some(1), Some(other)) => other,
                    (dim, Some(other)) => {
                        if dim.is_some() {
                            *dim
                        } else {
                            other
                        }
                    }
                });
                Some(joined.collect())
            }
            "Transpose" => {
                let dims = of(0)?;
                let perm = node.attribute("perm").map(|attribute| attribute.ints.clone());
                let perm = perm.unwrap_or_else(|| (0..dims.len() as i64).rev().collect());
                perm.iter().map(|axis| usize::try_from(*axis).ok().and_then(|axis| dims.get(axis).copied())).collect()
            }
            _ => None,
        }
    }

    /// The parameters of a QuantizeLinear or a DequantizeLinear.
    pub(super) fn linear(&self, scope: usize, place: usize) -> Option<Linear<'g>> {
        let node = self.node(scope, place);
        let quantizes = is_quantize(node);
        if !quantizes && !is_dequantize(node) {
            return None;
        }
        let param = |input: usize| {
            let name = node.input(input)?;
            let constant = self.constant(scope, name);
            let dims = constant.as_ref().and_then(|constant| constant.dims.clone());
            let dims = dims.or_else(|| self.shape(scope, name)?.into_iter().collect());
            let dims = dims.or_else(|| self.is_made_when_it_runs(scope, name).then(Vec::new));
            Some(Param { name, constant, dims })
        };
        let stored = if quantizes { None } else { self.constant(scope, node.input(0)?) };
        let codes = match quantizes {
            true => self.code_type_of_quantize(scope, node),
            false => match stored.as_ref().and_then(|stored| stored.element).or_else(|| self.element(scope, node.input(0).unwrap_or(""))) {
                None => node.input(2).and_then(|zero_point| self.element(scope, zero_point)),
                known => known,
            },
        };
        Some(Linear {
            node,
            codes,
            scale: param(1)?,
            zero_point: param(2),
            axis: node.int("axis", 1),
            block: node.int("block_size", 0),
            stored,
        })
    }

    /// Whether a value is a scale or a zero point of a DynamicQuantizeLinear, which are scalars.
    fn is_made_when_it_runs(&self, scope: usize, name: &str) -> bool {
        let producer = self.index(scope).producer(name);
        producer.is_some_and(|(_, node)| node.is("DynamicQuantizeLinear") && node.output.first().is_none_or(|codes| codes != name))
    }

    /// The type of codes that kernels on x86-64 see: ONNX Runtime moves int8 codes to uint8 where a QuantizeLinear and a
    /// DequantizeLinear with one constant zero point stand alone together.
    pub(super) fn runtime_codes(&self, scope: usize, linear: &Linear<'g>) -> Option<i64> {
        if linear.codes != Some(INT8) || linear.stored.is_some() {
            return linear.codes;
        }
        let index = self.index(scope);
        let (quantize, dequantize) = if is_quantize(linear.node) {
            let codes = linear.node.output.first()?;
            let Some(only) = index.only_use(codes) else { return linear.codes };
            (linear.clone(), self.linear(scope, only.node).filter(|dequantize| is_dequantize(dequantize.node)))
        } else {
            let Some((place, _)) = index.producer(linear.node.input(0)?).filter(|(_, node)| is_quantize(node)) else { return linear.codes };
            let Some(quantize) = self.linear(scope, place) else { return linear.codes };
            (quantize, Some(linear.clone()))
        };
        let Some(dequantize) = dequantize else { return linear.codes };
        let stands_alone = quantize.node.output.first().is_some_and(|codes| index.only_use(codes).is_some())
            && dequantize.node.output.first().is_some_and(|floats| self.edges(scope, floats) + usize::from(index.is_output(floats)) <= 1)
            && self.alike(scope, quantize.node) == 1;
        let zero_point = |linear: &Linear<'g>| linear.zero_point.as_ref().filter(|param| param.is_single()).and_then(Param::ints);
        let same = zero_point(&quantize).is_some() && zero_point(&quantize) == zero_point(&dequantize);
        Some(if stands_alone && same { UINT8 } else { INT8 })
    }
}

impl<'g> Graphs<'g> {
    /// How many QuantizeLinear, this one among them, quantize the same value alike: one is made of them.
    pub(super) fn alike(&self, scope: usize, node: &NodeProto) -> usize {
        let uses = node.input(0).map_or(&[][..], |value| self.index(scope).uses(value));
        uses.iter().map(|only| self.node(scope, only.node)).filter(|other| is_quantize(other) && other.input == node.input).count()
    }
}

/// Numbers of dimensions of what matrix products of a graph take.
fn ranks<'g>(model: &ModelProto, graph: &'g GraphProto) -> HashMap<&'g str, usize> {
    let outer = Facts::new(only_floats(model));
    let facts = Facts::of(graph, &outer);
    let inputs = graph.node.iter().filter(|node| node.is("MatMul")).flat_map(|node| &node.input);
    inputs.filter_map(|value| Some((value.as_str(), facts.rank(value)?))).collect()
}

/// Dimensions behind a Transpose.
pub(super) fn permuted(dims: &[i64], node: &NodeProto) -> Option<Vec<i64>> {
    match node.attribute("perm") {
        None => Some(dims.iter().rev().copied().collect()),
        Some(perm) => perm.ints.iter().map(|axis| usize::try_from(*axis).ok().and_then(|axis| dims.get(axis).copied())).collect(),
    }
}
