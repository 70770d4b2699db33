//! LINT: whether a runtime will compute the nodes of an ONNX model with codes, and why not.
//!
//! A runtime fuses DequantizeLinear → operator → QuantizeLinear into a kernel on codes only under conditions of its own; where
//! one is not met, it dequantizes and computes in float, correctly but slower than without quantization, and says nothing. The
//! conditions are the rows of `rules::RULES`, what an operator can become is in `routes`, and docs/lint.md has both in words.
//! Models of any tool are read; nothing is run.

mod graphs;
mod routes;
mod rules;
#[cfg(test)]
mod tests;
mod unit;

use crate::compare::is_onnx;
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::onnx::proto::ModelProto;
use crate::formats::{self, ReadOptions};
use crate::graph::pairs::{is_dequantize, is_quantize};
use crate::graph::weights::shown_node;
use graphs::Graphs;
use routes::Route;
use rules::{Effect, Of, RULES, Rule};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use unit::{Input, Unit};

/// Whatever runs the model.
pub const ANY: &str = "any";

/// Targets whose rules are known: names of [`TARGETS`](crate::target::TARGETS). The first is the default.
pub const LINT_TARGETS: &[&str] = &["ort-cpu", "ort-cpu-avx2", "tensorrt", ANY];

/// What a runtime does with a model.
#[derive(Clone, Debug, Serialize)]
pub struct LintReport {
    /// Version of this document.
    pub version: u32,
    /// The model.
    pub model: PathBuf,
    /// What runs it.
    pub target: String,
    /// How many nodes there are of each verdict.
    pub total: Totals,
    /// Every node that is quantized, or could be, in the order of the graphs.
    pub nodes: Vec<NodeVerdict>,
}

/// Numbers of nodes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Nodes that compute with codes.
    pub integer: usize,
    /// Nodes that are quantized and yet compute in float, or are refused.
    pub failed: usize,
    /// Nodes that compute with codes, but not what the model says.
    pub inexact: usize,
    /// Nodes that are not quantized, or only in part.
    pub float: usize,
}

/// What a runtime does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It computes with codes.
    Integer,
    /// It computes with codes, but not what the model says.
    Inexact,
    /// It was not quantized, or only in part: it computes in float.
    Float,
    /// It was quantized, and computes in float all the same.
    Unfused,
    /// The runtime refuses it.
    Refused,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeVerdict {
    /// Its name, or its operator and place; in a body, behind those of the nodes around it.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The operator that the runtime makes of it, if it computes with codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Rules that it breaks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Names of the constants that hold its weights' codes.
    #[serde(skip)]
    pub(crate) codes: Vec<String>,
    /// Whether its weights alone are codes.
    #[serde(skip)]
    pub(crate) is_weight_only: bool,
}

/// A rule that a node breaks.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its name: docs/lint.md has them all.
    pub rule: &'static str,
    /// What was found.
    pub found: String,
    /// What can be done.
    pub fix: &'static str,
}

impl NodeVerdict {
    /// Whether it is quantized in vain.
    pub fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Unfused | Verdict::Refused)
    }
}

impl LintReport {
    /// The first node that is quantized in vain, if there is one.
    pub fn first_failure(&self) -> Option<&NodeVerdict> {
        self.nodes.iter().find(|node| node.fails())
    }
}

/// Judges the nodes of an ONNX model.
///
/// # Errors
///
/// As [`formats::open`]; [`Error::Usage`] if the target has no rules, [`Error::Malformed`] if the model is no ONNX model. What is wrong with nodes is no
/// error but a finding.
pub fn lint(model: &Path, target: &str, read: &ReadOptions) -> Result<LintReport> {
    check_target(target)?;
    if !is_onnx(model, read)? {
        return Err(Error::malformed(model, "expected an ONNX model, found another file"));
    }
    let file = formats::onnx::open(MappedFile::open(model)?, read)?;
    let nodes = judge(&file.proto, target);
    let mut total = Totals::default();
    for node in &nodes {
        match node.verdict {
            Verdict::Integer => total.integer += 1,
            Verdict::Inexact => total.inexact += 1,
            Verdict::Float => total.float += 1,
            Verdict::Unfused | Verdict::Refused => total.failed += 1,
        }
    }
    Ok(LintReport { version: 1, model: model.to_owned(), target: target.to_owned(), total, nodes })
}

fn check_target(target: &str) -> Result<()> {
    if LINT_TARGETS.contains(&target) {
        return Ok(());
    }
    Err(Error::Usage(format!("--target: expected {}, found {target}", LINT_TARGETS.join(", "))))
}

