//! Gates: figures that a quantized model must not fall short of, for all that is compared or for what a pattern names.
//!
//! A limit is a number, or `PATTERN=NUMBER` with a pattern as recipes have them. A number alone is for everything that a comparison
//! is about: the outputs of models that run, else the tensors. A pattern reaches whatever has such a name, values within a model
//! too. Of the limits of one measure that apply to a row, the last holds; `none` instead of a number lifts those before.

use crate::compare::Difference;
use crate::error::{Error, Result, show_name};
use crate::recipe::Pattern;
use serde::{Serialize, Serializer};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Signal to noise in dB, at least.
    SqnrDb,
    /// Mean squared difference in squared real units, at most.
    Mse,
    /// Cosine of the angle between both, at least.
    Cosine,
    /// Largest absolute difference in real units, at most.
    MaxAbs,
    /// Share of rows whose largest value is in the same place, 0 to 1, at least.
    Top1,
}

/// One row of [`MEASURES`].
struct MeasureEntry {
    measure: Measure,
    /// What `--json` and JUnit files call it.
    key: &'static str,
    /// What people call it.
    title: &'static str,
    unit: &'static str,
    /// The option that sets limits.
    option: &'static str,
    /// Whether limits are the least value, and not the largest.
    is_least: bool,
}

/// Every measure, in the order in which rows list them.
const MEASURES: &[MeasureEntry] = &[
    MeasureEntry { measure: Measure::SqnrDb, key: "sqnr_db", title: "SQNR", unit: " dB", option: "--min-sqnr", is_least: true },
    MeasureEntry { measure: Measure::Mse, key: "mse", title: "MSE", unit: "", option: "--max-mse", is_least: false },
    MeasureEntry { measure: Measure::Cosine, key: "cosine", title: "cosine", unit: "", option: "--min-cosine", is_least: true },
    MeasureEntry { measure: Measure::MaxAbs, key: "max_abs", title: "max abs", unit: "", option: "--max-abs", is_least: false },
    MeasureEntry { measure: Measure::Top1, key: "top1", title: "top-1", unit: "", option: "--min-top1", is_least: true },
];

impl Measure {
    /// Every measure.
    pub(crate) fn all() -> impl Iterator<Item = Measure> {
        MEASURES.iter().map(|entry| entry.measure)
    }

    fn entry(self) -> &'static MeasureEntry {
        MEASURES.iter().find(|entry| entry.measure == self).expect("every measure has an entry")
    }

    /// What `--json` and JUnit files call it, such as `sqnr_db`.
    pub fn key(self) -> &'static str {
        self.entry().key
    }

    /// What tables call it, such as `SQNR`.
    pub fn title(self) -> &'static str {
        self.entry().title
    }
}

/// A limit of one measure, as an option gives it: `NUMBER` or `PATTERN=NUMBER`, or `none` for the number.
#[derive(Clone, Debug)]
pub struct Limit {
    /// What it is about; `None` for everything that a comparison is about.
    pub pattern: Option<Pattern>,
    /// The number, which is finite; `None` if there is to be no limit.
    pub value: Option<f64>,
}

/// What is written for a limit that lifts others.
const NONE: &str = "none";

impl FromStr for Limit {
    type Err = Error;

