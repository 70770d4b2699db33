//! What a run was asked for: defaults, patterns and ordered rules. A recipe is read from TOML or JSON, and the one in
//! force is recorded in the sidecar, which is itself accepted as a recipe.
//!
//! ```toml
//! [default]                        # for every tensor
//! weights = "int8"
//! granularity = "per-channel"
//! [[rule]]                         # later rules win, field by field
//! match = "re:.*\\.mlp\\..*"
//! granularity = "per-group:128"
//! observer = "mse"
//! [[rule]]
//! match = "*.lm_head.weight"
//! weights = "keep"
//! ```

use crate::algorithms::NEAREST;
use crate::error::{Error, Result, show_name, show_path};
use crate::method::Method;
use crate::observers::custom::Observers;
use crate::quant::scheme::{CodeType, Convention, Granularity};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;

/// A glob, a regular expression after `re:`, or a name as it is after `name:`. It is matched against the whole name of a tensor, and against the name
/// of its layer: the tensor's without a final `.weight`.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone)]
enum Matcher {
    Glob(globset::GlobMatcher),
    Regex(regex::Regex),
    Name(String),
}

/// Most bytes that a regular expression may take once compiled: recipes and sidecars come from strangers too.
const LARGEST_REGEX: usize = 1 << 18;

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with what is wrong.
    pub fn new(text: &str) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| Error::Usage(format!("pattern {}: {e}", show_name(text)));
        let matcher = match (text.strip_prefix("re:"), text.strip_prefix("name:")) {
            (_, Some(name)) => Matcher::Name(name.to_owned()),
            (Some(regex), _) => {
                let regex = regex::RegexBuilder::new(&format!("^(?:{regex})$")).size_limit(LARGEST_REGEX).build();
                Matcher::Regex(regex.map_err(|e| wrong(&e))?)
            }
            (None, None) => Matcher::Glob(globset::Glob::new(text).map_err(|e| wrong(&e))?.compile_matcher()),
        };
        Ok(Pattern { text: text.to_owned(), matcher })
    }

    /// The pattern that matches `name` only.
    pub fn exact(name: &str) -> Self {
        Pattern { text: format!("name:{name}"), matcher: Matcher::Name(name.to_owned()) }
    }

    /// Whether it matches a tensor of this name.
    pub fn matches(&self, tensor: &str) -> bool {
        self.matches_name(tensor) || tensor.strip_suffix(".weight").is_some_and(|layer| self.matches_name(layer))
    }

    fn matches_name(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(name),
            Matcher::Regex(regex) => regex.is_match(name),
            Matcher::Name(exact) => exact == name,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.text.fmt(f)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Pattern::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

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
    /// The codes: `uint8` or `int8`. Default: `uint8`.
    pub dtype: CodeType,
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
        Activations { dtype: CodeType::Uint8, observer: Method::new("min-max"), observers: BTreeMap::new(), symmetric: false }
    }
}

impl Activations {
    /// How the range of `value` is chosen.
    pub fn observer_of(&self, value: &str) -> &Method {
        self.observers.get(value).unwrap_or(&self.observer)
    }
}

/// What is different for the tensors that a pattern matches. Fields that are not set leave what earlier rules said.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The channel axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<i64>,
    /// Whose arithmetic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convention: Option<Convention>,
    /// Which values share a scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
    /// The tensors it is about.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// How layers of an ONNX model compute with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How the range is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observer: Option<Method>,
    /// Why, for the plan and the sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How codes are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Method>,
    /// Whether the zero point is the middle of the grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// The codes, or `keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
}

impl Rule {
    /// A rule for `pattern` that changes nothing yet.
    pub fn new(pattern: Pattern) -> Self {
        Rule {
            axis: None,
            convention: None,
            granularity: None,
            pattern,
            mode: None,
            observer: None,
            reason: None,
            rounding: None,
            symmetric: None,
            weights: None,
        }
    }

    fn apply(&self, settings: &mut Settings) {
        let Rule { axis, convention, granularity, pattern: _, mode, observer, reason: _, rounding, symmetric, weights } = self.clone();
        settings.rounding = rounding.unwrap_or_else(|| settings.rounding.clone());
        settings.mode = mode.or(settings.mode);
        settings.axis = axis.unwrap_or(settings.axis);
        settings.convention = convention.or(settings.convention);
        settings.granularity = granularity.unwrap_or(settings.granularity);
        settings.observer = observer.unwrap_or_else(|| settings.observer.clone());
        settings.symmetric = symmetric.unwrap_or(settings.symmetric);
        if let Some(Weights::Codes(codes)) = weights {
            settings.weights = codes;
        }
    }
}

/// Everything that decides the bytes of an output, apart from the model and the output's form.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// How activations are quantized, where they are.
    pub activations: Activations,
    /// Whether weights with NaN or infinities stay in float instead of stopping the run.
    pub allow_non_finite: bool,
    /// What holds where no rule says otherwise.
    #[serde(rename = "default")]
    pub settings: Settings,
    /// Tensors that stay as they are.
    pub exclude: Vec<Pattern>,
    /// If not empty, only these are quantized, whatever their size.
    pub include: Vec<Pattern>,
    /// Whether state of quantization-aware training is treated as any other tensors. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_qat: bool,
    /// What is quantized: weights, or activations too. Default: `auto`.
    pub mode: Mode,
    /// If not empty, of ONNX models only weights of these operators are quantized, and those that `auto` would treat
    /// otherwise in the mode that is asked for.
    pub op_types: Vec<String>,
    /// Smaller tensors stay in float. Default: 1024 elements.
    pub min_elements: u64,
    /// Signal to noise in dB that every output of an ONNX model is to keep on the samples; layers that cost too much are
    /// spared. 0 measures nothing. Default: [`DEFAULT_MIN_SQNR_DB`](crate::sensitivity::DEFAULT_MIN_SQNR_DB).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sqnr: Option<f64>,
    /// Observers besides those of qtool, which rules may name.
    #[serde(rename = "observer", skip_serializing_if = "Observers::has_no_commands")]
    pub observers: Observers,
    /// Exceptions, in order.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
    /// What is done to the float model before, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<Method>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            activations: Activations::default(),
            allow_non_finite: false,
            settings: Settings::default(),
            exclude: vec![],
            include: vec![],
            ignore_qat: false,
            mode: Mode::Auto,
            op_types: vec![],
            min_elements: 1024,
            min_sqnr: None,
            observers: Observers::default(),
            rules: vec![],
            transforms: vec![],
        }
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

