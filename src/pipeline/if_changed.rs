//! Whether a run would write what is there already: `quantize --if-changed`.
//!
//! A run with this option records, besides the hashes that every sidecar has, what it was asked for ([`RequestRecord`]). A later one
//! does nothing if all of it is as before: the model, the files beside it that are carried over, samples, statistics and ranges, all by
//! content; the recipe with all options that bear on the output or on gates, before anything was found by measuring; the version of
//! the program; and if the output is whole, as `verify` has it. Times and sizes of files are not trusted.
//!
//! What is not looked at: whether the sidecar itself was edited, and the content of pages and recipes that were written besides. An
//! observer of one's own may answer otherwise every time, so that with one a run is never left out.

use super::{HashSource, Request, form_of};
use crate::calibration::engine;
use crate::calibration::samples::{Drawn, list_files};
use crate::error::{Error, Result, show_path};
use crate::formats;
use crate::formats::mmap::MappedFile;
use crate::gates::Gates;
use crate::model::{Layout, Model};
use crate::outputs::document::{Document, FileRecord, RequestRecord};
use crate::outputs::record;
use crate::outputs::target;
use crate::recipe::Recipe;
use crate::stream::Progress;
use crate::verify;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A run that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Unchanged {
    /// Main output.
    pub output: PathBuf,
    /// Its sidecar.
    pub sidecar: PathBuf,
    /// What the model was judged by: `content`, or `header` if [`HashSource::Header`] was asked for, with which other values of the same
    /// names, types and shapes go unnoticed.
    pub source: &'static str,
    /// Always true.
    pub unchanged: bool,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Nothing.
    Unchanged(Unchanged),
    /// The run, and why.
    Changed(String),
}

/// Looks whether the run is needed, and prepares `request` for it if so: what it asks for is recorded, the content of the model is
/// hashed unless only its header is to be, and an output that its sidecar knows may be replaced.
///
/// # Errors
///
/// As [`formats::open`]; [`Error::Io`] if samples or other inputs cannot be read.
pub fn look(request: &mut Request, progress: &dyn Progress) -> Result<Verdict> {
    if request.hash_source == HashSource::Auto {
        request.hash_source = HashSource::Always;
    }
    let model = formats::open(&request.model, &request.read)?;
    let form = form_of(&model, request);
    let mut recipe = request.recipe.clone();
    form.adapt(&mut recipe);
    let (output, sidecar) = target::paths(&request.destination, &model, &form.tag(recipe.settings.weights))?;
    let asked = asked_for(&model, request)?;
    request.record = Some(asked.clone());
    let changed = |what: String| Ok(Verdict::Changed(what));
    if !Document::recognizes(&sidecar) {
        return changed("there is no output yet".into());
    }
    let document = match Document::read(&sidecar) {
        Ok(document) => document,
        Err(error) => return changed(format!("the sidecar cannot be read: {error}")),
    };
    let name = output.file_name().unwrap_or_default();
    let is_directory = matches!(model.layout(), Layout::Directory { .. });
    if !is_directory && document.output.files.last().is_none_or(|main| name != main.name.as_str()) {
        return changed("the sidecar is that of another output".into());
    }
    // It is an output of this program, and the sidecar says which files are.
    request.replaces_output = true;
    if let Some(difference) = difference(&model, request, &document, &asked) {
        return changed(difference);
    }
    if let Some(missing) = [&request.emit_recipe, &request.page].into_iter().flatten().find(|path| !path.is_file()) {
        return changed(format!("{} is not there", show_path(missing)));
    }
    let found = verify::verify(if is_directory { &output } else { &sidecar }, &request.read, progress)?;
    match found.findings.first() {
        Some(finding) => changed(format!("the output is not whole: {finding}")),
        None => {
            let source = if request.hash_source == HashSource::Header { "header" } else { "content" };
            Ok(Verdict::Unchanged(Unchanged { output, sidecar, source, unchanged: true }))
        }
    }
}