/// The verdicts on all nodes that are quantized, or could be.
pub(crate) fn judge(model: &ModelProto, target: &str) -> Vec<NodeVerdict> {
    let graphs = Graphs::new(model);
    let mut verdicts = Vec::new();
    for scope in 0..graphs.scopes.len() {
        let places = 0..graphs.scopes[scope].graph.node.len();
        let units: Vec<Unit<'_, '_>> = places.filter_map(|place| unit_of(&graphs, scope, place)).collect();
        let added: HashSet<usize> = units.iter().filter_map(|unit| unit.added).collect();
        verdicts.extend(units.iter().filter(|unit| !added.contains(&unit.place)).map(|unit| verdict(unit, target)));
    }
    verdicts
}

/// The node of a place with what is around it, if it is worth a verdict.
fn unit_of<'a, 'g>(graphs: &'a Graphs<'g>, scope: usize, place: usize) -> Option<Unit<'a, 'g>> {
    let node = graphs.node(scope, place);
    // What constants are made of is gone before the model runs.
    let is_fixed = node.output.first().is_some_and(|output| graphs.constant(scope, output).is_some());
    if is_quantize(node) || is_dequantize(node) || is_fixed || matches!(node.op_type.as_str(), "Identity" | "Shape" | "Size") {
        return None;
    }
    let unit = Unit::new(graphs, scope, place);
    let is_product = matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "MatMul" | "Gemm" | "LSTM" | "GRU" | "RNN");
    let is_on_codes = matches!(unit.route, Route::Codes | Route::Dynamic);
    let is_product = is_product && node.is_standard();
    // Transposes of stored codes are gone before the model runs.
    let is_of_weight = unit.route == Route::Moves && unit.input(0).is_stored_codes();
    ((is_product || is_on_codes || unit.all_codes().next().is_some()) && !is_of_weight).then_some(unit)
}

/// Whether a rule is about a target.
fn is_about(rule: &Rule, target: &str) -> bool {
    match rule.of {
        Of::All => true,
        Of::Ort => target.starts_with("ort-cpu"),
        Of::OrtAvx2 => target == "ort-cpu-avx2",
        Of::TensorRt => target == "tensorrt",
    }
}

fn verdict(unit: &Unit<'_, '_>, target: &str) -> NodeVerdict {
    let rules = RULES.iter().filter(|rule| is_about(rule, target) && rule.routes.contains(&unit.route));
    let broken: Vec<(Effect, Finding)> =
        rules.filter_map(|rule| Some((rule.effect, Finding { rule: rule.name, found: (rule.check)(unit)?, fix: rule.fix }))).collect();
    let has = |effect: Effect| broken.iter().any(|(of, _)| *of == effect);
    let verdict = match () {
        () if has(Effect::Float) && is_asked_for(unit) => Verdict::Unfused,
        () if has(Effect::Float) => Verdict::Float,
        () if has(Effect::Refused) => Verdict::Refused,
        () if has(Effect::Inexact) => Verdict::Inexact,
        () if unit.route == Route::None => Verdict::Float,
        () => Verdict::Integer,
    };
    let is_integer = matches!(verdict, Verdict::Integer | Verdict::Inexact | Verdict::Refused);
    let dequantized = unit.all_codes().filter(|(_, linear)| linear.stored.is_some()).filter_map(|(_, linear)| linear.node.input(0));
    let taken = unit.node.input.iter().filter(|_| matches!(unit.route, Route::Codes | Route::Dynamic)).map(String::as_str);
    let codes = dequantized.chain(taken).map(str::to_owned).collect();
    let name = shown_node(&unit.graphs.scopes[unit.scope], unit.node, unit.place);
    NodeVerdict {
        node: name,
        op: unit.node.op_type.clone(),
        verdict,
        kernel: is_integer.then(|| routes::kernel(unit)),
        findings: broken.into_iter().map(|(_, finding)| finding).collect(),
        codes,
        is_weight_only: matches!(unit.route, Route::WeightOnly | Route::WeightOnlyProduct),
    }
}

/// Whether a node is quantized: its weights are, or all that it takes and gives.
fn is_asked_for(unit: &Unit<'_, '_>) -> bool {
    let is_weight = |number: &usize| unit.input(*number).is_stored_codes();
    let has_weight = match unit.route {
        Route::Conv | Route::MatMul | Route::Gemm | Route::WeightOnlyProduct => is_weight(&1),
        Route::WeightOnly => true,
        _ => false,
    };
    let floats = unit.inputs.iter().filter(|input| input.is_there());
    let all = floats.clone().count() > 0 && floats.clone().all(|input| matches!(input, Input::Codes(_)));
    let is_given_as_float = unit.output.is_output || unit.output.edges > unit.output.quantized.len();
    has_weight || (all && !unit.output.quantized.is_empty() && !is_given_as_float)
}
