//! `NAME[:VALUE]`: how observers and other methods are written on the command line, in recipes and in sidecars.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A method by name with its optional number, as in `min-max` or `percentile:99.99`.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// The name, as its table lists it.
    pub name: String,
    /// The number after the colon.
    pub value: Option<f64>,
}

impl Method {
    /// The method `name` without a number.
    pub fn new(name: &str) -> Self {
        Method { name: name.to_owned(), value: None }
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = match text.split_once(':') {
            None => (text, None),
            Some((name, number)) => {
                let value = number.parse::<f64>().ok().filter(|v| v.is_finite());
                let wrong = || Error::Usage(format!("method {text:?}: expected NAME or NAME:NUMBER, found {number:?} after the colon"));
                (name, Some(value.ok_or_else(wrong)?))
            }
        };
        Ok(Method { name: name.to_owned(), value })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{}:{value}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The entry of a table by name, or a usage error that lists what there is.
pub(crate) fn look_up<'t, T>(what: &str, table: &'t [T], name_of: impl Fn(&T) -> &str, wanted: &str) -> Result<&'t T> {
    table.iter().find(|entry| name_of(entry) == wanted).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(name_of).collect();
        let guess = meant(wanted, known.iter().copied()).map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default();
        Error::Usage(format!("{what}: expected one of {}, found {wanted:?}{guess}", known.join(", ")))
    })
}

/// Longest names that are compared for slips, in bytes: that takes the product of their lengths.
const LONGEST_MEANT: usize = 256;

/// The name among `known` that somebody who wrote `wanted` likely meant: one that few edits lead to.
pub(crate) fn meant<'k>(wanted: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if wanted.len() > LONGEST_MEANT {
        return None;
    }
    let edits = |name: &str| strsim::damerau_levenshtein(&wanted.to_lowercase(), &name.to_lowercase());
    let known = known.filter(|name| name.len() <= LONGEST_MEANT);
    let (edits, name) = known.map(|name| (edits(name), name)).min_by_key(|(edits, _)| *edits)?;
    (edits <= 1.max(wanted.chars().count() / 3)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognized_and_another_word_is_not() {
        let known = || ["weights", "granularity", "observer", "min-max", "mse"].into_iter();
        for (wanted, name) in [("wieghts", "weights"), ("Observer", "observer"), ("granularty", "granularity"), ("mes", "mse")] {
            assert_eq!(meant(wanted, known()), Some(name));
        }
        assert_eq!(meant("entropy", known()), None);
        // A table of all pairs of their characters would take gigabytes.
        let long = ["a", "b"].map(|last| "a".repeat(100_000) + last);
        assert_eq!(meant(&long[0], [long[1].as_str()].into_iter()), None);
        assert_eq!(meant("x", [].into_iter()), None);
    }
}
