//! What can be asked for: code types, symmetry, granularity, and whose arithmetic to follow.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The integer type of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeType {
    /// −128..=127.
    Int8,
    /// 0..=255.
    Uint8,
    /// −8..=7, stored two to a byte.
    Int4,
    /// 0..=15, stored two to a byte.
    Uint4,
    /// −32768..=32767, of activations only.
    Int16,
    /// 0..=65535, of activations only.
    Uint16,
}

/// Every code type with its name, width in bits and signedness.
const CODE_TYPES: &[(CodeType, &str, u32, bool)] = &[
    (CodeType::Int8, "int8", 8, true),
    (CodeType::Uint8, "uint8", 8, false),
    (CodeType::Int4, "int4", 4, true),
    (CodeType::Uint4, "uint4", 4, false),
    (CodeType::Int16, "int16", 16, true),
    (CodeType::Uint16, "uint16", 16, false),
];

impl CodeType {
    /// The name, such as `int8` or `uint4`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Width in bits.
    pub fn bits(self) -> u32 {
        self.entry().2
    }

    /// Whether codes can be negative.
    pub fn is_signed(self) -> bool {
        self.entry().3
    }

    /// All values of the type.
    pub fn grid(self) -> Grid {
        let steps = 1i32 << self.bits();
        let qmin = if self.is_signed() { -steps / 2 } else { 0 };
        Grid { qmin, qmax: qmin + steps - 1 }
    }

    fn entry(self) -> &'static (CodeType, &'static str, u32, bool) {
        CODE_TYPES.iter().find(|entry| entry.0 == self).expect("CODE_TYPES lists every variant")
    }
}

impl FromStr for CodeType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        crate::method::look_up("codes", CODE_TYPES, |entry| entry.1, text).map(|entry| entry.0)
    }
}

impl fmt::Display for CodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The ends of the integer grid, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The smallest code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
}

impl Grid {
    /// Whether every code is one byte's, signed or not.
    pub(crate) fn fits_a_byte(self) -> bool {
        self.qmax - self.qmin <= i32::from(u8::MAX)
    }
}

/// Which values share one scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// The whole tensor.
    PerTensor,
    /// Each slice along one axis: the output channels.
    PerChannel,
    /// Each run of this many elements along the last axis; the last run of a row may be shorter.
    PerGroup(usize),
}

impl FromStr for Granularity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Usage(format!("granularity: expected per-tensor, per-channel or per-group:SIZE, found {text:?}"));
        match text {
            "per-tensor" => Ok(Granularity::PerTensor),
            "per-channel" => Ok(Granularity::PerChannel),
            _ => {
                let size = text.strip_prefix("per-group:").and_then(|size| size.parse().ok()).filter(|size| *size > 0);
                size.map(Granularity::PerGroup).ok_or_else(wrong)
            }
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::PerTensor => f.write_str("per-tensor"),
            Granularity::PerChannel => f.write_str("per-channel"),
            Granularity::PerGroup(size) => write!(f, "per-group:{size}"),
        }
    }
}

impl Serialize for Granularity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Granularity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whose arithmetic chooses scales and computes codes. They differ in the last bit of scales, in the divisor of
/// symmetric ranges and at rounding ties; each reproduces its reference bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// PyTorch `torch.ao.quantization` on the CPU: absmax / 127.5, codes −128..=127, multiplication by 1/scale.
    Torch,
    /// ONNX Runtime's `onnxruntime.quantization`: absmax / 127, codes −127..=127, scales in f64, division.
    Ort,
    /// compressed-tensors: absmax / 127.5 in the weight's own type, division, zero point added before rounding.
    CompressedTensors,
}

/// Every convention with its name.
pub const CONVENTIONS: &[(Convention, &str)] =
    &[(Convention::Torch, "torch"), (Convention::Ort, "ort"), (Convention::CompressedTensors, "compressed-tensors")];

impl Convention {
    /// The name: `torch`, `ort` or `compressed-tensors`.
    pub fn name(self) -> &'static str {
        CONVENTIONS.iter().find(|entry| entry.0 == self).expect("CONVENTIONS lists every variant").1
    }

    /// The codes it uses of a type.
    pub fn grid(self, codes: CodeType, symmetric: bool) -> Grid {
        match (self, codes, symmetric) {
            (Convention::Ort, CodeType::Int8, true) => Grid { qmin: -127, qmax: 127 },
            _ => codes.grid(),
        }
    }
}

impl FromStr for Convention {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        crate::method::look_up("convention", CONVENTIONS, |entry| entry.1, text).map(|entry| entry.0)
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
