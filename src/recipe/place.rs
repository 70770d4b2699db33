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
        let (line, column) = advance(START, text.get(..offset).unwrap_or(text));
        Place { file: file.into(), line, column }
    }

    /// The error that something at this place is wrong.
    pub(crate) fn error(&self, message: impl fmt::Display) -> Error {
        Error::Usage(format!("{self}: {message}"))
    }
}

/// Line and column of the first byte of a text.
const START: (usize, usize) = (1, 1);

/// Line and column behind `text`, which begins at a line and a column.
fn advance((line, column): (usize, usize), text: &str) -> (usize, usize) {
    match text.rfind('\n') {
        Some(last) => (line + text.bytes().filter(|byte| *byte == b'\n').count(), text[last + 1..].chars().count() + 1),
        None => (line, column + text.chars().count()),
    }
}

/// Bytes between two marks.
const STEP: usize = 1024;

/// Finds many places in one text, without reading all that is before each of them.
pub(super) struct PlaceFinder<'t> {
    file: Arc<Path>,
    text: &'t str,
    /// For the first character that begins at or behind every multiple of [`STEP`]: its byte, line and column.
    marks: Vec<(usize, (usize, usize))>,
}

impl<'t> PlaceFinder<'t> {
    pub(super) fn new(file: &Path, text: &'t str) -> Self {
        let mut marks = vec![(0, START)];
        for multiple in (STEP..=text.len()).step_by(STEP) {
            let offset = text.ceil_char_boundary(multiple);
            let (last, place) = marks[marks.len() - 1];
            marks.push((offset, advance(place, &text[last..offset])));
        }
        PlaceFinder { file: file.into(), text, marks }
    }

    /// As [`Place::new`].
    pub(super) fn place(&self, offset: usize) -> Place {
        let offset = if self.text.is_char_boundary(offset) { offset } else { self.text.len() };
        let (from, before) = self.marks[offset / STEP];
        let (line, column) = advance(before, &self.text[from..offset]);
        Place { file: self.file.clone(), line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: recipe: line {}, column {}", show_path(&self.file), self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_same_with_marks_and_without() {
        let file = Path::new("r.toml");
        for text in ["", "a\nb", &"é\n\r\nabcdé".repeat(400), &"é".repeat(3 * STEP), &"\n".repeat(STEP), &"€".repeat(STEP + 1)] {
            let finder = PlaceFinder::new(file, text);
            assert!((0..text.len() + 9).all(|offset| finder.place(offset) == Place::new(file, text, offset)));
        }
        let place = PlaceFinder::new(file, "a\nbé c").place(6);
        assert_eq!((place.line, place.column), (2, 4));
    }
}