    /// The number is what follows the last `=`, as patterns may have some.
    fn from_str(text: &str) -> Result<Self> {
        let (pattern, number) = match text.rsplit_once('=') {
            Some((pattern, number)) => (Some(pattern), number),
            None => (None, text),
        };
        let wrong = || {
            let found = show_name(number);
            Error::Usage(format!("limit {}: expected NUMBER or PATTERN=NUMBER, or none for the number, found {found}", show_name(text)))
        };
        let value = match number {
            NONE => None,
            number => Some(number.parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(wrong)?),
        };
        if pattern == Some("") {
            return Err(Error::Usage(format!("limit {}: expected PATTERN=NUMBER, found no pattern", show_name(text))));
        }
        Ok(Limit { pattern: pattern.map(Pattern::new).transpose()?, value })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pattern) = &self.pattern {
            write!(f, "{}=", pattern.as_str())?;
        }
        match self.value {
            Some(value) => value.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What must hold: limits of each measure, of which later ones win.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Gates {
    /// Least SQNR, in dB.
    pub min_sqnr: Vec<Limit>,
    /// Largest MSE, in squared real units.
    pub max_mse: Vec<Limit>,
    /// Least cosine.
    pub min_cosine: Vec<Limit>,
    /// Largest absolute difference, in real units.
    pub max_abs: Vec<Limit>,
    /// Least share of rows of an output whose largest value is in the same place, 0 to 1.
    pub min_top1: Vec<Limit>,
}

/// What kind of thing a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A stored tensor.
    Tensor,
    /// A value within a model.
    Layer,
    /// An output of a model.
    Output,
}

impl Kind {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tensor => "tensor",
            Kind::Layer => "layer",
            Kind::Output => "output",
        }
    }
}

/// One measure of one thing, and whether it is good enough.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateRow {
    /// What it is about.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What was measured.
    pub measure: Measure,
    /// What was found; `None` where there is no such number: nothing was lost, or all was.
    pub found: Option<f64>,
    /// The limit.
    pub limit: f64,
    /// Whether it holds.
    pub passed: bool,
}

impl GateRow {
    /// What was found, with its unit: `31.5 dB`, `exact`, `none`.
    pub fn found_text(&self) -> String {
        match self.found {
            Some(found) => {
                let (short, unit) = (number(found), self.measure.entry().unit);
                // What misses the limit by less than that must not look like it.
                if !self.passed && short == number(self.limit) { format!("{found}{unit}") } else { format!("{short}{unit}") }
            }
            None if self.passed => "exact".into(),
            None => "none".into(),
        }
    }

    /// The limit: `at least 30 dB`.
    pub fn limit_text(&self) -> String {
        let MeasureEntry { unit, is_least, .. } = *self.measure.entry();
        let bound = if is_least { "at least" } else { "at most" };
        match self.limit.abs() {
            0.0 | 1e-3..1e6 => format!("{bound} {}{unit}", self.limit),
            _ => format!("{bound} {:e}{unit}", self.limit),
        }
    }
}

impl fmt::Display for GateRow {
    /// `tensor "conv.weight": SQNR: expected at least 40 dB, found 31.5 dB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name, title) = (self.kind.name(), show_name(&self.name), self.measure.title());
        write!(f, "{kind} {name}: {title}: expected {}, found {}", self.limit_text(), self.found_text())
    }
}

/// Six digits.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.5e}");
    }
    let digits = (5 - value.abs().log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// What is judged: something that was measured.
pub(crate) struct Subject<'a> {
    pub kind: Kind,
    pub name: &'a str,
    pub difference: Difference,
    /// Only of outputs of classes.
    pub top1: Option<f64>,
}

