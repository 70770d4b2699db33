//! `[[rule]]`: what is different for some tensors.

use super::place::Place;
use super::settings::{Mode, Settings, Weights};
use super::{Pattern, Shape};
use crate::method::Method;
use crate::quant::scheme::{Convention, Granularity};
use serde::{Deserialize, Serialize};

/// What is different for the tensors that fit all criteria: `match`, `op` and `shape`, of which there is at least one. Fields
/// that are not set leave what earlier rules said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// The channel axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<i64>,
    /// Whose arithmetic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention: Option<Convention>,
    /// Which values share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
    /// Names of the tensors it is about.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// How layers of an ONNX model compute with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How the range is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<Method>,
    /// Operators of an ONNX model whose weights it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<Operators>,
    /// Why, for the plan and the sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How codes are chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Method>,
    /// Dimensions of the tensors it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// Whether the zero point is the middle of the grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// The codes, or `keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Where it is in the file it was read from.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
}

/// One operator, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected the name of an operator, or a list of names")]
pub enum Operators {
    /// By name.
    One(String),
    /// By name, any of them.
    Several(Vec<String>),
}

impl Operators {
    /// Their names.
    pub fn names(&self) -> &[String] {
        match self {
            Operators::One(name) => std::slice::from_ref(name),
            Operators::Several(names) => names,
        }
    }
}

impl Rule {
    /// A rule for `pattern` that changes nothing yet.
    pub fn new(pattern: Pattern) -> Self {
        Rule { pattern: Some(pattern), ..Rule::default() }
    }

    /// What it is about, as text.
    pub fn criteria(&self) -> String {
        let name = self.pattern.as_ref().map(|pattern| format!("{:?}", pattern.as_str()));
        let op = self.op.as_ref().map(|op| format!("op {}", op.names().join(" or ")));
        let shape = self.shape.as_ref().map(|shape| format!("shape {shape}"));
        [name, op, shape].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn apply(&self, settings: &mut Settings) {
        // By reference: a recipe may have thousands of rules for thousands of tensors, and patterns are large.
        let Rule { axis, convention, granularity, mode, observer, rounding, symmetric, weights, .. } = self;
        if let Some(rounding) = rounding {
            settings.rounding.clone_from(rounding);
        }
        settings.mode = mode.or(settings.mode);
        settings.axis = axis.unwrap_or(settings.axis);
        settings.convention = convention.or(settings.convention);
        settings.granularity = granularity.unwrap_or(settings.granularity);
        if let Some(observer) = observer {
            settings.observer.clone_from(observer);
        }
        settings.symmetric = symmetric.unwrap_or(settings.symmetric);
        if let Some(Weights::Codes(codes)) = weights {
            settings.weights = *codes;
        }
    }

    /// The first field that says how tensors are quantized.
    fn first_setting(&self) -> Option<&'static str> {
        let fields = [
            ("axis", self.axis.is_some()),
            ("convention", self.convention.is_some()),
            ("granularity", self.granularity.is_some()),
            ("mode", self.mode.is_some()),
            ("observer", self.observer.is_some()),
            ("rounding", self.rounding.is_some()),
            ("symmetric", self.symmetric.is_some()),
        ];
        fields.into_iter().find(|(_, is_set)| *is_set).map(|(field, _)| field)
    }

    /// What cannot be meant: the field that is wrong, or none for the rule as a whole, and why.
    pub(super) fn contradiction(&self) -> Option<(Option<&'static str>, &'static str)> {
        if self.pattern.is_none() && self.op.is_none() && self.shape.is_none() {
            return Some((None, "rule: expected `match`, `op` or `shape`, to say which tensors it is about, found none"));
        }
        if self.op.as_ref().is_some_and(|op| op.names().is_empty()) {
            return Some((Some("op"), "op: expected at least one operator, found none"));
        }
        match (self.weights, self.first_setting()) {
            (Some(Weights::Keep), Some(field)) => {
                Some((Some(field), "expected nothing of how tensors are quantized that the same rule keeps (weights = \"keep\"), found it"))
            }
            (None, None) => Some((None, "rule: expected a field that changes something, such as `weights`, found none")),
            _ => None,
        }
    }
}
