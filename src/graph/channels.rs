//! Weight and bias of a convolution or a matrix product, with their channels.

use super::index::GraphIndex;
use super::prepare::SMALL;
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::{BFLOAT16, FLOAT, FLOAT16};

use crate::tensor::encode_f32;

/// Which channel each element of a weight belongs to, row-major:
///
/// ```text
/// channel(i) = floor(i / group_len) * per_group + floor(i / inner) mod per_group
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Number of channels of one group.
    per_group: usize,
    /// Number of elements of one group.
    group_len: usize,
    /// Number of elements between a channel and the next.
    inner: usize,
    /// Number of channels.
    pub(crate) count: usize,
}

impl Channels {
    /// Channels along the last axis of so many elements.
    pub(crate) fn columns(count: usize, elements: usize) -> Self {
        Channels { per_group: count, group_len: elements, inner: 1, count }
    }

    /// The value of each element's channel, for so many elements.
    pub(crate) fn spread<T: Copy>(self, by_channel: &[T], elements: usize) -> Vec<T> {
        let mut spread = Vec::with_capacity(elements);
        while spread.len() < elements {
            let first = spread.len() / self.group_len * self.per_group;
            let group = &by_channel[first..first + self.per_group];
            match self.inner {
                1 => spread.extend_from_slice(group),
                inner => group.iter().for_each(|value| spread.extend(std::iter::repeat_n(*value, inner))),
            }
        }
        spread
    }

    /// The largest magnitude of each channel.
    pub(crate) fn largest(self, values: &[f32]) -> Vec<f32> {
        let mut largest = vec![0f32; self.count];
        for (i, value) in values.iter().enumerate() {
            let largest = &mut largest[self.of(i)];
            *largest = largest.max(value.abs());
        }
        largest
    }

    /// The channel of an element.
    pub(crate) fn of(self, element: usize) -> usize {
        element / self.group_len * self.per_group + element / self.inner % self.per_group
    }
}

/// A node's constant weight and bias.
pub(crate) struct Layer<'g> {
    pub(crate) node: &'g NodeProto,
    pub(crate) weight: &'g TensorProto,
    /// The weight's dimensions.
    pub(crate) shape: Vec<usize>,
    /// Channels of the output, in the weight.
    pub(crate) output: Channels,
    /// Channels of the input, in the weight.
    pub(crate) input: Channels,
    /// The bias as the node applies it, for each channel of the output; none if it has no bias.
    bias: Option<Vec<f64>>,
}

/// A new weight and bias, under the names that they get.
pub(crate) struct Folded {
    pub(crate) weight: TensorProto,
    pub(crate) bias: TensorProto,
}

impl<'g> Layer<'g> {
    /// The node's weight and bias, if it is a convolution or a matrix product with a constant weight in its second input,
    /// and a constant bias or none.
    pub(crate) fn of(index: &GraphIndex<'g>, node: &'g NodeProto) -> Option<Self> {
        if !node.is_standard() || node.output.len() != 1 || node.attribute.iter().any(|attribute| !attribute.ref_attr_name.is_empty()) {
            return None;
        }
        let weight = index.constant(node.input(1)?)?;
        let (shape, elements) = (weight.shape().ok()?, weight.elements().ok()?);
        if elements == 0 || !is_float(weight) {
            return None;
        }
        let group = usize::try_from(node.int("group", 1)).ok().filter(|group| *group > 0)?;
        let across = |count: usize, inner: usize| Channels { per_group: count, group_len: elements, inner, count };
        let grouped = |per_group: usize, inner: usize| {
            let count = per_group.checked_mul(group)?;
            Some(Channels { per_group, group_len: elements / group, inner, count })
        };
        let (output, input) = match (node.op_type.as_str(), &shape[..]) {
            // [out, in / group, kernel…]
            ("Conv", [out, per_group, kernel @ ..]) if !kernel.is_empty() && out.is_multiple_of(group) => {
                (across(*out, elements / out), grouped(*per_group, kernel.iter().product())?)
            }
            // [in, out / group, kernel…]
            ("ConvTranspose", [input, per_group, kernel @ ..]) if !kernel.is_empty() && input.is_multiple_of(group) => {
                (grouped(*per_group, kernel.iter().product())?, across(*input, elements / input))
            }
            ("Gemm", [out, input]) if node.int("transB", 0) != 0 => (across(*out, *input), across(*input, 1)),
            ("Gemm" | "MatMul", [input, out]) => (across(*out, 1), across(*input, *out)),
            _ => return None,
        };
        let bias = match node.input(2) {
            None => None,
            Some(name) => {
                let bias = index.constant(name).filter(|bias| bias.data_type == weight.data_type)?;
                let factor = if node.op_type == "Gemm" { f64::from(node.float("beta", 1.0)) } else { 1.0 };
                Some(spread(bias, output.count, 2)?.iter().map(|value| value * factor).collect())
            }
        };
        Some(Layer { node, weight, shape, output, input, bias })
    }

