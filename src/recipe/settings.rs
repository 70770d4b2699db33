//! How weights and activations are quantized: the fields of `[default]` and `[activations]`.

use crate::algorithms::NEAREST;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::quant::scheme::{CodeType, Convention, Granularity};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// What becomes of a tensor: codes of a type, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The tensor is copied bit for bit.
    Keep,
    /// The tensor is quantized.
    Codes(CodeType),
}

impl Serialize for Weights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Weights::Keep => serializer.serialize_str("keep"),
            Weights::Codes(codes) => codes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "keep" => Ok(Weights::Keep),
            name => name.parse().map(Weights::Codes).map_err(serde::de::Error::custom),
        }
    }
}

/// How a weight is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The channel axis; negative counts from the last. Default: 0, the output features in PyTorch's layout.
    pub axis: i64,
    /// Whose arithmetic. Default: `ort` for ONNX models, else `torch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention: Option<Convention>,
    /// Which values share a scale. Default: `per-channel`.
    pub granularity: Granularity,
    /// How layers of an ONNX model compute with it. Default: as the recipe's own `mode` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Whether symmetric codes leave out the lowest one, so that the largest magnitude of either sign has a code of its own.
    /// Default: as the convention has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub narrow_range: bool,
    /// How the range is chosen. Default: `min-max`.
    pub observer: Method,
    /// How codes are chosen. Default: `nearest`.
    pub rounding: Method,
    /// Whether the zero point is the middle of the grid. Default: true.
    pub symmetric: bool,
    /// The codes. Default: `int8`.
    pub weights: CodeType,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            axis: 0,
            convention: None,
            granularity: Granularity::PerChannel,
            mode: None,
            narrow_range: false,
            observer: Method::new("min-max"),
            rounding: Method::new(NEAREST),
            symmetric: true,
            weights: CodeType::Int8,
        }
    }
}

/// How activations are quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Activations {
    /// The codes: `uint8` or `int8`, for ONNX `uint16` or `int16` too. Default: `uint8`.
    pub dtype: CodeType,
    /// Whether biases of layers that compute in integers stay floats, for runtimes that make no use of integers of 32 bits: then nothing
    /// is dynamic either. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub float_biases: bool,
    /// How ranges are chosen. Default: `min-max`.
    pub observer: Method,
    /// How ranges of single values are chosen, by the name of the value in the graph.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub observers: BTreeMap<String, Method>,
    /// Whether the zero point is the middle of the grid. Default: false.
    pub symmetric: bool,
}

impl Default for Activations {
    fn default() -> Self {
        Activations {
            dtype: CodeType::Uint8,
            float_biases: false,
            observer: Method::new("min-max"),
            observers: BTreeMap::new(),
            symmetric: false,
        }
    }
}

impl Activations {
    /// How the range of `value` is chosen.
    pub fn observer_of(&self, value: &str) -> &Method {
        self.observers.get(value).unwrap_or(&self.observer)
    }
}

/// What is quantized, and when the parameters of activations are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// `static` with samples; else `dynamic` where a runtime gains by it, and `weight-only` for the rest.
    Auto,
    /// Codes are stored and made floats again before they are used.
    WeightOnly,
    /// Activations are quantized while the model runs, by the range they have then.
    Dynamic,
    /// Activations are quantized with ranges from samples.
    Static,
}

/// Every mode with its name.
pub const MODES: &[(Mode, &str)] =
    &[(Mode::Auto, "auto"), (Mode::WeightOnly, "weight-only"), (Mode::Dynamic, "dynamic"), (Mode::Static, "static")];

impl std::str::FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        crate::method::look_up("mode", MODES, |entry| entry.1, text).map(|entry| entry.0)
    }
}
