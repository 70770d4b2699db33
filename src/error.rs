//! What can go wrong, by what the caller could do about it.
//!
//! Every message names the file and, where there is one, the tensor, then what was expected and what was
//! found. Names come from files of strangers, so they are escaped and shortened before they are shown.

use crate::gates::{self, GateRow};
use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this library. [`Error::exit_code`] maps each variant to the exit code of the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is malformed or of an unsupported kind.
    #[error("{}: {message}", show_path(file))]
    Malformed {
        /// The file that was read.
        file: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// One tensor of a file is malformed or cannot be quantized.
    #[error("{}: tensor {}: {message}", show_path(file), show_name(tensor))]
    Tensor {
        /// The file that holds the tensor.
        file: PathBuf,
        /// The tensor's name as the file spells it.
        tensor: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A weight holds NaN or an infinity, or a value that is one in f32.
    #[error(
        "{}: tensor {}: values: expected finite numbers in f32 range, found {count} {kind}, first at index {first_index}",
        show_path(file),
        show_name(tensor)
    )]
    NonFinite {
        /// The file that holds the tensor.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// `NaN`, `Inf`, `NaN or Inf`, or `values out of f32 range`.
        kind: &'static str,
        /// How many such values the tensor has.
        count: u64,
        /// Row-major index of the first one, in elements.
        first_index: u64,
    },
    /// Wrong usage: options that contradict each other, a pattern that matches nothing, an output in the way.
    #[error("{0}")]
    Usage(String),
    /// A check did not pass.
    #[error("{0}")]
    Check(String),
    /// Gates of a run do not hold, so that nothing was written.
    #[error("{}: {}", show_path(model), gates::summary(rows))]
    Gates {
        /// The model that was quantized.
        model: PathBuf,
        /// Every gate, those that hold too.
        rows: Vec<GateRow>,
    },
    /// The operating system refused an operation.
    #[error("{}: {action}: {source}", show_path(path))]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was being done, such as `open` or `write`.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An input changed while it was being read.
    #[error("{}: expected the file to stay unchanged during the run, found it {found}", show_path(path))]
    Changed {
        /// The input that changed.
        path: PathBuf,
        /// What happened to it.
        found: &'static str,
    },
    /// A limit that protects against hostile or mistaken input was exceeded.
    #[error("{}: {what}: expected at most {limit}, found {found}", show_path(file))]
    Limit {
        /// The file concerned.
        file: PathBuf,
        /// The quantity that is limited.
        what: String,
        /// The limit in force.
        limit: u64,
        /// What the file has.
        found: u64,
    },
    /// Any other error, with a line on what the user can do about it.
    #[error("{error}")]
    Hinted {
        /// The error itself.
        error: Box<Error>,
        /// One line of advice.
        hint: String,
    },
}

impl Error {
    /// The exit code of the program: 1 bad input, 2 wrong usage, 3 a failed check, 4 I/O, 5 changed input, 6 a limit.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Malformed { .. } | Error::Tensor { .. } | Error::NonFinite { .. } => 1,
            Error::Usage(_) => 2,
            Error::Check(_) | Error::Gates { .. } => 3,
            Error::Io { .. } => 4,
            Error::Changed { .. } => 5,
            Error::Limit { .. } => 6,
            Error::Hinted { error, .. } => error.exit_code(),
        }
    }

    /// What the user can do, if there is something to say.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Hinted { hint, .. } => Some(hint),
            Error::NonFinite { .. } => Some("pass --allow-non-finite to keep such tensors in float, or --exclude to keep this one"),
            _ => None,
        }
    }

    /// The same error with a line of advice.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Error::Hinted { error: Box::new(self), hint: hint.into() }
    }

    pub(crate) fn malformed(file: &Path, message: impl Into<String>) -> Self {
        Error::Malformed { file: file.to_owned(), message: message.into() }
    }

    pub(crate) fn tensor(file: &Path, tensor: &str, message: impl Into<String>) -> Self {
        Error::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), message: message.into() }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: impl Into<std::io::Error>) -> Self {
        Error::Io { path: path.to_owned(), action, source: source.into() }
    }
}

/// Longest name that is shown in full, in characters.
const SHOWN_CHARS: usize = 160;

/// `name` in double quotes, fit for a terminal: control, bidirectional and other invisible characters escaped,
/// the middle of an overlong name left out.
pub fn show_name(name: &str) -> impl fmt::Display {
    Shown { text: name.to_owned(), quoted: true }
}

/// `path` fit for a terminal, as [`show_name`] but without quotes.
pub fn show_path(path: &Path) -> impl fmt::Display {
    Shown { text: path.to_string_lossy().into_owned(), quoted: false }
}

/// `text`, such as a name, as [`show_name`] but without quotes.
pub fn show_text(text: &str) -> impl fmt::Display {
    Shown { text: text.to_owned(), quoted: false }
}

/// `text` fit for a terminal: what would drive it, start another line or hide is escaped.
pub fn escape(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() || is_invisible(c) { c.escape_unicode().collect::<Vec<_>>() } else { vec![c] }).collect()
}

struct Shown {
    text: String,
    quoted: bool,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        if self.quoted {
            f.write_char('"')?;
        }
        let chars = self.text.chars().count();
        let mut skipping = false;
        for (i, c) in self.text.chars().enumerate() {
            if chars > SHOWN_CHARS && (SHOWN_CHARS / 2..chars - SHOWN_CHARS / 4).contains(&i) {
                if !skipping {
                    write!(f, "…({chars} characters)…")?;
                    skipping = true;
                }
                continue;
            }
            match c {
                '"' if self.quoted => f.write_str("\\\"")?,
                c if c.is_control() || is_invisible(c) => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        if self.quoted {
            f.write_char('"')?;
        }
        Ok(())
    }
}

/// Characters that change how the text around them is laid out, or that cannot be seen: Unicode's bidirectional
/// controls, zero-width characters and line separators.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{061c}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_cannot_drive_the_terminal() {
        let shown = show_name("a\x1b[31m\u{202e}\n\0\"b").to_string();
        assert_eq!(shown, "\"a\\u{1b}[31m\\u{202e}\\u{a}\\u{0}\\\"b\"");
    }

    #[test]
    fn an_overlong_name_is_shortened_and_its_length_told() {
        let shown = show_name(&"x".repeat(100_000)).to_string();
        assert!(shown.len() < 200, "{} bytes", shown.len());
        assert!(shown.contains("100000 characters"));
    }
}
