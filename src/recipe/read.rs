//! Reads recipes: TOML, JSON, or the recipe that a sidecar records. Every mistake is named with its line and column.

use super::place::{Place, PlaceFinder};
use super::{Pattern, Recipe};
use crate::error::{Error, Result};
use crate::formats::shorten;
use crate::method::meant;
use crate::outputs::document::FORMAT;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::Spanned;

/// Longest file that is read as a recipe: a sidecar of a hundred thousand tensors has less.
const LARGEST_FILE: u64 = 256 << 20;

/// The recipe in the file at `path`. `is_complete` says that no observers will be added to it, so that all it names must exist.
pub(super) fn read(path: &Path, is_complete: bool) -> Result<Recipe> {
    let io = |e| Error::io(path, "read", e);
    let file = File::open(path).map_err(io)?;
    // Of a pipe the size is not known before its end.
    let size = file.metadata().map_err(io)?.len();
    let mut text = Vec::new();
    if size <= LARGEST_FILE {
        file.take(LARGEST_FILE + 1).read_to_end(&mut text).map_err(io)?;
    }
    let found = size.max(text.len() as u64);
    if found > LARGEST_FILE {
        return Err(Error::Limit { file: path.to_owned(), what: "recipe: bytes".into(), limit: LARGEST_FILE, found });
    }
    let text = String::from_utf8(text).map_err(|e| {
        let place = e.utf8_error().valid_up_to();
        Source { path, text: &String::from_utf8_lossy(&e.as_bytes()[..place]) }.error(place, "expected UTF-8, found another encoding")
    })?;
    parse(path, &text, is_complete)
}

/// The recipe in `text`, which `path` names in errors.
pub(super) fn parse(path: &Path, text: &str, is_complete: bool) -> Result<Recipe> {
    let source = Source { path, text: text.strip_prefix('\u{feff}').unwrap_or(text) };
    let (mut recipe, places) = if source.text.trim_start().starts_with('{') { source.json()? } else { source.toml()? };
    let finder = PlaceFinder::new(path, source.text);
    for (rule, table) in recipe.rules.iter_mut().zip(&places.rule) {
        source.check(table, rule.contradiction())?;
        let named = ["match", "op", "shape"].iter().find_map(|field| table.fields.get(*field));
        rule.place = Some(finder.place(*named.unwrap_or(&table.start)));
    }
    for (layer, table) in recipe.layers.iter_mut().zip(&places.layer) {
        source.check(table, layer.contradiction())?;
        layer.place = Some(finder.place(table.start));
    }
    for (quantizer, table) in recipe.fake_quantizers.iter_mut().zip(&places.fake_quantizer) {
        quantizer.place = Some(finder.place(table.start));
    }
    if is_complete {
        source.check_methods(&recipe, &places)?;
    }
    let included: HashSet<&str> = recipe.include.iter().map(Pattern::as_str).collect();
    if let Some(pattern) = recipe.exclude.iter().find(|pattern| included.contains(pattern.as_str())) {
        let message = format!("exclude: expected other tensors than those of `include`, found {:?} in both", pattern.as_str());
        return Err(source.error(places.exclude.unwrap_or_default(), &message));
    }
    Ok(recipe)
}

/// Where the parts of a recipe are, in bytes from the start of its text.
#[derive(Default)]
struct Places {
    activations: Table,
    default: Table,
    exclude: Option<usize>,
    fake_quantizer: Vec<Table>,
    layer: Vec<Table>,
    rule: Vec<Table>,
}

/// Where a table and the values of its fields are.
#[derive(Default)]
struct Table {
    start: usize,
    fields: BTreeMap<String, usize>,
}

/// A text with the name of its file.
#[derive(Clone, Copy)]
struct Source<'t> {
    path: &'t Path,
    text: &'t str,
}

impl<'t> Source<'t> {
    fn place(self, offset: usize) -> Place {
        Place::new(self.path, self.text, offset)
    }

    fn error(self, offset: usize, message: &str) -> Error {
        self.place(offset).error(shorten(message.trim_end()).replace('\n', " "))
    }

    fn check(self, table: &Table, contradiction: Option<(Option<&'static str>, &'static str)>) -> Result<()> {
        let Some((field, message)) = contradiction else { return Ok(()) };
        let named = field.and_then(|field| Some((field, table.fields.get(field)?)));
        let message = match named {
            Some((field, _)) if !message.contains(field) => &format!("{field}: {message}"),
            _ => message,
        };
        Err(self.error(named.map_or(table.start, |(_, place)| *place), message))
    }

    /// Whether observers and roundings that tables name exist.
    fn check_methods(self, recipe: &Recipe, places: &Places) -> Result<()> {
        let at = |table: &Table, field: &str| *table.fields.get(field).unwrap_or(&table.start);
        let rules = recipe.rules.iter().zip(&places.rule).map(|(rule, table)| (table, rule.observer.as_ref(), rule.rounding.as_ref()));
        let defaults = (&places.default, Some(&recipe.settings.observer), Some(&recipe.settings.rounding));
        let activations = (&places.activations, Some(&recipe.activations.observer), None);
        for (table, observer, rounding) in rules.chain([defaults, activations]) {
            let observer = observer.map_or(Ok(()), |method| recipe.observers.choose(method).map(drop));
            observer.map_err(|e| self.error(at(table, "observer"), &e.to_string()))?;
            let rounding = rounding.map_or(Ok(()), |method| crate::algorithms::RoundingChoice::new(method).map(drop));
            rounding.map_err(|e| self.error(at(table, "rounding"), &e.to_string()))?;
        }
        Ok(())
    }

