//! What a command prints: `{"min": …, "max": …}`, each a number for the whole tensor or an array of one a group.

use crate::error::escape;
use crate::formats::shorten;
use crate::quant::params::Range;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    min: Ends,
    max: Ends,
}

/// One end of all ranges.
enum Ends {
    Same(f64),
    Each(Vec<f64>),
}

impl<'de> Deserialize<'de> for Ends {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Ends;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or an array of numbers")
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Ends, E> {
                Ok(Ends::Same(value))
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Ends, E> {
                Ok(Ends::Same(value as f64))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Ends, E> {
                Ok(Ends::Same(value as f64))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Ends, A::Error> {
                let mut all = Vec::new();
                while let Some(value) = values.next_element()? {
                    all.push(value);
                }
                Ok(Ends::Each(all))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Ends {
    /// One for each of `groups`, in f32.
    fn spread(&self, what: &str, groups: usize) -> Result<Vec<f32>, String> {
        let all: Vec<f32> = match self {
            Ends::Same(value) => vec![*value as f32; groups],
            Ends::Each(values) if values.len() == groups => values.iter().map(|value| *value as f32).collect(),
            Ends::Each(values) => return Err(format!("{what}: expected one number, or {groups}, found {}", values.len())),
        };
        match all.iter().position(|value| !value.is_finite()) {
            Some(group) => Err(format!("{what} of group {group}: expected a number in f32 range, found a larger one")),
            None => Ok(all),
        }
    }
}

/// The ranges of `groups` that a command's standard output names.
///
/// # Errors
///
/// What was expected and what was found, in one line.
pub(super) fn parse(bytes: &[u8], groups: usize) -> Result<Vec<Range>, String> {
    const EXPECTED: &str = "standard output: expected {\"min\": …, \"max\": …}";
    if bytes.trim_ascii().is_empty() {
        return Err(format!("{EXPECTED}, found nothing"));
    }
    let reply: Reply = serde_json::from_slice(bytes).map_err(|e| {
        let start: String = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).chars().take(SHOWN / 4).collect();
        let is_number = ["NaN", "Infinity", "nan", "inf"].iter().any(|name| start.contains(name));
        let note = if is_number { "; JSON has finite numbers only" } else { "" };
        format!("{EXPECTED}, found {:?}: {}{note}", start.trim_end(), escape(&shorten(&e.to_string())))
    })?;
    let (min, max) = (reply.min.spread("min", groups)?, reply.max.spread("max", groups)?);
    let ranges: Vec<Range> = min.into_iter().zip(max).map(|(min, max)| Range { min, max }).collect();
    match ranges.iter().position(|range| range.min > range.max) {
        Some(group) => {
            let Range { min, max } = ranges[group];
            Err(format!("group {group}: expected min up to max, found min {min} and max {max}"))
        }
        None => Ok(ranges),
    }
}

/// Bytes of a wrong reply that are looked at for the message.
const SHOWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_name_one_range_or_one_for_each_group() {
        let range = |min, max| Range { min, max };
        let cases: &[(&str, &[Range])] = &[
            (r#"{"min": -1, "max": 2.5}"#, &[range(-1.0, 2.5); 2]),
            ("{\"max\": [1e-3, 2],\n \"min\": [0, -3]}\n", &[range(0.0, 1e-3), range(-3.0, 2.0)]),
            (r#"{"min": -1, "max": [0, 1]}"#, &[range(-1.0, 0.0), range(-1.0, 1.0)]),
            (r#"{"min": 0.5, "max": 0.5}"#, &[range(0.5, 0.5); 2]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes(), 2).as_deref(), Ok(*expected), "{text}");
        }
    }

    #[test]
    fn wrong_replies_are_told_apart() {
        let cases = [
            ("", "found nothing"),
            (" \n", "found nothing"),
            ("min = 3", "found \"min = 3\""),
            (r#"{"min": NaN, "max": 1}"#, "finite numbers only"),
            (r#"{"min": -Infinity, "max": 1}"#, "finite numbers only"),
            (r#"{"min": null, "max": 1}"#, "null"),
            (r#"{"min": "0", "max": 1}"#, "string"),
            (r#"{"min": [[0, 0]], "max": 1}"#, "sequence"),
            (r#"{"min": true, "max": 1}"#, "boolean"),
            (r#"{"min": 0}"#, "missing field `max`"),
            (r#"{"min": 0, "max": 1, "scale": 2}"#, "scale"),
            (r#"{"min": 0, "min": 0, "max": 1}"#, "duplicate"),
            (r#"{"min": 0, "max": 1} done"#, "trailing"),
            (r#"{"min": 0, "max": 1}{"min": 0, "max": 1}"#, "trailing"),
            (r#"{"min": 0, "max": 1e39}"#, "max of group 0"),
            (r#"{"min": 0, "max": 1e999}"#, "out of range"),
            (r#"{"min": [0, 2], "max": 1}"#, "group 1: expected min up to max, found min 2 and max 1"),
            (r#"{"min": [0], "max": 1}"#, "expected one number, or 2, found 1"),
            (r#"{"min": 0, "max": [1, 2, 3]}"#, "expected one number, or 2, found 3"),
            ("\u{1b}[31m", "\\u{1b}"),
        ];
        for (text, expected) in cases {
            let error = parse(text.as_bytes(), 2).expect_err(text);
            assert!(error.contains(expected) && !error.chars().any(char::is_control), "{text}: {error}");
        }
        assert!(parse(b"\xff\xfe", 1).is_err());
        assert!(parse(&vec![b'['; 1 << 20], 1).unwrap_err().len() < 1000);
    }
}
