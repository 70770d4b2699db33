//! `[[layer]]`: layers of one's own, of which no format says what their weight is.

use super::Pattern;
use super::place::Place;
use serde::{Deserialize, Serialize};

/// Which tensor is the weight of a layer that qtool does not know, and which of its axes are the output channels.
///
/// Of a checkpoint, `match` names the tensors. Of an ONNX model, `op` is an operator of a domain of its own and `input` the
/// number of its input that is the weight; `match` may narrow it to some nodes or weights by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CustomLayer {
    /// The axis of output channels; negative counts from the last. Default: 0, or the last if `transposed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<i64>,
    /// Which input of the operator is the weight, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<usize>,
    /// Names of the tensors, or of the nodes that take them.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// The operator of an ONNX model, as `domain::Operator`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// Whether a matrix is stored as `[in, out]`. Default: false, `[out, in]`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub transposed: bool,
    /// Where it is in the file it was read from.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
}

/// What stands between domain and operator.
const SEPARATOR: &str = "::";

impl CustomLayer {
    /// The axis of output channels of a weight of `rank` dimensions, if it has such an axis and at least one besides.
    pub(crate) fn channels(&self, rank: usize) -> Option<usize> {
        let last = rank as i64 - 1;
        let axis = self.axis.unwrap_or(if self.transposed { last } else { 0 });
        let axis = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(axis).ok().filter(|axis| rank >= 2 && *axis < rank)
    }

    /// The domain and the type of the operator that it is about.
    pub(crate) fn operator(&self) -> Option<(&str, &str)> {
        self.op.as_deref()?.split_once(SEPARATOR)
    }

    /// What it is about, as text.
    pub(crate) fn criteria(&self) -> String {
        let name = self.pattern.as_ref().map(|pattern| format!("{:?}", pattern.as_str()));
        let op = self.op.as_ref().map(|op| format!("op {op}, input {}", self.input.unwrap_or_default()));
        [name, op].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// What cannot be meant: the field that is wrong, or none for the layer as a whole, and why.
    pub(super) fn contradiction(&self) -> Option<(Option<&'static str>, &'static str)> {
        let is_custom =
            |op: &str| op.split_once(SEPARATOR).is_some_and(|(domain, op)| !domain.is_empty() && domain != "ai.onnx" && !op.is_empty());
        match (&self.pattern, &self.op, self.input) {
            (None, None, _) => Some((None, "layer: expected `match`, or `op` and `input`, to say which tensor is a weight, found neither")),
            (_, Some(_), None) => {
                Some((Some("op"), "layer: expected `input` beside `op`, the number of the input that is the weight, found none"))
            }
            (_, None, Some(_)) => Some((Some("input"), "layer: expected `op` beside `input`, found none")),
            (_, Some(op), _) if !is_custom(op) => {
                Some((Some("op"), "op: expected domain::Operator of a domain of its own (qtool knows ONNX's operators), found another"))
            }
            _ if self.axis.is_some() && self.transposed => Some((Some("axis"), "layer: expected `axis` or `transposed`, found both")),
            _ => None,
        }
    }
}
