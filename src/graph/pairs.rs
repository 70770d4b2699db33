//! QuantizeLinear and DequantizeLinear with constant parameters: how a value is quantized that a model quantizes itself.
//!
//! ```text
//! QuantizeLinear:   code = saturate(round_half_even(x / scale) + zero_point)
//! DequantizeLinear: x = (code - zero_point) * scale
//! ```
//!
//! Read are codes of 8 and 16 bits with one scale, or one for each index of an axis. Codes of other types (4 bits, floats
//! of 8 bits, int32 of biases) and blocks are left to others.

use super::index::GraphIndex;
use crate::error::show_name;
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::{INT8, INT16, UINT8, UINT16, element_type};
use crate::quant::params::Params;
use crate::quant::scheme::CodeType;
use std::sync::Arc;

/// The parameters of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linear {
    /// The type of codes.
    pub codes: CodeType,
    /// One for all values, or one for each index of the axis.
    pub params: Arc<[Params]>,
    /// The axis as it is written, which counts from the last where it is negative; none if there is one scale.
    pub axis: Option<i64>,
}

impl Linear {
    /// The parameters of all values, if they share them.
    pub(crate) fn single(&self) -> Option<Params> {
        match (self.axis, &self.params[..]) {
            (None, [params]) => Some(*params),
            _ => None,
        }
    }
}

/// A value that a DequantizeLinear makes of codes, all with one scale: names of what it takes, and what they say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    pub codes: String,
    pub scale: String,
    pub zero_point: String,
    pub params: Params,
    pub dtype: CodeType,
}

/// Whether a node is QuantizeLinear, be it ONNX's or ONNX Runtime's.
pub(crate) fn is_quantize(node: &NodeProto) -> bool {
    node.op_type == "QuantizeLinear" && is_known(node)
}

/// Whether a node is DequantizeLinear, be it ONNX's or ONNX Runtime's.
pub(crate) fn is_dequantize(node: &NodeProto) -> bool {
    node.op_type == "DequantizeLinear" && is_known(node)
}

fn is_known(node: &NodeProto) -> bool {
    node.is_standard() || node.domain == "com.microsoft"
}

/// How `value` is made, if a DequantizeLinear with one scale and a zero point makes it.
pub(crate) fn given(index: &GraphIndex<'_>, value: &str) -> Option<Given> {
    let (_, node) = index.producer(value).filter(|(_, node)| is_dequantize(node))?;
    let linear = read(index, node).ok().flatten()?;
    let [codes, scale, zero_point] = [0, 1, 2].map(|input| node.input(input).map(str::to_owned));
    Some(Given { codes: codes?, scale: scale?, zero_point: zero_point?, params: linear.single()?, dtype: linear.codes })
}

/// How the only node that takes `value` quantizes it, if that is a QuantizeLinear with one scale: which node it is.
pub(crate) fn only_quantized(index: &GraphIndex<'_>, value: &str) -> Option<usize> {
    let only = index.only_use(value).filter(|only| only.input == 0)?;
    let node = Some(&index.graph.node[only.node]).filter(|node| is_quantize(node))?;
    let is_single = read(index, node).is_ok_and(|linear| linear.is_some_and(|linear| linear.single().is_some()));
    is_single.then_some(only.node)
}

/// The parameters of a QuantizeLinear or a DequantizeLinear; `None` if its codes are of a type that is left to others.
///
/// # Errors
///
/// What was expected and what was found: a scale that is no constant, not positive and finite, or of another shape or type
/// than its zero point.
pub(crate) fn read(index: &GraphIndex<'_>, node: &NodeProto) -> Result<Option<Linear>, String> {
    let zero_point = node.input(2).map(|name| (name, constant(index, name)));
    let stored = match &zero_point {
        Some((_, Some(tensor))) => tensor.data_type,
        Some((name, None)) => return Err(format!("zero point {}: expected a constant, found none of that name", show_name(name))),
        None => None,
    };
    let of_codes = if is_dequantize(node) { node.input(0).and_then(|codes| type_of(index, codes, LONGEST_WAY)) } else { None };
    let declared = node.attribute("output_dtype").and_then(|attribute| attribute.i).filter(|code| *code != 0 && is_quantize(node));
    if let (Some(stored), Some(codes), Some((name, _))) = (stored, of_codes.or(declared), &zero_point)
        && stored != codes
    {
        let (expected, found) = (type_name(codes), type_name(stored));
        return Err(format!("zero point {}: expected {expected}, the type of its codes, found {found}", show_name(name)));
    }
    let default = is_quantize(node).then_some(UINT8);
    let Some(codes) = stored.or(of_codes).or(declared).or(default).and_then(code_type) else { return Ok(None) };
    if node.int("block_size", 0) != 0 {
        return Ok(None);
    }
    let name = node.input(1).ok_or("scale: expected one, found none")?;
    let Some(scale) = constant(index, name) else {
        return Err(format!("scale {}: expected a constant, found a value that is computed or given when the model runs", show_name(name)));
    };
    // Many nodes may share large ones.
    let params =
        index.params_of((name, node.input(2)), || params_of((name, scale), zero_point.and_then(|(name, tensor)| Some((name, tensor?)))))?;
    let axis = (params.len() > 1).then(|| node.int("axis", 1));
    Ok(Some(Linear { codes, params, axis }))
}

