//! JSON objects of strangers: every key once, values left as text until someone wants them.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

/// Longest piece of a file that a message quotes, in characters.
const QUOTED_CHARS: usize = 160;

/// The members of the object in `text`, in order, with unparsed values.
///
/// # Errors
///
/// A message if `text` is not one JSON object, or if a key occurs twice (JSON readers disagree on which one wins).
pub(crate) fn parse_object(text: &str) -> Result<Vec<(Cow<'_, str>, &RawValue)>, String> {
    serde_json::from_str::<Members<'_>>(text).map(|members| members.0).map_err(|e| shorten(&e.to_string()))
}

/// `message` with its middle left out if it is long.
pub(crate) fn shorten(message: &str) -> String {
    let chars = message.chars().count();
    if chars <= 2 * QUOTED_CHARS {
        return message.to_owned();
    }
    let head: String = message.chars().take(QUOTED_CHARS).collect();
    let tail: String = message.chars().skip(chars - QUOTED_CHARS).collect();
    format!("{head}…{tail}")
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor).map(Members)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            members.push((key, map.next_value::<&'de RawValue>()?));
        }
        let mut seen = HashSet::with_capacity(members.len());
        match members.iter().find(|(key, _)| !seen.insert(key.as_ref())) {
            Some((key, _)) => {
                Err(A::Error::custom(format!("key {}: expected every key once, found a duplicate", crate::error::show_name(key))))
            }
            None => Ok(members),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_written_with_an_escape_is_still_the_same_key() {
        let error = parse_object(r#"{"a": 1, "\u0061": 2}"#).unwrap_err();
        assert!(error.contains("duplicate"), "{error}");
        assert_eq!(parse_object(r#" {"a\n": [1] } "#).unwrap()[0].0, "a\n");
    }
}
