//! JSON and TOML for terminals: what would drive one or cannot be seen is written as the escape that the format has for it, so that a
//! document reads back as the same and still does nothing to who looks at it.

use crate::error::is_unfit;
use regex::{Captures, Regex};
use serde::Deserialize;
use std::fmt::Write;
use std::sync::LazyLock;

/// `value` as indented JSON. In [RFC 8259](https://www.rfc-editor.org/rfc/rfc8259#section-7) any character of a string can be `\u202e`,
/// beyond 16 bits as a pair of surrogates; outside of strings there are none but ASCII's.
///
/// # Errors
///
/// As [`serde_json::to_string_pretty`].
pub fn to_json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(escaped(&text, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    }))
}

/// `value` as TOML, every string on one line: a line that is only part of a string would look like one of the document. Strings in single
/// quotes, which take no [escapes](https://toml.io/en/v1.1.0#string), change their quotes if they need any.
///
/// # Errors
///
/// As [`toml::to_string`].
pub(crate) fn to_toml(value: &impl serde::Serialize) -> Result<String, toml::ser::Error> {
    // Strings as they may be written; quotes are nowhere else. Up to two quotes may precede the three that end a long one.
    static STRINGS: LazyLock<Regex> = LazyLock::new(|| {
        let (long, short) = (r#""""(?:[^\\]|\\.)*?"{3,5}|'''.*?'{3,5}"#, r#""(?:[^"\\]|\\.)*"|'[^']*'"#);
        Regex::new(&format!("(?s){long}|{short}")).expect("a regular expression")
    });
    let text = toml::to_string(value)?;
    let visible = |found: &Captures<'_>| {
        let string = &found[0];
        let is_visible = !string.chars().any(|c| is_unseen(c) || c == '\n');
        let content = if is_visible { None } else { toml::from_str(&format!("text = {string}")).ok() };
        content.map_or_else(|| string.to_owned(), |Text { text }| basic(&text))
    };
    Ok(STRINGS.replace_all(&text, visible).into_owned())
}

/// What a string of TOML says.
#[derive(Deserialize)]
struct Text {
    text: String,
}

/// A string in double quotes.
fn basic(content: &str) -> String {
    let quoted = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let escaped = escaped(&quoted, |c, out| {
        let code = u32::from(c);
        let _ = if code > 0xffff { write!(out, "\\U{code:08X}") } else { write!(out, "\\u{code:04X}") };
    });
    format!("\"{escaped}\"")
}

fn is_unseen(c: char) -> bool {
    is_unfit(c) && c != '\n'
}

fn escaped(text: &str, escape: impl Fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| if is_unseen(c) { escape(c, &mut out) } else { out.push(c) });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_written_reads_back_as_the_same_and_can_be_seen() {
        let unseen = ["\u{1b}[31m", "\u{9b}", "\u{7f}", "\u{85}", "\u{202e}", "\u{2028}", "\u{e0041}", "\t", "\r\n", "\0"];
        let around = ["", "a", "'", "\"", "\\", "\\\\\"", "\n", "\n\n", "''' ", "\"\"\"", "'\"\n\\", "\\u202E", "é 模型"];
        let mut all = BTreeMap::new();
        for (i, unseen) in unseen.iter().enumerate() {
            for (j, before) in around.iter().enumerate() {
                for (k, after) in around.iter().enumerate() {
                    // A key and a value each, beside a string that needs nothing.
                    let text = format!("{before}{unseen}{after}");
                    all.insert(format!("{i} {j} {k}{text}"), vec![text, format!("{before}{after}")]);
                }
            }
        }
        let (json, toml) = (to_json(&all).unwrap(), to_toml(&all).unwrap());
        assert!(!json.chars().chain(toml.chars()).any(is_unseen));
        assert_eq!(toml.lines().count(), all.len());
        assert!(json.contains("é 模型") && toml.contains("é 模型"), "what can be seen stays");
        assert_eq!(serde_json::from_str::<BTreeMap<String, Vec<String>>>(&json).unwrap(), all);
        assert_eq!(toml::from_str::<BTreeMap<String, Vec<String>>>(&toml).unwrap(), all);
    }
}