/// The first thing that is not as `document` has it, but for the output itself.
fn difference(model: &Model, request: &Request, document: &Document, asked: &RequestRecord) -> Option<String> {
    let version = env!("CARGO_PKG_VERSION");
    if document.qtool_version != version {
        return Some(format!("the output is of qtool {}, and this is {version}", document.qtool_version));
    }
    let Some(recorded) = &document.request else {
        return Some("the output was written without --if-changed, so that it is not known what was asked for".into());
    };
    if !request.recipe.observers.is_empty() {
        return Some("the recipe has observers of its own, which may answer otherwise".into());
    }
    let parts = [
        (recorded.options == asked.options, "the recipe or an option"),
        (recorded.samples == asked.samples, "the samples"),
        (recorded.statistics == asked.statistics, "the statistics"),
        (recorded.ranges == asked.ranges, "the file of ranges"),
        (recorded.companions == asked.companions, "a file that goes with the model"),
    ];
    if let Some((_, what)) = parts.into_iter().find(|(is_same, _)| !is_same) {
        return Some(format!("{what} changed"));
    }
    let by_header = request.hash_source == HashSource::Header;
    let found: Vec<FileRecord> = model.files().iter().map(|file| record::source(file, !by_header)).collect();
    let recorded = &document.source.files;
    if !by_header && recorded.iter().any(|file| file.blake3.is_none()) {
        return Some("the sidecar has only the hash of the model's header, which does not tell its values".into());
    }
    let is_same = |(found, recorded): (&FileRecord, &FileRecord)| {
        let by_content = by_header || found.blake3 == recorded.blake3;
        by_content && found.name == recorded.name && found.bytes == recorded.bytes && found.header_blake3 == recorded.header_blake3
    };
    let is_same = found.len() == recorded.len() && found.iter().zip(recorded).all(is_same);
    (!is_same).then(|| "the model changed".to_owned())
}

/// What a request asks for, before the run.
fn asked_for(model: &Model, request: &Request) -> Result<RequestRecord> {
    let Request { recipe, form, recorded_form, calibration, max_memory, seed, max_drop, gates, lint, .. } = request;
    // All that bears on the bytes of the output, or on whether it is written, and is no file.
    #[derive(Serialize)]
    struct Options<'a> {
        recipe: &'a Recipe,
        form: Option<&'a str>,
        recorded_form: Option<&'a str>,
        seed: u64,
        max_drop: Option<f64>,
        max_memory: u64,
        gates: &'a Gates,
        lint: Option<&'a str>,
        synthetic: Option<&'a Drawn>,
        limit: Option<usize>,
        part: Option<(usize, usize)>,
        max_sample_bytes: u64,
        ignore_unused: bool,
        engine: String,
    }
    let options = Options {
        recipe,
        form: form.map(|form| form.name()),
        recorded_form: recorded_form.map(|form| form.name()),
        seed: *seed,
        max_drop: *max_drop,
        max_memory: *max_memory,
        gates,
        lint: *lint,
        synthetic: calibration.samples.drawn(),
        limit: calibration.limit,
        part: calibration.part,
        max_sample_bytes: calibration.limits.max_sample_bytes,
        ignore_unused: calibration.ignore_unused,
        engine: engine::identity(calibration.engine)?,
    };
    let text = serde_json::to_vec(&options).expect("options have string keys only");
    let (samples, _) = list_files(calibration.samples.files())?;
    let companions: Vec<PathBuf> = model.companions().iter().map(|companion| model.path().join(companion)).collect();
    let ranges: Vec<PathBuf> = calibration.ranges.iter().cloned().collect();
    Ok(RequestRecord {
        companions: hash_files(&companions)?,
        options: blake3::hash(&text).to_hex().to_string(),
        ranges: hash_files(&ranges)?,
        samples: hash_files(&samples)?,
        statistics: hash_files(&calibration.stats)?,
    })
}

/// A hash of names (without directories), lengths and contents, in order; what is in a directory counts in the order of names. `None`
/// without files.
fn hash_files(paths: &[PathBuf]) -> Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        update(&mut hasher, path, 0)?;
    }
    Ok((!paths.is_empty()).then(|| hasher.finalize().to_hex().to_string()))
}

/// Directories of samples are no deeper.
const DEEPEST: usize = 4;

fn update(hasher: &mut blake3::Hasher, path: &Path, depth: usize) -> Result<()> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
    if path.is_dir() && depth < DEEPEST {
        let io = |e| Error::io(path, "list", e);
        let entries = std::fs::read_dir(path).map_err(io)?.map(|entry| entry.map(|entry| entry.path()));
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(io)?;
        entries.sort();
        hasher.update(b"directory").update(&(entries.len() as u64).to_le_bytes());
        return entries.iter().try_for_each(|entry| update(hasher, entry, depth + 1));
    }
    let file = MappedFile::open(path)?;
    hasher.update(b"file").update(&(file.bytes().len() as u64).to_le_bytes()).update(file.bytes());
    Ok(())
}
