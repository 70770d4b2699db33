//! Whether an output is whole: its sidecar is valid, every file is there and unchanged, tensors fit their parameters.

use crate::compare::is_onnx;
use crate::error::{Error, Result, show_name};
use crate::formats::mmap::MappedFile;
use crate::formats::{self, ReadOptions};
use crate::model::Model;
use crate::outputs::document::{self, Document, FileRecord};
use crate::outputs::fake_quant;
use crate::outputs::quantized::{QuantizedModel, is_contained};
use crate::outputs::staging;
use crate::stream::Progress;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Bytes that are hashed between two reports of progress.
const STEP: usize = 4 << 20;

/// What [`verify`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The sidecar that was followed.
    pub sidecar: PathBuf,
    /// Files that are as the sidecar says.
    pub intact: Vec<String>,
    /// What is wrong, one line a finding; empty if the output is whole.
    pub findings: Vec<String>,
    /// What each finding is about: a file's name, `sidecar` or `output`.
    #[serde(skip)]
    pub about: Vec<String>,
}

/// What is wrong, and what it is about.
#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    about: Vec<String>,
}

impl Findings {
    fn push(&mut self, about: &str, line: String) {
        self.about.push(about.to_owned());
        self.lines.push(line);
    }
}

impl Verification {
    /// Whether the output is whole.
    ///
    /// # Errors
    ///
    /// [`Error::Check`] with the first finding if it is not.
    pub fn check(&self) -> Result<()> {
        match self.findings.first() {
            Some(first) => Err(Error::Check(format!("output is not whole: {first}"))),
            None => Ok(()),
        }
    }
}

/// Checks the output given as its sidecar, its file of weights or its directory.
///
/// # Errors
///
/// [`Error::Io`] if there is no sidecar, or if it or a file is there and cannot be read, as nothing is known of it then;
/// [`Error::Malformed`] if it is not a sidecar; [`Error::Limit`] if a file is beyond `read`. What is wrong with the files, or that one is missing, is no error but a finding.
pub fn verify(output: &Path, read: &ReadOptions, progress: &dyn Progress) -> Result<Verification> {
    let sidecar = document::find(output, read)?;
    let (document, is_unchanged) = Document::read_checked(&sidecar)?;
    let dir = staging::parent(&sidecar);
    progress.begin(document.output.files.iter().map(|record| record.bytes).fold(0, u64::saturating_add));
    let (mut intact, mut findings) = (Vec::new(), Findings::default());
    if !is_unchanged {
        // First, as whatever else is found may come from it.
        let message = "sidecar: expected text of the BLAKE3 that it holds, found it changed";
        findings.push("sidecar", format!("{}: {message}", show(&sidecar)));
    }
    for record in &document.output.files {
        // The file that was asked for may lie anywhere.
        let is_given = output != sidecar && output.file_name().is_some_and(|name| name == record.name.as_str());
        match check_file(dir, record, &ReadOptions { follow_symlinks: read.follow_symlinks || is_given, ..*read }, progress) {
            Ok(None) => intact.push(record.name.clone()),
            Ok(Some(finding)) => findings.push(&record.name, finding),
            Err(error) if is_answer(&error) => findings.push(&record.name, finding_of(&record.name, error)),
            Err(error) => return Err(error),
        }
    }
    let weights = output != sidecar && output.is_file();
    if weights && !document.output.files.iter().any(|record| output.file_name().is_some_and(|name| name == record.name.as_str())) {
        findings.push("output", format!("{}: expected to be a file of the sidecar's output, found no record of it", show(output)));
    }
    let recorded: BTreeSet<&str> = document.output.files.iter().map(|record| record.name.as_str()).collect();
    if recorded.len() != document.output.files.len() {
        findings.push("sidecar", "sidecar: expected one record a file, found several of the same name".to_owned());
    }
    if findings.lines.is_empty() {
        match open_members(output, dir, &document, read) {
            Err(error) if is_answer(&error) => findings.push("output", error.to_string()),
            Err(error) => return Err(error),
            Ok(model) => {
                for file in model.files().iter().filter(|file| !recorded.contains(&*file.name())) {
                    findings.push(&file.name(), format!("{}: expected a record in the sidecar, found none", show_name(&file.name())));
                }
            }
        }
    }
    Ok(Verification { sidecar, intact, findings: findings.lines, about: findings.about })
}

/// Reads what was written as its readers will: ONNX models by themselves, checkpoints with their sidecar.
fn open_members(output: &Path, dir: &Path, document: &Document, read: &ReadOptions) -> Result<Model> {
    // The model comes last, after the values that it refers to.
    let main = document.output.files.last().map(|main| dir.join(&main.name));
    let is_onnx = |main: &PathBuf| match document.output.form.as_str() {
        "qdq" | "qoperator" => true,
        fake_quant::NAME => is_onnx(main, read).unwrap_or(false),
        _ => false,
    };
    match main.filter(is_onnx) {
        Some(main) => formats::open(&main, read),
        None => QuantizedModel::open(output, read).map(|quantized| quantized.model),
    }
}

/// What is wrong with the file of `record`, if anything is.
fn check_file(dir: &Path, record: &FileRecord, read: &ReadOptions, progress: &dyn Progress) -> Result<Option<String>> {
    let name = show_name(&record.name);
    let wrong = |message: String| Ok(Some(format!("{name}: expected {message}")));
    if !is_contained(&record.name) {
        return wrong("a name within the sidecar's directory, found one that leads elsewhere".into());
    }
    let Some(expected) = &record.blake3 else {
        return wrong("a BLAKE3 hash in the sidecar, found none".into());
    };
    let file = MappedFile::open(&formats::contained(dir, &record.name, read)?)?;
    if file.bytes().len() as u64 != record.bytes {
        return wrong(format!("{} bytes, found {}", record.bytes, file.bytes().len()));
    }
    let mut hasher = blake3::Hasher::new();
    for piece in file.bytes().chunks(STEP) {
        hasher.update(piece);
        progress.advance(piece.len() as u64);
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() != expected {
        return wrong(format!("content of BLAKE3 {expected}, found {found}"));
    }
    Ok(None)
}

/// Whether `error` tells what the output is like: that a file is missing does, that the system would not read it does not.
fn is_answer(error: &Error) -> bool {
    use ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    match error {
        Error::Io { source, .. } => matches!(source.kind(), NotFound | NotADirectory | InvalidFilename | InvalidInput),
        Error::Hinted { error, .. } => is_answer(error),
        Error::Changed { .. } | Error::Limit { .. } => false,
        _ => true,
    }
}

fn finding_of(name: &str, error: Error) -> String {
    match error {
        Error::Io { source, .. } => format!("{}: expected the file beside the sidecar, found {source}", show_name(name)),
        other => other.to_string(),
    }
}

fn show(path: &Path) -> String {
    crate::error::show_path(path).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_does_not_read_is_not_called_damaged() {
        let io = |kind: ErrorKind| Error::io(Path::new("m"), "open", std::io::Error::from(kind));
        assert!(is_answer(&io(ErrorKind::NotFound).with_hint("look elsewhere")));
        assert!(is_answer(&Error::malformed(Path::new("m"), "header: expected JSON")));
        for kind in [ErrorKind::OutOfMemory, ErrorKind::PermissionDenied, ErrorKind::Other] {
            assert!(!is_answer(&io(kind)) && !is_answer(&io(kind).with_hint("try again")), "{kind:?}");
        }
    }
}
