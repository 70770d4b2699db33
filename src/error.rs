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
    #[error("{}: {}", show_path(file), show_line(message))]
    Malformed {
        /// The file that was read.
        file: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// One tensor of a file is malformed or cannot be quantized.
    #[error("{}: tensor {}: {}", show_path(file), show_name(tensor), show_line(message))]
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
    #[error("{}", show_line(.0))]
    Usage(String),
    /// A check or a gate did not pass.
    #[error("{}", show_line(.0))]
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
    #[error("{}: {}: expected at most {limit}, found {found}", show_path(file), show_line(what))]
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

    /// The same error without its line of advice.
    pub(crate) fn without_hint(self) -> Self {
        match self {
            Error::Hinted { error, .. } => *error,
            error => error,
        }
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

/// Longest sentence that is shown in full, in characters: it has several names.
const LINE_CHARS: usize = 1000;

/// `name` in double quotes, fit for a terminal: control, bidirectional and other invisible characters escaped,
/// the middle of an overlong name left out.
pub fn show_name(name: &str) -> impl fmt::Display {
    Shown { text: name.to_owned(), quoted: true, most: SHOWN_CHARS }
}

/// Names as [`show_name`] has them, `"a", "b" and 3 more`: the first `most` of them.
pub(crate) fn list_names<N: AsRef<str>>(names: impl IntoIterator<Item = N>, most: usize) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(most).map(|name| show_name(name.as_ref()).to_string()).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `path` fit for a terminal, as [`show_name`] but without quotes.
pub fn show_path(path: &Path) -> impl fmt::Display {
    Shown { text: path.to_string_lossy().into_owned(), quoted: false, most: SHOWN_CHARS }
}

/// `text`, such as a name, as [`show_name`] but without quotes.
pub fn show_text(text: &str) -> impl fmt::Display {
    Shown { text: text.to_owned(), quoted: false, most: SHOWN_CHARS }
}

/// A sentence with names in it, such as a reason or a message, as [`show_text`] but longer.
pub fn show_line(sentence: &str) -> impl fmt::Display {
    Shown { text: sentence.to_owned(), quoted: false, most: LINE_CHARS }
}

/// `text` fit for a terminal: what would drive it, start another line or hide is escaped.
pub fn escape(text: &str) -> String {
    text.chars().flat_map(|c| if is_unfit(c) { c.escape_unicode().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// As [`escape`], but for the ends of lines.
pub fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}

struct Shown {
    text: String,
    quoted: bool,
    /// Most characters that are shown in full.
    most: usize,
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
            if chars > self.most && (self.most / 2..chars - self.most / 4).contains(&i) {
                if !skipping {
                    write!(f, "…({chars} characters)…")?;
                    skipping = true;
                }
                continue;
            }
            match c {
                '"' if self.quoted => f.write_str("\\\"")?,
                c if is_unfit(c) => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        if self.quoted {
            f.write_char('"')?;
        }
        Ok(())
    }
}

/// Characters that a terminal must not be given: those that drive it or begin a line, those that change how the text around them
/// is laid out, and those that cannot be seen. The latter are Unicode's
/// [`Default_Ignorable_Code_Point`](https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point), which has the bidirectional
/// controls, and the separators of lines and marks of annotations.
pub(crate) fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::formats::{self, ReadOptions};
    use crate::verify::verify;
    use crate::{Prepared, Request, Silent};

    /// The names of all variants and the name of an error's; does not compile while one is missing.
    macro_rules! variants {
        ($($variant:ident),*) => {
            const VARIANTS: &[&str] = &[$(stringify!($variant)),*];

            fn variant(error: &Error) -> &'static str {
                match error {
                    $(Error::$variant { .. } => stringify!($variant),)*
                }
            }
        };
    }

    variants!(Malformed, Tensor, NonFinite, Usage, Check, Gates, Io, Changed, Limit, Hinted);

    /// A safetensors file of one tensor `w` `[1, 2]` of this type, with these bytes.
    fn model(dtype: &str, values: &[u8]) -> Vec<u8> {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[1,2],"data_offsets":[0,{}]}}}}"#, values.len());
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), values].concat()
    }

    #[test]
    fn every_variant_is_what_some_file_causes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let options = ReadOptions::default();
        let open = |path: &Path| formats::open(path, &options).map(drop);
        let quantize = |path: &Path| {
            let mut request = Request::new(path);
            request.recipe.min_elements = 0;
            Prepared::new(request).and_then(|prepared| prepared.run(&Silent)).map(drop)
        };
        let good = write("good.safetensors", &model("F32", &[0x3d; 8]));
        quantize(&good).unwrap();
        let output = dir.path().join("good.int8.safetensors");
        let changed = {
            let model = formats::open(&good, &options).unwrap();
            std::fs::File::options().append(true).open(&good).unwrap().set_len(3).unwrap();
            model.check_unchanged()
        };
        let infinite = [1.0, f32::INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let narrow = ReadOptions { max_name_bytes: 0, ..options };
        let again = write("again.safetensors", &model("F32", &[0x3d; 8]));
        let gated = write("gated.safetensors", &model("F32", &[0x3d, 0x3d, 0x3d, 0x3d, 0x3c, 0x3b, 0x3a, 0x39]));
        let mut without_samples = Request::new(&again);
        without_samples.recipe.mode = crate::recipe::Mode::Static;
        let mut beyond = Request::new(&gated);
        beyond.recipe.min_elements = 0;
        beyond.gates.min_sqnr.push("1000".parse().unwrap());
        let cases: [(&str, Result<()>, u8); 10] = [
            ("Malformed", open(&write("short", b"1234567")), 1),
            ("Tensor", open(&write("type", &model("F31", &[0; 8]))), 1),
            ("NonFinite", quantize(&write("infinite.safetensors", &model("F32", &infinite))), 1),
            ("Usage", Prepared::new(without_samples).map(drop), 2),
            (
                "Check",
                {
                    std::fs::write(&output, b"other").unwrap();
                    verify(&output, &options, &Silent).and_then(|found| found.check())
                },
                3,
            ),
            ("Gates", Prepared::new(beyond).and_then(|prepared| prepared.run(&Silent)).map(drop), 3),
            ("Io", open(&dir.path().join("none")), 4),
            ("Changed", changed, 5),
            ("Limit", formats::open(&again, &narrow).map(drop), 6),
            ("Hinted", open(&write("pointer", b"version https://git-lfs.github.com/spec/v1\n")), 1),
        ];
        assert_eq!(cases.each_ref().map(|case| case.0), VARIANTS);
        for (expected, result, exit) in cases {
            let error = result.expect_err(expected);
            // Those that come with advice are looked into.
            let inner = match &error {
                Error::Hinted { error, .. } if expected != "Hinted" => error,
                other => other,
            };
            assert_eq!((variant(inner), error.exit_code()), (expected, exit), "{error}");
            assert!(!error.to_string().contains('\n') && !error.to_string().is_empty(), "{error}");
        }
    }

    #[test]
    fn names_of_strangers_cannot_drive_the_terminal() {
        let shown = show_name("a\x1b[31m\u{202e}\n\0\"b").to_string();
        assert_eq!(shown, "\"a\\u{1b}[31m\\u{202e}\\u{a}\\u{0}\\\"b\"");
    }

    #[test]
    fn what_parsers_quote_of_files_cannot_drive_the_terminal() {
        let quoted = "unknown field `a\0\u{1b}[31m\nb`".to_owned();
        let file = PathBuf::from("f");
        for error in [
            Error::malformed(&file, &quoted),
            Error::tensor(&file, "t", &quoted),
            Error::Usage(quoted.clone()),
            Error::Check(quoted.clone()),
            Error::Limit { file: file.clone(), what: quoted.clone(), limit: 1, found: 2 },
            Error::Usage(quoted.clone()).with_hint("h"),
        ] {
            let shown = error.to_string();
            assert!(shown.contains("`a\\u{0}\\u{1b}[31m\\u{a}b`") && !shown.chars().any(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn an_overlong_name_is_shortened_and_its_length_told() {
        let shown = show_name(&"x".repeat(100_000)).to_string();
        assert!(shown.len() < 200, "{} bytes", shown.len());
        assert!(shown.contains("100000 characters"));
    }
}
