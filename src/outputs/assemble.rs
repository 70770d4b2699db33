//! Puts the files of an output together and makes them appear: weights first, what goes with them, the sidecar last.

use super::document::FileRecord;
use super::staging::{self, StagedDir, StagedFile};
use super::target::Target;
use super::{FileLayout, OutputLayout, record};
use crate::error::Result;
use crate::model::Model;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Fills a file of weights as laid out, and returns the hash of its content.
pub(crate) type Fill<'f> = dyn FnMut(&File, &Path, &FileLayout) -> Result<blake3::Hash> + 'f;

/// What is put together, and where.
pub(crate) struct Assembly<'a> {
    pub target: &'a Target,
    /// What is checked for change before anything appears, and whose companions are carried over.
    pub model: &'a Model,
    pub layout: &'a OutputLayout,
    /// Looks at what was written before it appears; its error keeps it from that.
    pub check: Option<&'a Check<'a>>,
}

/// A look at what was written.
pub(crate) type Check<'c> = dyn Fn(&Staged) -> Result<()> + 'c;

/// An output that is written but has not appeared yet: its files under their names in a place of their own.
pub(crate) struct Staged {
    /// What readers of the output open: the directory, or the sidecar.
    pub root: PathBuf,
    /// The files of weights, in the order of the layout.
    pub weights: Vec<PathBuf>,
}

impl Assembly<'_> {
    /// Writes everything: `fill` writes each file of weights; `describe` makes the sidecar of the records of all files, if
    /// there is one.
    pub(crate) fn write(&self, fill: &mut Fill<'_>, describe: impl FnOnce(Vec<FileRecord>) -> Option<Vec<u8>>) -> Result<()> {
        let done = if self.target.is_directory { self.write_directory(fill, describe) } else { self.write_files(fill, describe) };
        done.map_err(|error| self.model.watch().explain(error))
    }

    fn write_files(&self, fill: &mut Fill<'_>, describe: impl FnOnce(Vec<FileRecord>) -> Option<Vec<u8>>) -> Result<()> {
        let Assembly { target, model, layout, check } = self;
        let (mut set, mut records) = (Vec::new(), Vec::new());
        for (i, weights) in layout.files.iter().enumerate() {
            let is_main = i + 1 == layout.files.len();
            let path = if is_main { target.output.clone() } else { target.check_beside(&weights.name, model)? };
            let staged = StagedFile::create(&path, weights.len)?;
            let mut record = filled(staged.file(), staged.path(), weights, fill)?;
            if is_main {
                record.name = target.name();
            }
            records.push(record);
            set.push(staged);
        }
        if let (Some(path), Some(text)) = (&target.sidecar, describe(records)) {
            let sidecar = StagedFile::create(path, text.len() as u64)?;
            record::write_all(sidecar.file(), sidecar.path(), &text)?;
            set.push(sidecar);
        }
        let _shown = check.map(|check| self.check_files(&mut set, check)).transpose()?;
        staging::sync_files(&set, target.durability)?;
        model.check_unchanged()?;
        if target.in_place {
            // If it ends between both, a sidecar without its weights is found by `verify`; the other way round the float
            // weights would be gone and the scales nowhere.
            set.reverse();
        }
        staging::publish_files(set, target.replace, target.durability)
    }

    /// Shows files under the names that they will have, in a directory of their own, which they leave when they appear.
    fn check_files(&self, set: &mut [StagedFile], check: &Check<'_>) -> Result<StagedDir> {
        let Assembly { target, layout, .. } = self;
        let shown = StagedDir::create(&target.output)?;
        let mut paths = Vec::new();
        for (i, staged) in set.iter_mut().enumerate() {
            let name = match layout.files.get(i) {
                Some(weights) if i + 1 < layout.files.len() => PathBuf::from(&weights.name),
                Some(_) => PathBuf::from(target.name()),
                None => target.sidecar.as_deref().and_then(Path::file_name).unwrap_or_default().into(),
            };
            let path = shown.building().join(name);
            staged.show(path.clone())?;
            paths.push(path);
        }
        let sidecar = paths.split_off(layout.files.len()).pop();
        check(&Staged { root: sidecar.unwrap_or_else(|| shown.building().to_owned()), weights: paths })?;
        Ok(shown)
    }

    fn write_directory(&self, fill: &mut Fill<'_>, describe: impl FnOnce(Vec<FileRecord>) -> Option<Vec<u8>>) -> Result<()> {
        let Assembly { target, model, layout, check } = self;
        let staged = StagedDir::create(&target.output)?;
        let dir = staged.building();
        let mut records = Vec::new();
        for weights in &layout.files {
            let path = dir.join(&weights.name);
            let file = staging::create_allocated(&path, weights.len)?;
            records.push(filled(&file, &path, weights, fill)?);
        }
        for (name, content) in &layout.documents {
            records.push(record::write_document(dir, name, content)?);
        }
        let sidecar_name = target.sidecar.as_deref().and_then(Path::file_name);
        for companion in model.companions() {
            let is_made = layout.documents.iter().any(|(name, _)| companion == Path::new(name));
            if companion != Path::new(super::document::DIRECTORY_SIDECAR) && !is_made {
                let copied = record::copy_companion(model.path(), dir, companion);
                // One that is gone, too, has changed.
                records.push(copied.map_err(|error| model.check_unchanged().err().unwrap_or(error))?);
            }
        }
        if let (Some(name), Some(text)) = (sidecar_name, describe(records)) {
            record::write_document(dir, &name.to_string_lossy(), &text)?;
        }
        if let Some(check) = check {
            let weights = layout.files.iter().map(|file| dir.join(&file.name)).collect();
            check(&Staged { root: dir.to_owned(), weights })?;
        }
        staging::sync_tree(dir, target.durability)?;
        model.check_unchanged()?;
        staged.publish(target.replace, target.durability)
    }
}

fn filled(file: &File, path: &Path, layout: &FileLayout, fill: &mut Fill<'_>) -> Result<FileRecord> {
    let hash = fill(file, path, layout)?;
    record::check_written(file, path, layout)?;
    Ok(FileRecord { blake3: Some(hash.to_hex().to_string()), bytes: layout.len, header_blake3: None, name: layout.name.clone() })
}
