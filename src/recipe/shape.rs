//! Patterns of shapes: what dimensions of tensors a rule is about.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Dimensions, outermost first: a list of numbers and of `"*"` (any), `">=N"`, `"<=N"`, and at most one `"..."`, any number of
/// dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(Vec<Dimension>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    Is(u64),
    AtLeast(u64),
    AtMost(u64),
    Any,
    /// Any number of dimensions.
    Rest,
}

impl Dimension {
    fn fits(self, size: usize) -> bool {
        let size = size as u64;
        match self {
            Dimension::Is(wanted) => size == wanted,
            Dimension::AtLeast(least) => size >= least,
            Dimension::AtMost(most) => size <= most,
            Dimension::Any | Dimension::Rest => true,
        }
    }
}

impl Shape {
    /// Whether a tensor of this shape is meant.
    pub fn matches(&self, shape: &[usize]) -> bool {
        let fits = |wanted: &[Dimension], sizes: &[usize]| wanted.iter().zip(sizes).all(|(wanted, size)| wanted.fits(*size));
        match self.0.iter().position(|dimension| *dimension == Dimension::Rest) {
            None => self.0.len() == shape.len() && fits(&self.0, shape),
            Some(at) => {
                let (first, last) = (&self.0[..at], &self.0[at + 1..]);
                first.len() + last.len() <= shape.len() && fits(first, shape) && fits(last, &shape[shape.len() - last.len()..])
            }
        }
    }

    fn new(dimensions: Vec<Dimension>) -> Result<Self> {
        match dimensions.iter().filter(|dimension| **dimension == Dimension::Rest).count() {
            0 | 1 => Ok(Shape(dimensions)),
            found => Err(Error::Usage(format!("shape: expected \"...\" once at most, found it {found} times"))),
        }
    }
}

impl std::str::FromStr for Dimension {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Usage(format!("shape: expected numbers, \"*\", \">=N\", \"<=N\" or \"...\", found {text:?}"));
        let number = |digits: &str| digits.trim().parse::<u64>().map_err(|_| wrong());
        match text {
            "*" => Ok(Dimension::Any),
            "..." => Ok(Dimension::Rest),
            _ => match (text.strip_prefix(">="), text.strip_prefix("<=")) {
                (Some(least), _) => Ok(Dimension::AtLeast(number(least)?)),
                (_, Some(most)) => Ok(Dimension::AtMost(number(most)?)),
                (None, None) => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dimension::Is(size) => write!(f, "{size}"),
            Dimension::AtLeast(least) => write!(f, ">={least}"),
            Dimension::AtMost(most) => write!(f, "<={most}"),
            Dimension::Any => f.write_str("*"),
            Dimension::Rest => f.write_str("..."),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimensions: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", dimensions.join(", "))
    }
}

/// A dimension as files hold it.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, \"*\", \">=N\", \"<=N\" or \"...\"")]
enum Stored {
    Size(u64),
    Text(String),
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|dimension| match dimension {
            Dimension::Is(size) => Stored::Size(*size),
            other => Stored::Text(other.to_string()),
        }))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dimension = |stored: Stored| match stored {
            Stored::Size(size) => Ok(Dimension::Is(size)),
            Stored::Text(text) => text.parse(),
        };
        let dimensions = Vec::<Stored>::deserialize(deserializer)?.into_iter().map(dimension).collect::<Result<_>>();
        dimensions.and_then(Shape::new).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(json: &str) -> Shape {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn dimensions_are_compared_one_by_one_and_around_the_rest() {
        assert!(shape("[3, 4]").matches(&[3, 4]) && !shape("[3, 4]").matches(&[4, 3]) && !shape("[3, 4]").matches(&[3, 4, 1]));
        let large = shape(r#"[">=1024", "*"]"#);
        assert!(large.matches(&[1024, 1]) && !large.matches(&[1023, 1]));
        let kernels = shape(r#"["*", "...", 3, "<=3"]"#);
        assert!(
            kernels.matches(&[8, 8, 3, 1]) && kernels.matches(&[8, 3, 3]) && !kernels.matches(&[3, 3]) && !kernels.matches(&[8, 8, 3, 4])
        );
        assert!(shape(r#"["..."]"#).matches(&[]) && !shape("[]").matches(&[1]));
    }

    #[test]
    fn shapes_are_written_as_they_are_read_and_others_refused() {
        let text = r#"[3,"*",">=2","<=7","..."]"#;
        assert_eq!(serde_json::to_string(&shape(text)).unwrap(), text);
        for wrong in [r#"["..", 1]"#, r#"["...", "..."]"#, "[-1]", "[1.5]", r#"[">2"]"#, r#"[">=x"]"#, r#""3x4""#, r#"["3"]"#] {
            assert!(serde_json::from_str::<Shape>(wrong).is_err(), "{wrong}");
        }
    }
}
