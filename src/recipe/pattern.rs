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
    Stars(Stars),
    Glob(regex::bytes::Regex),
    Regex(regex::Regex),
    Name(String),
}

/// A glob with no wildcards but `*`: what stands before the first, between and after the last of them. It takes less memory and
/// time than a regular expression, as recipes may have thousands.
#[derive(Clone)]
struct Stars {
    first: String,
    /// What follows each `*`, in order.
    rest: Vec<String>,
}

/// Longest glob that is matched so.
const LONGEST_STARS: usize = 256;

impl Stars {
    /// The glob `text`, if it is one of these. Several `*` in a row are left to globset, to which they mean more.
    fn new(text: &str) -> Option<Self> {
        if text.len() > LONGEST_STARS || text.contains(['?', '[', ']', '{', '}', '\\']) || text.contains("**") {
            return None;
        }
        let mut parts = text.split('*').map(str::to_owned);
        Some(Stars { first: parts.next()?, rest: parts.collect() })
    }

    fn matches(&self, name: &str) -> bool {
        let Some((last, between)) = self.rest.split_last() else { return name == self.first };
        let Some(mut name) = name.strip_prefix(self.first.as_str()).and_then(|name| name.strip_suffix(last.as_str())) else {
            return false;
        };
        // The first place of each part leaves most for those that follow.
        between.iter().all(|part| match name.find(part.as_str()) {
            Some(place) => {
                name = &name[place + part.len()..];
                true
            }
            None => false,
        })
    }
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
            (None, None) if let Some(stars) = Stars::new(text) => Matcher::Stars(stars),
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
            Matcher::Stars(stars) => stars.matches(name),
            Matcher::Glob(glob) => glob.is_match(name.as_bytes()),
            Matcher::Regex(regex) => regex.is_match(name),
            Matcher::Name(exact) => exact == name,
        }
    }

    /// The one name that it matches, if it has no wildcards.
    pub(crate) fn as_name(&self) -> Option<&str> {
        match &self.matcher {
            Matcher::Name(name) => Some(name),
            Matcher::Stars(_) | Matcher::Glob(_) if !self.text.contains(['*', '?', '[', '{', '\\']) => Some(&self.text),
            Matcher::Stars(_) | Matcher::Glob(_) | Matcher::Regex(_) => None,
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

    /// All words of up to `longest` of these letters.
    fn words(letters: &[&str], longest: usize) -> Vec<String> {
        let mut words = vec![String::new()];
        for length in 1..=longest {
            let shorter: Vec<String> = words.iter().filter(|word| word.chars().count() == length - 1).cloned().collect();
            words.extend(shorter.iter().flat_map(|word| letters.iter().map(move |letter| format!("{word}{letter}"))));
        }
        words
    }

    #[test]
    fn globs_of_stars_match_what_globset_says() {
        let names = words(&["a", "é", "/", "\n"], 4);
        for text in words(&["a", "é", "/", "*"], 4).iter().filter(|text| !text.contains("**")) {
            let (stars, glob) = (Stars::new(text).unwrap(), globset::Glob::new(text).unwrap().compile_matcher());
            for name in &names {
                assert_eq!(stars.matches(name), glob.is_match(name), "{text:?} of {name:?}");
            }
        }
        for other in ["a**", "a?", "[a]", "{a,b}", "\\*", &"a".repeat(LONGEST_STARS + 1)] {
            assert!(Stars::new(other).is_none(), "{other}");
        }
    }

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