/// What a scale and a zero point, each with its name, say together.
fn params_of((name, scale): (&str, &TensorProto), zero_point: Option<(&str, &TensorProto)>) -> Result<Arc<[Params]>, String> {
    let scales = scales_of(name, scale)?;
    let zero_points = match zero_point {
        None => vec![0; scales.len()],
        Some((name, tensor)) => {
            let wrong = |what: &str| format!("zero point {}: expected {what}", show_name(name));
            let same_shape = tensor.dims == scale.dims || (scales.len() == 1 && tensor.elements() == Ok(1));
            if !same_shape {
                return Err(wrong(&format!("the shape of its scale, {:?}, found {:?}", scale.dims, tensor.dims)));
            }
            tensor.to_ints().ok_or_else(|| wrong("integers, found none"))?
        }
    };
    let pairs = scales.iter().zip(zero_points);
    Ok(pairs.map(|(scale, zero_point)| Params { scale: *scale, zero_point: zero_point as i32 }).collect())
}

/// Scales, each of which can be divided by.
fn scales_of(name: &str, tensor: &TensorProto) -> Result<Vec<f32>, String> {
    let wrong = |what: String| format!("scale {}: {what}", show_name(name));
    let scales = tensor.to_floats().ok_or_else(|| wrong(format!("expected floats, found {}", type_name(tensor.data_type.unwrap_or(0)))))?;
    if scales.is_empty() || (scales.len() > 1 && tensor.dims.len() != 1) {
        return Err(wrong(format!("expected one, or one for each index of an axis, found the shape {:?}", tensor.dims)));
    }
    match scales.iter().enumerate().find(|(_, scale)| !(scale.is_finite() && **scale > 0.0)) {
        Some((place, found)) => Err(wrong(format!("expected positive and finite numbers, found {found} at index {place}"))),
        None => Ok(scales),
    }
}

fn constant<'g>(index: &GraphIndex<'g>, name: &str) -> Option<&'g TensorProto> {
    index.constant(name)
}

/// Most nodes between codes and what says their type.
const LONGEST_WAY: usize = 16;

/// The element type of codes: of a constant or an input, of what a QuantizeLinear makes, or behind operators that keep it.
fn type_of(index: &GraphIndex<'_>, value: &str, longest: usize) -> Option<i64> {
    if let Some(tensor) = index.initializer(value) {
        return tensor.data_type;
    }
    if let Some(input) = index.input(value) {
        return input.r#type.as_ref()?.tensor_type.as_ref()?.elem_type;
    }
    let (_, node) = index.producer(value).filter(|_| longest > 0)?;
    if is_quantize(node) {
        let stored = node.input(2).map(|name| constant(index, name).and_then(|tensor| tensor.data_type));
        let declared = node.attribute("output_dtype").and_then(|attribute| attribute.i).filter(|code| *code != 0);
        return stored.unwrap_or(declared.or(Some(UINT8)));
    }
    let keeps = node.is("Clip") || super::activations::MOVES_DATA.contains(&node.op_type.as_str());
    type_of(index, node.input(0).filter(|_| keeps)?, longest - 1)
}

/// The type of this crate for an element type of codes.
fn code_type(code: i64) -> Option<CodeType> {
    match code {
        INT8 => Some(CodeType::Int8),
        UINT8 => Some(CodeType::Uint8),
        INT16 => Some(CodeType::Int16),
        UINT16 => Some(CodeType::Uint16),
        _ => None,
    }
}

fn type_name(code: i64) -> String {
    element_type(code).map_or_else(|| format!("type {code}"), |element| element.name.to_owned())
}
