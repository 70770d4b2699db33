//! What a command is asked: a range for each group of one tensor, and what tells it which tensor that is.

use crate::quant::scheme::CodeType;

/// What ranges are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Weight,
    Activation,
}

/// One question to a command.
pub(crate) struct Question<'a> {
    pub subject: Subject,
    /// The tensor's name.
    pub name: &'a str,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// `per-tensor`, `per-channel` or `per-group:SIZE`.
    pub granularity: String,
    /// The axis of channels, or the one that groups divide.
    pub axis: Option<usize>,
    pub codes: CodeType,
    pub symmetric: bool,
    /// How many ranges there are.
    pub groups: usize,
}

/// Longest name that a command is told, in characters: a system has a limit for its environment.
const NAME_CHARS: usize = 4096;

impl Question<'_> {
    /// The environment variables that say it.
    pub(super) fn environment(&self) -> [(&'static str, String); 7] {
        let subject = match self.subject {
            Subject::Weight => "weight",
            Subject::Activation => "activation",
        };
        // No variable can hold a NUL.
        let name = self.name.chars().take(NAME_CHARS).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect();
        [
            ("QTOOL_TENSOR", name),
            ("QTOOL_SUBJECT", subject.to_owned()),
            ("QTOOL_GRANULARITY", self.granularity.clone()),
            ("QTOOL_AXIS", self.axis.map(|axis| axis.to_string()).unwrap_or_default()),
            ("QTOOL_GROUPS", self.groups.to_string()),
            ("QTOOL_CODES", self.codes.name().to_owned()),
            ("QTOOL_SYMMETRIC", self.symmetric.to_string()),
        ]
    }
}