    /// The layer followed by `y * factor + offset` for each channel of its output.
    pub(crate) fn then(&self, index: &GraphIndex<'_>, factor: &[f64], offset: &[f64]) -> Option<Folded> {
        if [factor.len(), offset.len()] != [self.output.count; 2] {
            return None;
        }
        let weight = self.scaled(index, factor, self.output)?;
        let bias = (0..self.output.count).map(|c| self.bias.as_ref().map_or(0.0, |bias| bias[c]) * factor[c] + offset[c]).collect();
        Some(Folded { weight, bias: self.biased(index, bias)? })
    }

    /// The layer preceded by `x * factor + offset` for each channel of its input, which must not be padded.
    pub(crate) fn after(&self, index: &GraphIndex<'_>, factor: &[f64], offset: &[f64]) -> Option<Folded> {
        if [factor.len(), offset.len()] != [self.input.count; 2] {
            return None;
        }
        let weight = self.scaled(index, factor, self.input)?;
        // Gemm multiplies its product.
        let alpha = if self.node.op_type == "Gemm" { f64::from(self.node.float("alpha", 1.0)) } else { 1.0 };
        let mut bias = self.bias.clone().unwrap_or_else(|| vec![0.0; self.output.count]);
        for (i, value) in self.weight.to_floats()?.into_iter().enumerate() {
            bias[self.output.of(i)] += alpha * f64::from(value) * offset[self.input.of(i)];
        }
        Some(Folded { weight, bias: self.biased(index, bias)? })
    }

    /// The weight with each element multiplied by its channel's factor. It keeps its name if nothing else uses it.
    fn scaled(&self, index: &GraphIndex<'_>, factor: &[f64], channels: Channels) -> Option<TensorProto> {
        let mut values = self.weight.to_floats()?;
        for (i, value) in values.iter_mut().enumerate() {
            *value = (f64::from(*value) * factor[channels.of(i)]) as f32;
        }
        let name = match index.only_use(&self.weight.name) {
            Some(_) => self.weight.name.clone(),
            None if values.len() <= SMALL => String::new(),
            None => return None,
        };
        tensor(name, self.weight.data_type?, &self.weight.dims, &values)
    }

    /// A bias. It keeps the name of the one it replaces if nothing else uses that.
    fn biased(&self, index: &GraphIndex<'_>, values: Vec<f64>) -> Option<TensorProto> {
        let name = self.node.input(2).filter(|name| index.only_use(name).is_some()).unwrap_or("");
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        tensor(name.to_owned(), self.weight.data_type?, &[values.len() as i64], &values)
    }
}

/// A constant of a float type from f32 values, if all are finite once they are rounded to it.
pub(crate) fn tensor(name: String, code: i64, dims: &[i64], values: &[f32]) -> Option<TensorProto> {
    let mut tensor = TensorProto::raw(name, code, dims, Vec::new());
    let dtype = tensor.dtype()?;
    let mut bytes = vec![0; values.len() * dtype.bytes()? as usize];
    encode_f32(dtype, values, &mut bytes);
    tensor = TensorProto::raw(tensor.name, code, dims, bytes);
    tensor.to_floats()?.iter().all(|value| value.is_finite()).then_some(tensor)
}

/// Whether a constant is of a type that f32 holds exactly.
pub(crate) fn is_float(tensor: &TensorProto) -> bool {
    matches!(tensor.data_type, Some(FLOAT | FLOAT16 | BFLOAT16))
}

/// The values of a constant that broadcasts to one value for each of `count` channels along the last axis, in at most
/// `rank` dimensions.
pub(crate) fn spread(tensor: &TensorProto, count: usize, rank: usize) -> Option<Vec<f64>> {
    let shape = tensor.shape().ok()?;
    let last = shape.last().copied().unwrap_or(1);
    if shape.len() > rank || shape.iter().rev().skip(1).any(|dim| *dim != 1) || !is_float(tensor) {
        return None;
    }
    repeated(tensor, last, count)
}

/// The values of a constant with one value for each of `count` channels along axis 1 of `rank` dimensions.
pub(crate) fn along_channels(tensor: &TensorProto, count: usize, rank: usize) -> Option<Vec<f64>> {
    let shape = tensor.shape().ok()?;
    if shape.len() > rank || !is_float(tensor) {
        return None;
    }
    let padded = [vec![1; rank - shape.len()], shape].concat();
    let channels = *padded.get(1)?;
    padded.iter().enumerate().all(|(axis, dim)| axis == 1 || *dim == 1).then_some(())?;
    repeated(tensor, channels, count)
}

fn repeated(tensor: &TensorProto, size: usize, count: usize) -> Option<Vec<f64>> {
    let values = tensor.to_floats()?;
    match size {
        1 => Some(vec![f64::from(*values.first()?); count]),
        size if size == count => Some(values.into_iter().map(f64::from).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spread_is_what_each_element_belongs_to() {
        // The inputs of a convolution [6, 2, 3] of 3 groups; its outputs; and the last axis of a matrix [4, 6].
        for (channels, elements) in [
            (Channels { per_group: 2, group_len: 12, inner: 3, count: 6 }, 36),
            (Channels { per_group: 6, group_len: 36, inner: 6, count: 6 }, 36),
            (Channels::columns(6, 24), 24),
        ] {
            let expected: Vec<usize> = (0..elements).map(|i| channels.of(i)).collect();
            assert_eq!(channels.spread(&[0, 1, 2, 3, 4, 5], elements), expected);
        }
    }
}
