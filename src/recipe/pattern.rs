//! Patterns: what names of tensors a rule, an option or a layer is about.

use crate::error::{Error, Result, show_name};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A glob, a regular expression after `re:`, or a name as it is after `name:`. It is matched against the whole name of a
/// tensor, and against the name of its layer: the tensor's without a final `.weight`.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone)]
enum Matcher {
    Glob(regex::bytes::Regex),
    Regex(regex::Regex),
    Name(String),
}

/// Most bytes that a regular expression may take once compiled: recipes and sidecars come from strangers too.
const LARGEST_REGEX: usize = 1 << 18;

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with what is wrong.
    pub fn new(text: &str) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| Error::Usage(format!("pattern {}: {e}", show_name(text)));
        let matcher = match (text.strip_prefix("re:"), text.strip_prefix("name:")) {
            (_, Some(name)) => Matcher::Name(name.to_owned()),
            (Some(regex), _) => {
                let regex = regex::RegexBuilder::new(&format!("^(?:{regex})$")).size_limit(LARGEST_REGEX).build();
                Matcher::Regex(regex.map_err(|e| wrong(&e))?)
            }
            (None, None) => {
                // What globset compiles itself has no limits, and panics beyond those of regex.
                let glob = globset::Glob::new(text).map_err(|e| wrong(&e))?;
                let regex = regex::bytes::RegexBuilder::new(glob.regex()).dot_matches_new_line(true).size_limit(LARGEST_REGEX).build();
                Matcher::Glob(regex.map_err(|e| wrong(&e))?)
            }
        };
        Ok(Pattern { text: text.to_owned(), matcher })
    }

    /// The pattern that matches `name` only.
    pub fn exact(name: &str) -> Self {
        Pattern { text: format!("name:{name}"), matcher: Matcher::Name(name.to_owned()) }
    }

    /// Whether it matches a tensor of this name.
    pub fn matches(&self, tensor: &str) -> bool {
        self.matches_name(tensor) || tensor.strip_suffix(".weight").is_some_and(|layer| self.matches_name(layer))
    }

    fn matches_name(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(name.as_bytes()),
            Matcher::Regex(regex) => regex.is_match(name),
            Matcher::Name(exact) => exact == name,
        }
    }

    /// The one name that it matches, if it has no wildcards.
    pub(crate) fn as_name(&self) -> Option<&str> {
        match &self.matcher {
            Matcher::Name(name) => Some(name),
            Matcher::Glob(_) if !self.text.contains(['*', '?', '[', '{', '\\']) => Some(&self.text),
            Matcher::Glob(_) | Matcher::Regex(_) => None,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.text.fmt(f)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Pattern::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_tensors_and_layers() {
        let pattern = |text: &str| Pattern::new(text).unwrap();
        assert!(pattern("*.mlp.*").matches("h.0.mlp.up.weight"));
        assert!(pattern("lm_head").matches("lm_head.weight"));
        assert!(!pattern("lm_head").matches("x.lm_head.weight"));
        assert!(pattern(r"re:h\.\d+\..*").matches("h.12.attn.weight"));
        assert!(!pattern("re:h").matches("hh"));
        assert!(pattern("*é*").matches("caféweight"));
        assert!(pattern("name:a[b]*").matches("a[b]*") && !pattern("name:a[b]*").matches("ab"));
        assert!(pattern("a*b?").matches("a.\n/b\u{7f}") && pattern("{a,b}.*").matches("b.c") && pattern("[!x]*").matches("y"));
        assert!(Pattern::new("re:(").is_err() && Pattern::new("[").is_err());
        for long in
            ["{".repeat(260) + "a" + &"}".repeat(260), "[!a]".repeat(200_000), "re:".to_owned() + &"(".repeat(300) + &")".repeat(300)]
        {
            assert!(Pattern::new(&long).is_err());
        }
    }
}
