//! Element types and tensors as files describe them, and the exact conversion of stored floats to f32.
//!
//! All arithmetic of this crate is done on f32 values. F16, BF16 and both FP8 kinds convert to f32 without
//! rounding (IEEE 754 binary16; the upper half of binary32; OCP 8-bit floating point specification 1.0,
//! E4M3 without infinities and E5M2). F64 is rounded to nearest even; a value that overflows becomes an
//! infinity, which [`crate::quant::kernel::min_max`] reports.

use crate::simd::dispatched;
use std::fmt;
use std::ops::Range;

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the types")]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Every type with its name in safetensors and its size in bits.
const DTYPES: &[(Dtype, &str, u64)] = &[
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2M3, "F6_E2M3", 6),
    (Dtype::F6E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8E5M2, "F8_E5M2", 8),
    (Dtype::F8E4M3, "F8_E4M3", 8),
    (Dtype::F8E8M0, "F8_E8M0", 8),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::BF16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

impl Dtype {
    /// The type with this name in safetensors (`F32`, `BF16`, `F8_E4M3`, …), or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|(_, n, _)| *n == name).map(|(dtype, ..)| *dtype)
    }

    /// The name in safetensors.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Size of one element in bits.
    pub fn bits(self) -> u64 {
        self.entry().2
    }

    /// Size of one element in bytes, for types of whole bytes.
    pub fn bytes(self) -> Option<u64> {
        self.bits().is_multiple_of(8).then(|| self.bits() / 8)
    }

    /// Whether [`decode_f32`] reads it: the float types that can be quantized.
    pub fn is_decodable(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 | Dtype::F8E4M3 | Dtype::F8E5M2)
    }

    /// Whether it is an 8-bit float, which is as small as an int8 already.
    pub fn is_fp8(self) -> bool {
        matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz)
    }

    /// The largest finite value, for [decodable](Dtype::is_decodable) types; F64 counts as f32.
    pub fn largest(self) -> f32 {
        match self {
            Dtype::F16 => 65504.0,
            Dtype::BF16 => f32::from_bits(0x7f7f_0000),
            Dtype::F8E4M3 => 448.0,
            Dtype::F8E5M2 => 57344.0,
            _ => f32::MAX,
        }
    }

    /// `float`, `integer`, `boolean` or `complex`: for reasons and tables.
    pub fn kind(self) -> &'static str {
        match self.name().as_bytes()[0] {
            b'F' => "float",
            b'B' if self == Dtype::Bool => "boolean",
            b'B' => "float",
            b'C' => "complex",
            _ => "integer",
        }
    }

    fn entry(self) -> &'static (Dtype, &'static str, u64) {
        DTYPES.iter().find(|(dtype, ..)| *dtype == self).expect("DTYPES lists every variant")
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A tensor as a file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, exactly as stored.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its place among the tensors of the header.
    pub position: usize,
    /// Where its bytes lie in the file, in bytes from the file's start.
    pub bytes: Range<usize>,
}

impl TensorInfo {
    /// Number of elements. Readers have checked that it fits.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Converts stored floats to f32: `bytes` little-endian, row-major, `out.len()` elements.
///
/// # Panics
///
/// If `dtype` is not [decodable](Dtype::is_decodable), or `bytes` is not `out.len()` elements long: readers have
/// checked both.
pub fn decode_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes().map(|b| b as usize * out.len()), "bytes of {dtype}");
    decode_loop(dtype, bytes, out);
}

dispatched! {
fn decode_loop(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> () {
    match dtype {
        Dtype::F32 => decode_each(bytes, out, f32::from_le_bytes),
        Dtype::BF16 => decode_each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => decode_each(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        Dtype::F64 => decode_each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F8E4M3 => decode_each(bytes, out, |[b]| e4m3_to_f32(b)),
        // E5M2 is the upper byte of binary16.
        Dtype::F8E5M2 => decode_each(bytes, out, |[b]| f16_to_f32(u16::from(b) << 8)),
        other => unreachable!("{other} is not decodable"),
    }
}
}

#[inline(always)]
fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = decode(*chunk);
    }
}

/// Rounds f32 values to `dtype` (to nearest even, subnormals kept) and stores them little-endian.
///
/// # Panics
///
/// If `dtype` is not F64, F32, F16, BF16, E4M3 or E5M2, or `bytes` is not `values.len()` elements long.
pub fn encode_f32(dtype: Dtype, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(Some(bytes.len()), dtype.bytes().map(|b| b as usize * values.len()), "bytes of {dtype}");
    match dtype {
        Dtype::F32 => encode_each(values, bytes, f32::to_le_bytes),
        Dtype::F64 => encode_each(values, bytes, |v| f64::from(v).to_le_bytes()),
        Dtype::BF16 => encode_each(values, bytes, |v| f32_to_bf16(v).to_le_bytes()),
        Dtype::F16 => encode_each(values, bytes, |v| f32_to_f16(v).to_le_bytes()),
        Dtype::F8E4M3 => encode_each(values, bytes, |v| [f32_to_e4m3(v)]),
        Dtype::F8E5M2 => encode_each(values, bytes, |v| [f32_to_e5m2(v)]),
        other => unreachable!("{other} is not a float that can be written"),
    }
}

