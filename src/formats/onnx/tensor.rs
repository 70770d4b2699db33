//! TensorProto: element types, shapes, and values as little-endian bytes wherever the message stores them.

use super::proto::{Payload, TensorProto};
use crate::formats::shorten;
use crate::tensor::Dtype;
use bytes::Bytes;

/// `TensorProto.DataType`: number, name, bits of an element, and the type of this crate where there is one.
pub(crate) struct ElementType {
    pub code: i64,
    pub name: &'static str,
    pub bits: usize,
    pub dtype: Option<Dtype>,
}

pub(crate) const FLOAT: i64 = 1;
pub(crate) const UINT8: i64 = 2;
pub(crate) const INT8: i64 = 3;
pub(crate) const UINT16: i64 = 4;
pub(crate) const INT16: i64 = 5;
pub(crate) const INT32: i64 = 6;
pub(crate) const INT64: i64 = 7;
pub(crate) const STRING: i64 = 8;
pub(crate) const BOOL: i64 = 9;
pub(crate) const FLOAT16: i64 = 10;
pub(crate) const DOUBLE: i64 = 11;
pub(crate) const BFLOAT16: i64 = 16;
pub(crate) const UINT4: i64 = 21;
pub(crate) const INT4: i64 = 22;

/// `TensorProto.DataLocation.EXTERNAL`.
pub(crate) const EXTERNAL: i64 = 1;

const fn row(code: i64, name: &'static str, bits: usize, dtype: Option<Dtype>) -> ElementType {
    ElementType { code, name, bits, dtype }
}

/// Every element type of ONNX 1.23.
const ELEMENT_TYPES: &[ElementType] = &[
    row(FLOAT, "float", 32, Some(Dtype::F32)),
    row(UINT8, "uint8", 8, Some(Dtype::U8)),
    row(INT8, "int8", 8, Some(Dtype::I8)),
    row(UINT16, "uint16", 16, Some(Dtype::U16)),
    row(INT16, "int16", 16, Some(Dtype::I16)),
    row(INT32, "int32", 32, Some(Dtype::I32)),
    row(INT64, "int64", 64, Some(Dtype::I64)),
    row(STRING, "string", 0, None),
    row(BOOL, "bool", 8, Some(Dtype::Bool)),
    row(FLOAT16, "float16", 16, Some(Dtype::F16)),
    row(DOUBLE, "double", 64, Some(Dtype::F64)),
    row(12, "uint32", 32, Some(Dtype::U32)),
    row(13, "uint64", 64, Some(Dtype::U64)),
    row(14, "complex64", 64, Some(Dtype::C64)),
    row(15, "complex128", 128, None),
    row(BFLOAT16, "bfloat16", 16, Some(Dtype::BF16)),
    row(17, "float8e4m3fn", 8, Some(Dtype::F8E4M3)),
    row(18, "float8e4m3fnuz", 8, Some(Dtype::F8E4M3Fnuz)),
    row(19, "float8e5m2", 8, Some(Dtype::F8E5M2)),
    row(20, "float8e5m2fnuz", 8, Some(Dtype::F8E5M2Fnuz)),
    row(UINT4, "uint4", 4, None),
    row(INT4, "int4", 4, None),
    row(23, "float4e2m1", 4, Some(Dtype::F4)),
    row(24, "float8e8m0", 8, Some(Dtype::F8E8M0)),
    row(25, "uint2", 2, None),
    row(26, "int2", 2, None),
];

/// The element type of this number.
pub(crate) fn element_type(code: i64) -> Option<&'static ElementType> {
    ELEMENT_TYPES.iter().find(|entry| entry.code == code)
}

/// The number of a type of this crate.
pub(crate) fn code_of(dtype: Dtype) -> Option<i64> {
    ELEMENT_TYPES.iter().find(|entry| entry.dtype == Some(dtype)).map(|entry| entry.code)
}

/// Bytes of `elements` elements, packed.
pub(crate) fn packed_bytes(bits: usize, elements: usize) -> Option<usize> {
    elements.checked_mul(bits).map(|bits| bits.div_ceil(8))
}

impl TensorProto {
    /// A constant of this type, with values as little-endian bytes.
    pub(crate) fn raw(name: String, data_type: i64, dims: &[i64], bytes: impl Into<Bytes>) -> Self {
        let raw_data = Some(Payload::Bytes(bytes.into()));
        TensorProto { name, data_type: Some(data_type), dims: dims.to_vec(), raw_data, ..Self::default() }
    }