impl Gates {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        MEASURES.iter().all(|entry| self.of(entry.measure).is_empty())
    }

    /// All limits of a measure, in order.
    pub fn of(&self, measure: Measure) -> &[Limit] {
        match measure {
            Measure::SqnrDb => &self.min_sqnr,
            Measure::Mse => &self.max_mse,
            Measure::Cosine => &self.min_cosine,
            Measure::MaxAbs => &self.max_abs,
            Measure::Top1 => &self.min_top1,
        }
    }

    /// The limit that holds for something: the last whose pattern `matches`, or that has none if `is_subject`, which says whether the
    /// comparison is about things of its kind.
    pub(crate) fn limit(&self, measure: Measure, is_subject: bool, matches: impl Fn(&Pattern) -> bool) -> Option<f64> {
        let applies = |limit: &&Limit| limit.pattern.as_ref().map_or(is_subject, &matches);
        self.of(measure).iter().rev().find(applies)?.value
    }

    /// A row for each measure of `subject` that has a limit.
    pub(crate) fn judge(&self, subject: &Subject<'_>, is_subject: bool, matches: impl Fn(&Pattern) -> bool) -> Vec<GateRow> {
        let row = |entry: &MeasureEntry| {
            let limit = self.limit(entry.measure, is_subject, &matches)?;
            let (found, passed) = subject.measured(entry.measure, limit)?;
            let found = found.filter(|found| found.is_finite());
            Some(GateRow { kind: subject.kind, name: subject.name.to_owned(), measure: entry.measure, found, limit, passed })
        };
        MEASURES.iter().filter_map(row).collect()
    }

    /// Makes sure that each pattern is about something: `names` are those of all things that can have a measure.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with the first pattern that is about nothing.
    pub(crate) fn check_patterns(&self, what: &str, is_known: impl Fn(Measure, &Pattern) -> bool) -> Result<()> {
        for entry in MEASURES {
            let patterns = self.of(entry.measure).iter().filter_map(|limit| limit.pattern.as_ref());
            if let Some(pattern) = patterns.into_iter().find(|pattern| !is_known(entry.measure, pattern)) {
                let what = if entry.measure == Measure::Top1 { "an output of classes" } else { what };
                let pattern = show_name(pattern.as_str());
                return Err(Error::Usage(format!("{}: expected {what} that {pattern} matches, found none", entry.option)));
            }
        }
        Ok(())
    }
}

impl Subject<'_> {
    /// What was found, and whether it is within `limit`; `None` if it has no such measure.
    fn measured(&self, measure: Measure, limit: f64) -> Option<(Option<f64>, bool)> {
        let Difference { cosine, max_abs, mse, sqnr_db } = self.difference;
        Some(match measure {
            Measure::SqnrDb => (sqnr_db, self.difference.quality() >= limit),
            Measure::Mse => (Some(mse), mse <= limit),
            // What is all zero on both sides has no cosine and passes.
            Measure::Cosine => (cosine, cosine.map_or(mse == 0.0, |cosine| cosine >= limit)),
            // Errors that are no numbers are in no maximum.
            Measure::MaxAbs if mse.is_nan() => (None, false),
            Measure::MaxAbs => (Some(max_abs), max_abs <= limit),
            Measure::Top1 => (Some(self.top1?), self.top1? >= limit),
        })
    }
}

/// The rows that fail.
pub fn failing(rows: &[GateRow]) -> impl Iterator<Item = &GateRow> {
    rows.iter().filter(|row| !row.passed)
}

/// How many things fail at least one gate.
pub fn failing_count(rows: &[GateRow]) -> usize {
    failing(rows).map(|row| (row.kind.name(), &row.name)).collect::<HashSet<_>>().len()
}

/// Rows that one line lists.
const LISTED: usize = 5;