#[inline(always)]
fn encode_each<const N: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    let (chunks, _) = bytes.as_chunks_mut::<N>();
    for (value, chunk) in values.iter().zip(chunks) {
        *chunk = encode(*value);
    }
}

/// `value` rounded to `dtype` and back: what a computation in that type stores after each operation.
pub fn round_to(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16_to_f32(f32_to_f16(value)),
        Dtype::BF16 => f32::from_bits(u32::from(f32_to_bf16(value)) << 16),
        _ => value,
    }
}

/// Without branches, so that loops over it become vector code: exponent and mantissa are moved into place and the
/// exponent's bias corrected by one exact multiplication, which normalizes subnormals too.
#[inline(always)]
fn f16_to_f32(half: u16) -> f32 {
    let bits = u32::from(half);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000); // 2^112
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn f32_to_f16(value: f32) -> u16 {
    round_to_small_float(value, 5, 10, true) as u16
}

fn f32_to_e5m2(value: f32) -> u8 {
    round_to_small_float(value, 5, 2, true) as u8
}

/// E4M3 has no infinity and one NaN, 0x7f; what rounds beyond 448 becomes NaN, as PyTorch's cast does.
fn f32_to_e4m3(value: f32) -> u8 {
    let rounded = round_to_small_float(value, 4, 3, false);
    if value.is_nan() || rounded & 0x7f > 0x7e { (rounded as u8 & 0x80) | 0x7f } else { rounded as u8 }
}

fn e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rounds to nearest even in a binary float of `exponent` and `mantissa` bits with IEEE layout and bias; overflow
/// carries into the all-ones exponent (an infinity if `ieee`).
fn round_to_small_float(value: f32, exponent: u32, mantissa: u32, ieee: bool) -> u32 {
    let sign = value.to_bits() >> 31 << (exponent + mantissa);
    let infinity = ((1 << exponent) - 1) << mantissa;
    if value.is_nan() {
        return sign | infinity | 1 << (mantissa - 1);
    }
    let bias = (1 << (exponent - 1)) - 1;
    let smallest_exponent = 1 - bias;
    let magnitude = f64::from(value.abs());
    let own_exponent = ((f64::to_bits(magnitude) >> 52) as i32 - 1023).max(smallest_exponent);
    // Steps of one unit in the last place at this magnitude; f64 holds the quotient exactly.
    let units = (magnitude / 2f64.powi(own_exponent - mantissa as i32)).round_ties_even();
    let code = if magnitude.is_infinite() || units.is_nan() {
        infinity
    } else {
        let base = ((own_exponent - smallest_exponent) as u32) << mantissa;
        (base + units as u32).min(if ieee { infinity } else { infinity | ((1 << mantissa) - 1) })
    };
    sign | code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(dtype: Dtype, code: u32) -> (f32, u32) {
        let bytes = &code.to_le_bytes()[..dtype.bytes().unwrap() as usize];
        let mut value = [0.0];
        decode_f32(dtype, bytes, &mut value);
        let mut back = [0; 4];
        encode_f32(dtype, &value, &mut back[..bytes.len()]);
        (value[0], u32::from_le_bytes(back))
    }

    #[test]
    fn every_code_of_the_small_floats_survives_the_way_to_f32_and_back() {
        for (dtype, codes) in [(Dtype::F16, 1 << 16), (Dtype::BF16, 1 << 16), (Dtype::F8E4M3, 256), (Dtype::F8E5M2, 256)] {
            for code in 0..codes {
                let (value, back) = round_trip(dtype, code);
                assert!(value.is_nan() || back == code, "{dtype} {code:#x} is {value} and comes back as {back:#x}");
            }
        }
    }

    #[test]
    fn values_are_those_of_the_specifications() {
        assert_eq!(round_trip(Dtype::F16, 0x0001).0, 2f32.powi(-24));
        assert_eq!(round_trip(Dtype::F16, 0x7bff).0, 65504.0);
        assert_eq!(round_trip(Dtype::F16, 0xfc00).0, f32::NEG_INFINITY);
        assert_eq!(round_trip(Dtype::F8E4M3, 0x7e).0, 448.0);
        assert_eq!(round_trip(Dtype::F8E4M3, 0x01).0, 2f32.powi(-9));
        assert!(round_trip(Dtype::F8E4M3, 0x7f).0.is_nan());
        assert_eq!(round_trip(Dtype::F8E5M2, 0x7b).0, 57344.0);
        assert_eq!(round_to(Dtype::F16, 65520.0), f32::INFINITY);
        assert_eq!(round_to(Dtype::F16, 65519.0), 65504.0);
        assert_eq!(round_to(Dtype::BF16, 1.0 + 2f32.powi(-8)), 1.0);
        assert_eq!(round_to(Dtype::BF16, 1.0 + 3.0 * 2f32.powi(-8)), 1.0 + 2f32.powi(-6));
    }
}