    fn toml(self) -> Result<(Recipe, Places)> {
        let recipe =
            toml::from_str(self.text).map_err(|e: toml::de::Error| self.toml_error(e.span().map_or(0, |span| span.start), e.message()))?;
        let places: TomlPlaces = toml::from_str(self.text).unwrap_or_default();
        Ok((recipe, places.into()))
    }

    /// What the parser says, with what was likely meant by a word without quotes, or a table in place of a list of them.
    fn toml_error(self, offset: usize, message: &str) -> Error {
        let rest = self.text.get(offset..).unwrap_or_default();
        let word = rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-_:.".contains(c))).next().unwrap_or_default();
        let is_word = word.starts_with(|c: char| c.is_ascii_alphabetic()) && !matches!(word, "true" | "false" | "inf" | "nan");
        if is_word && (message.starts_with("invalid float") || message.starts_with("invalid boolean")) {
            return self.error(offset, &format!("string values must be quoted: \"{word}\""));
        }
        match message.starts_with("invalid type: map, expected a sequence") {
            true => self.error(offset, "expected a list of tables, such as [[rule]], found one table, such as [rule]"),
            false => self.error(offset, &with_suggestion(message)),
        }
    }

    fn json(self) -> Result<(Recipe, Places)> {
        let wrong = |inner: &str, e: &serde_json::Error| {
            let message = e.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            self.error(self.offset(inner) + offset_of(inner, e.line(), e.column()), &with_suggestion(message))
        };
        // Of a sidecar, the part that is the recipe.
        let document: Sidecar<'_> = serde_json::from_str(self.text).map_err(|e| wrong(self.text, &e))?;
        let inner = match (document.format.as_deref() == Some(FORMAT), document.recipe) {
            (true, Some(recipe)) => recipe.get(),
            (true, None) => return Err(self.error(0, "expected a sidecar with a recipe, found one without")),
            (false, _) => self.text,
        };
        let recipe = serde_json::from_str(inner).map_err(|e| wrong(inner, &e))?;
        let places: JsonPlaces<'_> = serde_json::from_str(inner).unwrap_or_default();
        let table = |raw: &&RawValue| {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
            let fields = fields.into_iter().map(|(name, value)| (name, self.offset(value.get())));
            Table { start: self.offset(raw.get()), fields: fields.collect() }
        };
        let places = Places {
            activations: places.activations.as_ref().map(table).unwrap_or_default(),
            default: places.default.as_ref().map(table).unwrap_or_default(),
            exclude: places.exclude.map(|raw| self.offset(raw.get())),
            fake_quantizer: places.fake_quantizer.iter().map(table).collect(),
            layer: places.layer.iter().map(table).collect(),
            rule: places.rule.iter().map(table).collect(),
        };
        Ok((recipe, places))
    }

    /// Where a part of the text begins.
    fn offset(self, part: &str) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }
}

/// The byte at a line and a column as serde_json counts them: both from 1, columns in bytes, and after what it has read.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut offset = (before + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// A message of serde about an unknown word, with the known word that was likely meant. Serde writes `` unknown field `a`,
/// expected one of `b`, `c` `` and the same of variants.
fn with_suggestion(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    match words.next().filter(|_| is_unknown).and_then(|wanted| meant(wanted, words)) {
        Some(known) => format!("{message} (did you mean `{known}`?)"),
        None => message.to_owned(),
    }
}

#[derive(Deserialize)]
struct Sidecar<'t> {
    #[serde(default)]
    format: Option<String>,
    #[serde(borrow, default)]
    recipe: Option<&'t RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonPlaces<'t> {
    #[serde(borrow)]
    activations: Option<&'t RawValue>,
    #[serde(borrow)]
    default: Option<&'t RawValue>,
    #[serde(borrow)]
    exclude: Option<&'t RawValue>,
    #[serde(borrow)]
    fake_quantizer: Vec<&'t RawValue>,
    #[serde(borrow)]
    layer: Vec<&'t RawValue>,
    #[serde(borrow)]
    rule: Vec<&'t RawValue>,
}

type TomlTable = Spanned<BTreeMap<String, Spanned<toml::Value>>>;

#[derive(Default, Deserialize)]
#[serde(default)]
struct TomlPlaces {
    activations: Option<TomlTable>,
    default: Option<TomlTable>,
    exclude: Option<Spanned<toml::Value>>,
    fake_quantizer: Vec<TomlTable>,
    layer: Vec<TomlTable>,
    rule: Vec<TomlTable>,
}

impl From<TomlPlaces> for Places {
    fn from(places: TomlPlaces) -> Self {
        let table = |table: &TomlTable| {
            let fields = table.get_ref().iter().map(|(name, value)| (name.clone(), value.span().start));
            Table { start: table.span().start, fields: fields.collect() }
        };
        Places {
            activations: places.activations.as_ref().map(table).unwrap_or_default(),
            default: places.default.as_ref().map(table).unwrap_or_default(),
            exclude: places.exclude.map(|value| value.span().start),
            fake_quantizer: places.fake_quantizer.iter().map(table).collect(),
            layer: places.layer.iter().map(table).collect(),
            rule: places.rule.iter().map(table).collect(),
        }
    }
}
