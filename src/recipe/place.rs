//! Where something is in a recipe's file, for errors that are found later than when it is read.

use crate::error::{Error, show_path};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A line and a column of a file, both from 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    file: Arc<Path>,
    line: usize,
    column: usize,
}

impl Place {
    /// The place of a byte of the file's text.
    pub(super) fn new(file: &Path, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Place { file: file.into(), line: before.matches('\n').count() + 1, column }
    }

    /// The error that something at this place is wrong.
    pub(crate) fn error(&self, message: impl fmt::Display) -> Error {
        Error::Usage(format!("{self}: {message}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: recipe: line {}, column {}", show_path(&self.file), self.line, self.column)
    }
}