/// What fails, on one line.
pub(crate) fn summary(rows: &[GateRow]) -> String {
    let failing: Vec<String> = failing(rows).map(ToString::to_string).collect();
    let listed = failing[..failing.len().min(LISTED)].join("; ");
    let more = failing.len().saturating_sub(LISTED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{} of {} gates fail, so nothing is written: {listed}{more}", failing.len(), rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(min_sqnr: &[&str]) -> Gates {
        Gates { min_sqnr: min_sqnr.iter().map(|text| text.parse().unwrap()).collect(), ..Gates::default() }
    }

    #[test]
    fn limits_are_numbers_with_or_without_a_pattern() {
        let parsed = |text: &str| text.parse::<Limit>().map(|limit| (limit.pattern.map(|p| p.as_str().to_owned()), limit.value));
        for (text, pattern, value) in [
            ("30", None, Some(30.0)),
            ("-1.5", None, Some(-1.5)),
            ("none", None, None),
            ("*.mlp.*=25", Some("*.mlp.*"), Some(25.0)),
            ("lm_head=none", Some("lm_head"), None),
            ("re:a=b(c|d)=0.001", Some("re:a=b(c|d)"), Some(1e-3)),
            ("name:a=b==-2", Some("name:a=b="), Some(-2.0)),
        ] {
            assert_eq!(parsed(text).unwrap(), (pattern.map(str::to_owned), value));
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        for wrong in ["", "=", "=3", "a=", "a=b", "much", "nan", "a=nan", "a=inf", "[=3", "re:(=3", "3=x"] {
            assert!(matches!(parsed(wrong), Err(Error::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn the_last_limit_that_applies_holds() {
        let limit = |texts: &[&str], name: &str, is_subject| gates(texts).limit(Measure::SqnrDb, is_subject, |p| p.matches(name));
        let cases = ["30", "*.mlp.*=25", "b.*=20"];
        for (name, is_subject, expected) in [
            ("a.attn", true, Some(30.0)),
            ("a.mlp.up", true, Some(25.0)),
            ("b.mlp.up", true, Some(20.0)),
            ("b.mlp.up", false, Some(20.0)),
            ("a.attn", false, None),
        ] {
            assert_eq!(limit(&cases, name, is_subject), expected, "{name}");
        }
        assert_eq!(limit(&["*=25", "30"], "a", true), Some(30.0));
        assert_eq!(limit(&["*=25", "30"], "a", false), Some(25.0));
        assert_eq!(limit(&["a=25", "a=26"], "a.weight", true), Some(26.0));
        assert_eq!(limit(&[], "a", true), None);
        assert_eq!(limit(&["30", "a=none"], "a", true), None);
        assert_eq!(limit(&["30", "a=none", "a=5"], "a", true), Some(5.0));
    }

    #[test]
    fn what_is_no_number_never_passes() {
        let limits = |value| vec![Limit { pattern: None, value: Some(value) }];
        let gates =
            Gates { min_sqnr: limits(-1e9), max_mse: limits(1e9), min_cosine: limits(-1.0), max_abs: limits(1e9), min_top1: limits(0.0) };
        let rows = |difference, top1| gates.judge(&Subject { kind: Kind::Tensor, name: "a", difference, top1 }, true, |_| false);
        let lost = Difference { cosine: None, max_abs: 0.0, mse: f64::NAN, sqnr_db: None };
        assert!(rows(lost, None).len() == 4 && rows(lost, None).iter().all(|row| !row.passed && row.found.is_none()));
        // No signal, but noise.
        let noise = Difference { cosine: None, max_abs: 1.0, mse: 1.0, sqnr_db: None };
        let passed: Vec<bool> = rows(noise, Some(0.0)).iter().map(|row| row.passed).collect();
        assert_eq!(passed, [false, true, false, true, true]);
        let same = Difference::default();
        assert!(rows(same, Some(1.0)).iter().all(|row| row.passed));
        assert_eq!(rows(same, None)[0].found_text(), "exact");
    }

    #[test]
    fn figures_tell_what_is_just_missed() {
        let found = |found, limit| {
            let row = GateRow {
                kind: Kind::Tensor,
                name: "a".into(),
                measure: Measure::SqnrDb,
                found: Some(found),
                limit,
                passed: found >= limit,
            };
            row.to_string()
        };
        assert_eq!(found(29.99999999, 30.0), "tensor \"a\": SQNR: expected at least 30 dB, found 29.99999999 dB");
        assert_eq!(found(29.5, 30.0), "tensor \"a\": SQNR: expected at least 30 dB, found 29.5 dB");
        for (value, text) in [
            (29.99996, "30"),
            (29.9994, "29.9994"),
            (31.5, "31.5"),
            (0.0, "0"),
            (0.999997, "0.999997"),
            (1234567.0, "1.23457e6"),
            (123456.0, "123456"),
            (-3.25, "-3.25"),
            (1e-5, "1.00000e-5"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
