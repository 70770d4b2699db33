//! Which files of a directory are samples.
//!
//! Files are known by their extensions here; other files beside them are common (labels, the model) and passed over,
//! which the caller can report. Subdirectories are not searched, except ONNX test data. Links that lead out of the
//! directory are refused: it may be unpacked from a stranger's archive. (The blob store of the Hugging Face cache counts
//! as inside.)

use super::{FORMATS, format_by_extension, pb};
use crate::error::{Error, Result, list_names, show_path};
use crate::formats::is_inside;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Most names that a message lists.
const LISTED: usize = 3;

/// What can be a sample, for messages.
pub(super) fn expected() -> String {
    let extensions: Vec<String> = FORMATS.iter().map(|format| format!(".{}", format.extension)).collect();
    format!("{}, or a directory with input_0.pb", extensions.join(", "))
}

/// Files and directories of test data at `paths`, and what was passed over.
pub(crate) fn expand(paths: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if metadata.is_dir() && !pb::is_test_data(path)? {
            list(path, &mut found, &mut skipped)?;
        } else {
            found.push(path.clone());
        }
    }
    Ok((found, skipped))
}

/// The names in a directory without hidden ones, in the order of their bytes.
pub(super) fn names(dir: &Path) -> Result<Vec<OsString>> {
    let io = |e| Error::io(dir, "list", e);
    let names: std::io::Result<Vec<OsString>> = std::fs::read_dir(dir).map_err(io)?.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names.map_err(io)?;
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    Ok(names)
}

fn list(dir: &Path, found: &mut Vec<PathBuf>, skipped: &mut Vec<PathBuf>) -> Result<()> {
    let names = names(dir)?;
    let before = found.len();
    for name in &names {
        let path = dir.join(name);
        let is_sample = match path.is_dir() {
            true => {
                // Nothing of a directory beyond a link is looked at.
                check_inside(dir, &path)?;
                pb::is_test_data(&path)?
            }
            false => format_by_extension(&path).is_some(),
        };
        if is_sample {
            check_inside(dir, &path)?;
            found.push(path);
        } else {
            skipped.push(path);
        }
    }
    if found.len() > before {
        return Ok(());
    }
    let only = match names.is_empty() {
        true => "an empty directory".to_owned(),
        false => format!("only {}", list_names(names.iter().map(|name| name.to_string_lossy()), LISTED)),
    };
    Err(Error::malformed(dir, format!("samples: expected {}, found no samples: {only}", expected())))
}

/// If `path`, which is in `dir`, is a link, it must stay there.
pub(super) fn check_inside(dir: &Path, path: &Path) -> Result<()> {
    if !path.is_symlink() {
        return Ok(());
    }
    let real = path.canonicalize().map_err(|e| Error::io(path, "open", e))?;
    if is_inside(dir, &real)? {
        return Ok(());
    }
    let found = format!("symbolic link: expected a target within the directory of samples, found {}", show_path(&real));
    Err(Error::malformed(path, found).with_hint("if you trust where it leads, name the file itself"))
}