/// What a recipe says about one tensor.
pub struct Resolved<'r> {
    /// The settings after all rules that match.
    pub settings: Settings,
    /// The last rule that decided whether it is quantized, if any did.
    pub decided_by: Option<&'r Rule>,
}

impl Recipe {
    /// Reads a recipe in TOML or JSON, or the recipe that a sidecar records.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Usage`] with line and column if it is not a recipe.
    pub fn read(path: &Path) -> Result<Self> {
        let mut recipe = Self::read_file(path)?;
        recipe.observers = recipe.observers.in_directory(crate::outputs::staging::parent(path));
        Ok(recipe)
    }

    fn read_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let wrong = |e: &dyn std::fmt::Display| {
            let message = crate::formats::shorten(e.to_string().trim_end());
            Error::Usage(format!("{}: recipe: {}", show_path(path), message.replace('\n', " ")))
        };
        if !text.trim_start().starts_with('{') {
            return toml::from_str(&text).map_err(|e| {
                let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                let (line, column) = (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1);
                wrong(&format!("line {line}, column {column}: {}", e.message()))
            });
        }
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if value.get("format").is_some_and(|format| format == crate::outputs::document::FORMAT) {
            let recipe = value.get("recipe").cloned().unwrap_or_default();
            return serde_json::from_value(recipe).map_err(|e| wrong(&e));
        }
        serde_json::from_str(&text).map_err(|e| wrong(&e))
    }

    /// The recipe as a file of this name holds it: in JSON if the name ends so, else in TOML.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if TOML has no form for a value of it.
    pub fn to_text(&self, path: &Path) -> Result<String> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            let text = serde_json::to_string_pretty(self).expect("a recipe has string keys only");
            return Ok(text + "\n");
        }
        toml::to_string(self).map_err(|e| Error::Usage(format!("{}: recipe: {e}", show_path(path))))
    }

    /// The settings for a tensor, which `matches` says whether a pattern is about.
    pub fn resolve(&self, matches: impl Fn(&Pattern) -> bool) -> Resolved<'_> {
        let mut resolved = Resolved { settings: self.settings.clone(), decided_by: None };
        for rule in self.rules.iter().filter(|rule| matches(&rule.pattern)) {
            rule.apply(&mut resolved.settings);
            if rule.weights.is_some() {
                resolved.decided_by = Some(rule);
            }
        }
        resolved
    }

    /// Every observer that it names.
    pub(crate) fn observers_in_use(&self) -> impl Iterator<Item = &Method> {
        let of_rules = self.rules.iter().filter_map(|rule| rule.observer.as_ref());
        let of_values = std::iter::once(&self.activations.observer).chain(self.activations.observers.values());
        std::iter::once(&self.settings.observer).chain(of_rules).chain(of_values)
    }

    /// All patterns, each with the option or field it came from.
    pub fn patterns(&self) -> impl Iterator<Item = (&'static str, &Pattern)> {
        let include = self.include.iter().map(|pattern| ("--include", pattern));
        let exclude = self.exclude.iter().map(|pattern| ("--exclude", pattern));
        include.chain(exclude).chain(self.rules.iter().map(|rule| ("recipe rule", &rule.pattern)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_tensors_and_layers() {
        let pattern = |text: &str| Pattern::new(text).unwrap();
        assert!(pattern("*.mlp.*").matches("h.0.mlp.up.weight"));
        assert!(pattern("lm_head").matches("lm_head.weight"));
        assert!(!pattern("lm_head").matches("x.lm_head.weight"));
        assert!(pattern(r"re:h\.\d+\..*").matches("h.12.attn.weight"));
        assert!(!pattern("re:h").matches("hh"));
        assert!(pattern("*é*").matches("caféweight"));
        assert!(Pattern::new("re:(").is_err() && Pattern::new("[").is_err());
    }

    #[test]
    fn later_rules_win_field_by_field() {
        let recipe: Recipe = toml::from_str(
            r#"
            [default]
            observer = "mse"
            [[rule]]
            match = "*"
            weights = "int4"
            granularity = "per-group:32"
            [[rule]]
            match = "head*"
            weights = "keep"
            "#,
        )
        .unwrap();
        let body = recipe.resolve(|pattern| pattern.matches("body")).settings;
        assert_eq!((body.weights, body.granularity, body.observer.name.as_str()), (CodeType::Int4, Granularity::PerGroup(32), "mse"));
        assert_eq!(recipe.resolve(|pattern| pattern.matches("head")).decided_by.unwrap().weights, Some(Weights::Keep));
        let error = toml::from_str::<Recipe>("[[rule]]\nmatch = \"*\"\nwieghts = \"int8\"").unwrap_err().to_string();
        assert!(error.contains("wieghts") && error.contains("line 3"), "{error}");
    }
}
