//! Constants in memory: element type, shape and bytes, and their values as numbers.

use crate::formats::onnx::proto::TensorProto;
use crate::formats::onnx::tensor::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, element_type};
use crate::tensor::{Dtype, decode_f32, encode_f32};
use bytes::Bytes;

/// `TensorProto.DataType.UINT32`.
const UINT32: i64 = 12;

/// A constant of elements of whole bytes, little-endian and row-major.
#[derive(Clone)]
pub(super) struct Constant {
    /// `TensorProto.DataType`.
    pub code: i64,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

/// A constant's values, in a type that arithmetic on them is exact or rounds as their own would. F16 and BF16 compute
/// in f32 and round afterwards.
#[derive(Clone)]
pub(super) enum Numbers {
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
    /// All integers but 64-bit unsigned ones, and booleans.
    Ints(Vec<i64>),
}

impl Constant {
    pub(super) fn of(tensor: &TensorProto) -> Option<Self> {
        let constant = Constant { code: tensor.data_type?, shape: tensor.shape().ok()?, bytes: tensor.contents().ok()? };
        constant.width().map(|_| constant)
    }

    /// A constant of 64-bit integers.
    pub(super) fn ints(shape: Vec<usize>, values: &[i64]) -> Self {
        Constant { code: INT64, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    pub(super) fn into_tensor(self, name: String) -> TensorProto {
        let dims: Vec<i64> = self.shape.iter().map(|dim| *dim as i64).collect();
        TensorProto::raw(name, self.code, &dims, self.bytes)
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of an element, if they are whole.
    pub(super) fn width(&self) -> Option<usize> {
        element_type(self.code).map(|element| element.bits).filter(|bits| *bits > 0 && bits.is_multiple_of(8)).map(|bits| bits / 8)
    }

    /// The same bytes in another shape of as many elements.
    pub(super) fn view(&self, shape: Vec<usize>) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
        (elements == self.elements()).then(|| Constant { code: self.code, shape, bytes: self.bytes.clone() })
    }

    pub(super) fn numbers(&self) -> Option<Numbers> {
        match self.code {
            FLOAT | FLOAT16 | BFLOAT16 => {
                let mut values = vec![0.0; self.elements()];
                decode_f32(element_type(self.code)?.dtype?, &self.bytes, &mut values);
                Some(Numbers::Floats(values))
            }
            DOUBLE => Some(Numbers::Doubles(self.bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())),
            _ => self.to_ints().map(Numbers::Ints),
        }
    }

    pub(super) fn to_ints(&self) -> Option<Vec<i64>> {
        integer_range(self.code)?;
        TensorProto::raw(String::new(), self.code, &[self.elements() as i64], self.bytes.clone()).to_ints()
    }

    /// A constant of type `code` from numbers that fit it. Nothing if an integer is out of range, or if floats would have to
    /// become integers or the other way round.
    pub(super) fn from_numbers(code: i64, shape: Vec<usize>, numbers: &Numbers) -> Option<Self> {
        let bytes: Bytes = match (code, numbers) {
            (FLOAT | FLOAT16 | BFLOAT16, Numbers::Floats(values)) => {
                let dtype: Dtype = element_type(code)?.dtype?;
                let mut bytes = vec![0; values.len() * dtype.bytes()? as usize];
                encode_f32(dtype, values, &mut bytes);
                bytes.into()
            }
            (DOUBLE, Numbers::Doubles(values)) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            (_, Numbers::Ints(values)) => {
                let (lowest, highest, width) = integer_range(code)?;
                if !values.iter().all(|value| (lowest..=highest).contains(value)) {
                    return None;
                }
                values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect()
            }
            _ => return None,
        };
        Some(Constant { code, shape, bytes })
    }
}

/// Least and greatest value and bytes of an integer type; booleans are 0 and 1. Nothing for 64-bit unsigned integers.
pub(super) fn integer_range(code: i64) -> Option<(i64, i64, usize)> {
    match code {
        BOOL => Some((0, 1, 1)),
        UINT8 => Some((0, u8::MAX.into(), 1)),
        INT8 => Some((i8::MIN.into(), i8::MAX.into(), 1)),
        UINT16 => Some((0, u16::MAX.into(), 2)),
        INT16 => Some((i16::MIN.into(), i16::MAX.into(), 2)),
        UINT32 => Some((0, u32::MAX.into(), 4)),
        INT32 => Some((i32::MIN.into(), i32::MAX.into(), 4)),
        INT64 => Some((i64::MIN, i64::MAX, 8)),
        _ => None,
    }
}
