//! Constant codes and the floats that they stand for:
//!
//! ```text
//! value = (code - zero_point) * scale
//! ```
//!
//! in f32, rounded to the type of the scale, as [DequantizeLinear](https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html)
//! defines it.

use crate::formats::onnx::proto::TensorProto;
use crate::formats::onnx::tensor::{INT4, INT8, INT16, INT32, UINT4, UINT8, UINT16};
use crate::tensor::Dtype;
use bytes::Bytes;
use std::ops::Range;

/// How parameters lie over codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Over {
    /// One for all, or one for each index of an axis.
    Axis(usize),
    /// One for each block of so many elements along an axis.
    Blocks { axis: usize, size: usize },
    /// One for each direction of a recurrent layer, or for each of its gates too: [directions, gates] over
    /// [directions, in, gates].
    Directions,
}

/// Codes and their parameters, all of which are constants.
pub(super) struct FloatConstant {
    /// Type of the floats.
    pub dtype: Dtype,
    codes: Bytes,
    kind: i64,
    /// Dimensions of the floats.
    shape: Vec<usize>,
    /// For each axis of the floats, how far apart codes are.
    strides: Vec<usize>,
    /// For each axis of the floats, how many elements share a parameter and how far apart parameters are.
    over: Vec<(usize, usize)>,
    scales: Vec<f32>,
    /// One for all or as many as scales.
    zero_points: Vec<i32>,
}

impl FloatConstant {
    /// The floats of `codes`, with the last two axes swapped if `swap`; `None` if something does not fit together or is of
    /// a type that is not known.
    pub(super) fn new(
        codes: &TensorProto,
        dtype: Dtype,
        (scale_dims, scales): (&[i64], Vec<f32>),
        zero_point: Option<&TensorProto>,
        over: Over,
        swap: bool,
    ) -> Option<Self> {
        let (mut shape, kind) = (codes.shape().ok()?, codes.data_type?);
        let rank = shape.len();
        let scale_shape: Vec<usize> = scale_dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<_>>()?;
        let mut of_axis = vec![(1, 0); rank];
        match over {
            _ if scales.len() == 1 => {}
            Over::Axis(axis) if axis < rank && scales.len() == shape[axis] => of_axis[axis].1 = 1,
            Over::Blocks { axis, size } if axis < rank && size > 0 && scale_shape.len() == rank => {
                let expected = |i: usize| if i == axis { shape[i].div_ceil(size) } else { shape[i] };
                if (0..rank).any(|i| scale_shape[i] != expected(i)) {
                    return None;
                }
                of_axis.iter_mut().zip(row_major(&scale_shape)).for_each(|(place, stride)| place.1 = stride);
                of_axis[axis].0 = size;
            }
            Over::Directions if rank == 3 && scale_shape == [shape[0]] => of_axis[0].1 = 1,
            Over::Directions if rank == 3 && scale_shape == [shape[0], shape[2]] => {
                of_axis[0].1 = shape[2];
                of_axis[2].1 = 1;
            }
            _ => return None,
        }
        let zero_points = match zero_point {
            None => vec![0],
            Some(tensor) if tensor.data_type == Some(kind) => {
                let (bytes, count) = (tensor.contents().ok()?, tensor.elements().ok()?);
                (0..count).map(|i| code(kind, &bytes, i)).collect::<Option<Vec<i32>>>()?
            }
            Some(_) => return None,
        };
        let contents = codes.contents().ok()?;
        let is_known = shape.iter().product::<usize>() == 0 || code(kind, &contents, 0).is_some();
        let are_scales = !scales.is_empty() && scales.iter().all(|scale| scale.is_finite());
        if !is_known || ![1, scales.len()].contains(&zero_points.len()) || !are_scales {
            return None;
        }
        let mut strides = row_major(&shape);
        if swap {
            let first = rank.checked_sub(2)?;
            shape.swap(first, first + 1);
            strides.swap(first, first + 1);
            of_axis.swap(first, first + 1);
        }
        Some(FloatConstant { dtype, codes: contents, kind, shape, strides, over: of_axis, scales, zero_points })
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Dimensions.
    pub(super) fn dims(&self) -> Vec<i64> {
        self.shape.iter().map(|dim| *dim as i64).collect()
    }

    /// Bytes of an element.
    pub(super) fn width(&self) -> usize {
        self.dtype.bytes().unwrap_or(4) as usize
    }

    /// Appends the values of these elements, in row-major order.
    pub(super) fn values(&self, elements: Range<usize>, values: &mut Vec<f32>) {
        let largest = self.dtype.largest();
        let last = self.shape.last().copied().unwrap_or(1);
        let (stride, (share, apart)) = (self.strides.last().copied().unwrap_or(1), self.over.last().copied().unwrap_or((1, 0)));
        let mut at = elements.start;
        while at < elements.end {
            let columns = at % last..(at % last + elements.end - at).min(last);
            let (mut first, mut group, mut rest) = (0, 0, at / last);
            for axis in (0..self.shape.len().saturating_sub(1)).rev() {
                let index = rest % self.shape[axis];
                rest /= self.shape[axis];
                first += index * self.strides[axis];
                group += index / self.over[axis].0 * self.over[axis].1;
            }
            at += columns.len();
            values.extend(columns.map(|column| {
                let parameter = group + column / share * apart;
                let zero_point = if self.zero_points.len() == 1 { self.zero_points[0] } else { self.zero_points[parameter] };
                let scale = if self.scales.len() == 1 { self.scales[0] } else { self.scales[parameter] };
                let code = code(self.kind, &self.codes, first + column * stride).unwrap_or(0);
                (code.wrapping_sub(zero_point) as f32 * scale).clamp(-largest, largest)
            }));
        }
    }
}

/// The code at an index of packed codes, if it is there and of a known type.
fn code(kind: i64, bytes: &[u8], index: usize) -> Option<i32> {
    Some(match kind {
        INT8 => i32::from(bytes.get(index)?.cast_signed()),
        UINT8 => i32::from(*bytes.get(index)?),
        INT16 => i32::from(i16::from_le_bytes(*bytes.as_chunks().0.get(index)?)),
        UINT16 => i32::from(u16::from_le_bytes(*bytes.as_chunks().0.get(index)?)),
        INT32 => i32::from_le_bytes(*bytes.as_chunks().0.get(index)?),
        INT4 | UINT4 => {
            let nibble = i32::from(*bytes.get(index / 2)?) >> (4 * (index % 2)) & 15;
            if kind == INT4 && nibble > 7 { nibble - 16 } else { nibble }
        }
        _ => return None,
    })
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}