    /// A constant of floats.
    pub(crate) fn floats(name: String, dims: &[i64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::raw(name, FLOAT, dims, bytes)
    }

    /// A constant of 64-bit integers.
    pub(crate) fn ints(name: String, dims: &[i64], values: &[i64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::raw(name, INT64, dims, bytes)
    }

    /// The element type.
    ///
    /// # Errors
    ///
    /// What was expected and what was found.
    pub(crate) fn element_type(&self) -> Result<&'static ElementType, String> {
        let code = self.data_type.unwrap_or(0);
        element_type(code).ok_or_else(|| format!("data_type: expected a type of ONNX, found {code}"))
    }

    /// The type of this crate, if it has one.
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        self.element_type().ok()?.dtype
    }

    /// The dimensions, whose product fits in memory's address space as bytes.
    ///
    /// # Errors
    ///
    /// What was expected and what was found.
    pub(crate) fn shape(&self) -> Result<Vec<usize>, String> {
        let dimension = |dim: &i64| usize::try_from(*dim).map_err(|_| format!("dims: expected sizes of at least 0, found {dim}"));
        let shape: Vec<usize> = self.dims.iter().map(dimension).collect::<Result<_, _>>()?;
        // Zeros last, so that what multiplies to more than fits is noticed whatever its order.
        let product = shape.iter().filter(|dim| **dim > 0).try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let bits = self.element_type()?.bits.max(8);
        match product.and_then(|elements| packed_bytes(bits, elements)).filter(|bytes| isize::try_from(*bytes).is_ok()) {
            Some(_) => Ok(shape),
            None => Err(format!("dims: expected a size that fits, found {}", self.shown_dims())),
        }
    }

    /// Number of elements.
    ///
    /// # Errors
    ///
    /// As [`TensorProto::shape`].
    pub(crate) fn elements(&self) -> Result<usize, String> {
        self.shape().map(|shape| shape.iter().product())
    }

    /// The values as little-endian bytes, row-major; 4-bit elements two to a byte. They stay in the file's map where they
    /// are stored like that.
    ///
    /// # Errors
    ///
    /// What was expected and what was found: a tensor stores its values in one field, which its type prescribes, and as
    /// many as its dimensions say. Also for text, for values that are stored in another file and for values that are not
    /// computed yet.
    pub(crate) fn contents(&self) -> Result<Bytes, String> {
        let element = self.element_type()?;
        if element.code == STRING {
            return Err("values: expected numbers, found text".into());
        }
        let bytes = match self.value_field()? {
            None => Bytes::new(),
            Some("raw_data") => self.raw_bytes()?.clone(),
            Some(_) => self.typed_values(element)?,
        };
        self.check_length(bytes.len())?;
        Ok(bytes)
    }

    /// Whether the values are as many as the dimensions say, in the field that the type prescribes, and fit the type. For
    /// numbers, [`TensorProto::contents`] succeeds if this does; nothing is copied here.
    ///
    /// # Errors
    ///
    /// As [`TensorProto::contents`].
    pub(crate) fn check_contents(&self) -> Result<(), String> {
        let element = self.element_type()?;
        let found = match self.value_field()? {
            None => 0,
            Some("raw_data") => self.raw_bytes()?.len(),
            Some("float_data") => self.float_data.bytes().len(),
            Some("double_data") => self.double_data.bytes().len(),
            Some("string_data") => {
                let (needed, found) = (self.elements()?, self.string_data.len());
                return if needed == found { Ok(()) } else { Err(format!("values: expected {needed} texts, found {found}")) };
            }
            Some(_) => self.numbers(element).try_fold(0, |found, value| value.map(|_| found + stored_bytes(element)))?,
        };
        self.check_length(found)
    }

