//! Ranges of activations from files of other tools, which calibrated the float model.
//!
//! A file says of each value that it names from where to where it goes. Nothing is observed, so nothing of the observers is needed:
//! scales and zero points follow from these ranges as from any others. A new format is a file with a [`TableFormat`], its `mod` line
//! and its entry in [`FORMATS`]; `docs/ranges.md` describes those that there are.

mod ort;
mod tensorrt;

use crate::error::{Error, Result, escape, list_names, show_name};
use crate::formats::mmap::MappedFile;
use crate::formats::onnx::proto::ModelProto;
use crate::formats::shorten;
use crate::graph::scopes::scopes;
use crate::outputs::document::FileRecord;
use crate::quant::params::Range;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// What the sidecar says of ranges that come from a file, in the place of an observer.
pub(crate) const GIVEN: &str = "given";

/// Longest file that is read, in bytes: calibrators keep histograms in it too.
const MAX_BYTES: u64 = 256 << 20;

/// Most names that a note lists.
const LISTED: usize = 4;

/// A format of such files.
struct TableFormat {
    /// What it is, for messages.
    name: &'static str,
    /// Whether a file that begins like this is one.
    recognizes: fn(&str) -> bool,
    /// Its entries in order; or what is wrong, with the place.
    read: fn(&str) -> Result<Vec<Entry>, String>,
}

/// Every format.
const FORMATS: &[&TableFormat] = &[&tensorrt::FORMAT, &ort::FORMAT];

/// One range as it is read.
struct Entry {
    /// Where it is, for messages.
    place: String,
    name: String,
    lowest: f64,
    highest: f64,
    /// The scale of symmetric codes of eight bits, where the file has that.
    scale: Option<f32>,
}

/// What a file says of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Given {
    /// From where to where it goes.
    pub range: Range,
    /// The scale of symmetric codes from -127 to 127, where the file has that.
    pub scale: Option<f32>,
}

/// The ranges of a file, by the name of the value.
pub(crate) struct RangeTable {
    path: PathBuf,
    bytes: u64,
    blake3: blake3::Hash,
    entries: BTreeMap<String, Given>,
}

impl RangeTable {
    /// Reads a file of one of [`FORMATS`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be read, [`Error::Limit`] if it is too long, [`Error::Malformed`] with line or entry if it is of no
    /// known format, names a value twice or has a range that is none.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let found = file.bytes().len() as u64;
        if found > MAX_BYTES {
            return Err(Error::Limit { file: path.to_owned(), what: "bytes of ranges".into(), limit: MAX_BYTES, found });
        }
        let malformed = |message: String| Error::malformed(path, format!("ranges: {message}"));
        let text = std::str::from_utf8(file.bytes())
            .map_err(|e| malformed(format!("expected text in UTF-8, found other bytes from {} on", e.valid_up_to())))?;
        let entries = match FORMATS.iter().find(|format| (format.recognizes)(text)) {
            Some(format) => (format.read)(text).map_err(|message| malformed(format!("{}: {message}", format.name)))?,
            None => {
                let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
                let start: String = text.lines().next().unwrap_or_default().chars().take(40).collect();
                let error = malformed(format!("expected {}, found {:?}", names.join(" or "), shorten(&start)));
                return Err(
                    error.with_hint("of what ONNX Runtime's write_calibration_table leaves, calibration.json has both ends of ranges")
                );
            }
        };
        let entries = collect(entries).map_err(malformed)?;
        Ok(RangeTable { path: path.to_owned(), bytes: found, blake3: blake3::hash(file.bytes()), entries })
    }

    /// Where it was read.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The range of a value.
    pub(crate) fn get(&self, name: &str) -> Option<&Given> {
        self.entries.get(name)
    }

    /// What a sidecar records of it.
    pub(crate) fn record(&self) -> FileRecord {
        FileRecord {
            blake3: Some(self.blake3.to_hex().to_string()),
            bytes: self.bytes,
            header_blake3: None,
            name: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// A note about names that are of no value of `model`, if there are some.
    pub(crate) fn note_unknown(&self, model: &ModelProto) -> Option<String> {
        let scopes = scopes(model);
        let mut known: HashSet<&str> = HashSet::new();
        for graph in scopes.iter().map(|scope| scope.graph) {
            known.extend(graph.input.iter().map(|value| value.name.as_str()));
            known.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
            known.extend(graph.node.iter().flat_map(|node| &node.output).map(String::as_str));
        }
        let unknown: Vec<&String> = self.entries.keys().filter(|name| !known.contains(name.as_str())).collect();
        let (file, listed) = (self.record().name, || list_names(&unknown, LISTED));
        (!unknown.is_empty()).then(|| format!("{}: the model has no values of these names: {}", escape(&file), listed()))
    }
}

/// Checks entries, and puts them by name.
fn collect(entries: Vec<Entry>) -> Result<BTreeMap<String, Given>, String> {
    let mut found = BTreeMap::new();
    if entries.is_empty() {
        return Err("expected one range or more, found none".into());
    }
    for Entry { place, name, lowest, highest, scale } in entries {
        let range = Range { min: lowest as f32, max: highest as f32 };
        if !(range.min.is_finite() && range.max.is_finite()) {
            return Err(format!("{place}: expected a range of finite f32 numbers, found {lowest} to {highest}"));
        }
        if range.min > range.max {
            return Err(format!("{place}: expected a smallest value that is not above the largest, found {lowest} and {highest}"));
        }
        if found.contains_key(&name) {
            return Err(format!("{place}: expected one range a value, found a second for {}", show_name(&name)));
        }
        found.insert(name, Given { range, scale });
    }
    Ok(found)
}