    /// The field that the values are in, which is the right one for the type; `None` only for a tensor without elements.
    fn value_field(&self) -> Result<Option<&'static str>, String> {
        let (element, elements) = (self.element_type()?, self.elements()?);
        if self.data_location == Some(EXTERNAL) || !self.external_data.is_empty() {
            return Err("values: expected them in this file, found a reference to another".into());
        }
        let typed = typed_field(element.code);
        match self.value_fields()[..] {
            [first, second, ..] => Err(format!("values: expected one of the data fields, found {first} and {second}")),
            [field] if field == typed || (field == "raw_data" && element.code != STRING) => Ok(Some(field)),
            [field] if element.code == STRING => Err(format!("values: expected {typed} for {}, found {field}", element.name)),
            [field] => Err(format!("values: expected raw_data or {typed} for {}, found {field}", element.name)),
            [] if elements == 0 => Ok(None),
            [] => Err(format!("values: expected {elements} of {} {}, found none", element.name, self.shown_dims())),
        }
    }

    fn raw_bytes(&self) -> Result<&Bytes, String> {
        match &self.raw_data {
            Some(Payload::Bytes(bytes)) => Ok(bytes),
            _ => Err("values: expected them to be known, found some yet to be computed".into()),
        }
    }

    fn check_length(&self, found: usize) -> Result<(), String> {
        let element = self.element_type()?;
        let needed = packed_bytes(element.bits, self.elements()?).ok_or("dims: expected a size that fits")?;
        match needed == found {
            true => Ok(()),
            false => Err(format!("values: expected {needed} bytes for {} {}, found {found}", element.name, self.shown_dims())),
        }
    }

    /// The dimensions for a message.
    pub(super) fn shown_dims(&self) -> String {
        shorten(&format!("{:?}", self.dims))
    }

    /// The values as f32, for float types that decode.
    pub(crate) fn to_floats(&self) -> Option<Vec<f32>> {
        let dtype = self.dtype().filter(|dtype| dtype.is_decodable())?;
        let bytes = self.contents().ok()?;
        let mut values = vec![0.0; self.elements().ok()?];
        crate::tensor::decode_f32(dtype, &bytes, &mut values);
        Some(values)
    }

    /// The values as integers, for integer types of whole bytes and booleans.
    pub(crate) fn to_ints(&self) -> Option<Vec<i64>> {
        let bytes = self.contents().ok()?;
        let signed = matches!(self.data_type?, INT8 | INT16 | INT32 | INT64);
        let width = match self.data_type? {
            UINT8 | INT8 | BOOL => 1,
            UINT16 | INT16 => 2,
            INT32 | 12 => 4,
            INT64 | 13 => 8,
            _ => return None,
        };
        let int = |chunk: &[u8]| {
            let fill = if signed && chunk[width - 1] & 0x80 != 0 { 0xff } else { 0 };
            let mut wide = [fill; 8];
            wide[..width].copy_from_slice(chunk);
            i64::from_le_bytes(wide)
        };
        Some(bytes.chunks_exact(width).map(int).collect())
    }

    /// The data fields that hold something.
    pub(super) fn value_fields(&self) -> Vec<&'static str> {
        let filled = [
            ("raw_data", self.raw_data.is_some()),
            ("float_data", !self.float_data.is_empty()),
            ("int32_data", !self.int32_data.is_empty()),
            ("int64_data", !self.int64_data.is_empty()),
            ("double_data", !self.double_data.is_empty()),
            ("uint64_data", !self.uint64_data.is_empty()),
            ("string_data", !self.string_data.is_empty()),
        ];
        filled.into_iter().filter(|(_, filled)| *filled).map(|(name, _)| name).collect()
    }

    fn typed_values(&self, element: &ElementType) -> Result<Bytes, String> {
        match typed_field(element.code) {
            "float_data" => Ok(self.float_data.bytes().clone()),
            "double_data" => Ok(self.double_data.bytes().clone()),
            _ => {
                let mut bytes = Vec::new();
                for value in self.numbers(element) {
                    bytes.extend_from_slice(&value?.to_le_bytes()[..stored_bytes(element)]);
                }
                Ok(bytes.into())
            }
        }
    }

    /// The numbers of the varint field that the type prescribes, each of which fits the type.
    fn numbers(&self, element: &ElementType) -> impl Iterator<Item = Result<i64, String>> + '_ {
        let field = typed_field(element.code);
        let varints = match field {
            "int64_data" => &self.int64_data,
            "uint64_data" => &self.uint64_data,
            _ => &self.int32_data,
        };
        let bits = 8 * stored_bytes(element);
        let fits = move |value: i64| match bits {
            64 => true,
            // A signed type's bits are also found as an unsigned number, and the other way round.
            _ if field == "int32_data" => (-(1 << (bits - 1))..1 << bits).contains(&value),
            _ => (0..1 << bits).contains(&value),
        };
        varints.varints().map(move |value| {
            let value = value?.cast_signed();
            if fits(value) { Ok(value) } else { Err(format!("values: {field}: expected numbers of {bits} bits, found {value}")) }
        })
    }
}

/// Bytes that a number of a varint field stands for. Elements of less than a byte are packed already, a byte to a number.
fn stored_bytes(element: &ElementType) -> usize {
    element.bits.div_ceil(8)
}

/// The field that holds the values of a type where `raw_data` does not.
fn typed_field(code: i64) -> &'static str {
    match code {
        FLOAT | 14 => "float_data",
        DOUBLE | 15 => "double_data",
        INT64 => "int64_data",
        12 | 13 => "uint64_data",
        STRING => "string_data",
        _ => "int32_data",
    }
}
