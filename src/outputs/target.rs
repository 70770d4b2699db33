//! Where outputs go, decided and checked before any work: nothing is replaced or mixed up by surprise.

use super::document::{DIRECTORY_SIDECAR, Document, sidecar_path};
use super::staging::{self, Durability};
use crate::error::{Error, Result, show_path};
use crate::formats::mmap::MappedFile;
use crate::model::{Layout, Model};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the user says about where outputs go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The main output. Default: beside the model, with a name of its own.
    pub output: Option<PathBuf>,
    /// The sidecar. Default: beside the output.
    pub sidecar: Option<PathBuf>,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Whether the output may be the input.
    pub in_place: bool,
    /// Whether outputs are made to last before success is reported.
    pub durability: Durability,
}

impl Default for Destination {
    /// Beside the model, replacing nothing, synced to the disk.
    fn default() -> Self {
        Destination { output: None, sidecar: None, force: false, in_place: false, durability: Durability::Fsync }
    }
}

/// Where outputs will go.
pub(crate) struct Target {
    pub output: PathBuf,
    /// `None` for outputs that have none.
    pub sidecar: Option<PathBuf>,
    pub is_directory: bool,
    pub replace: bool,
    pub in_place: bool,
    pub durability: Durability,
}

impl Target {
    /// Names the outputs made from `model`: `model.safetensors` → `model.TAG.safetensors`, `DIR` → `DIR-TAG`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if an output exists, is the input or is of the wrong kind; [`Error::Io`] if its directory cannot
    /// be written to.
    pub(crate) fn choose(destination: &Destination, model: &Model, tag: &str, with_sidecar: bool) -> Result<Self> {
        let is_directory = matches!(model.layout(), Layout::Directory { .. });
        let (output, sidecar) = paths(destination, model, tag)?;
        let sidecar = Some(sidecar).filter(|_| with_sidecar);
        if destination.in_place && !same_file(&output, model.path()) {
            return Err(Error::Usage(format!("--in-place: expected the output to be the input, found {}", show_path(&output))));
        }
        let lost = model.left_behind().first().filter(|_| destination.in_place && is_directory);
        if let Some(lost) = lost {
            let message = format!("{}: --in-place: expected only files of the model, found {}", show_path(model.path()), show_path(lost));
            return Err(Error::Usage(message).with_hint("it would be lost: -o writes elsewhere"));
        }
        let (replace, durability) = (destination.force || destination.in_place, destination.durability);
        let target = Target { output, sidecar, is_directory, replace, in_place: destination.in_place, durability };
        target.check(model.path(), destination.in_place)?;
        target.spare_inputs(model)?;
        target.check_kind(model)?;
        Ok(target)
    }

    /// Makes sure that the output's name does not promise another format than it has: it could not be read again.
    fn check_kind(&self, model: &Model) -> Result<()> {
        let (own, other) = if model.onnx().is_some() { ("onnx", "safetensors") } else { ("safetensors", "onnx") };
        if self.is_directory || self.output.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case(other)) {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "{}: output: expected a name for what this model becomes, .{own}, found .{other}",
            show_path(&self.output)
        )))
    }

    /// Makes sure that the file of `option` takes the place of no output, and of none of `others`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it would.
    pub(crate) fn check_apart(&self, option: &str, path: &Path, others: &[PathBuf]) -> Result<()> {
        let resolved = staging::resolve(path);
        let mut outputs = std::iter::once(&self.output).chain(&self.sidecar).chain(others);
        match outputs.any(|output| staging::resolve(output) == resolved) {
            true => Err(Error::Usage(format!("{}: {option}: expected another file than the outputs, found one of them", show_path(path)))),
            false => Ok(()),
        }
    }

    /// Makes sure that no output replaces one of `inputs`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if one would.
    pub(crate) fn spare(&self, inputs: &[impl AsRef<Path>]) -> Result<()> {
        self.appearing().try_for_each(|output| spare(output, inputs))
    }

    /// Whether `path` is the sidecar that an earlier run wrote with the output, and this run writes again.
    pub(crate) fn replaces_sidecar(&self, path: &Path) -> bool {
        self.sidecar.as_ref().is_some_and(|sidecar| same_file(sidecar, path)) && Document::recognizes(path)
    }

    /// Makes sure that no output replaces a file that the model refers to.
    fn spare_inputs(&self, model: &Model) -> Result<()> {
        let inputs = || model.files().iter().map(crate::model::SourceFile::path);
        if self.in_place && model.onnx().is_some() && model.files().len() > 1 {
            let message = "--in-place: expected a model in one file, found one with values in others";
            return Err(Error::Usage(format!("{}: {message}", show_path(model.path()))).with_hint("-o writes elsewhere"));
        }
        match self.appearing().find(|path| inputs().any(|input| input != model.path() && same_file(path, input))) {
            None => Ok(()),
            Some(taken) => Err(Error::Usage(format!("{}: output: expected another file than the model's, found one", show_path(taken)))),
        }
    }

    /// The name of the main output.
    pub(crate) fn name(&self) -> String {
        self.output.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Makes sure that `bytes` bytes are free where the output goes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if they are not.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<()> {
        check_space(staging::parent(&self.output), bytes)
    }

    /// Makes sure that a file which goes beside the output is not in the way of anything.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it exists, unless outputs are replaced.
    pub(crate) fn check_beside(&self, name: &str, model: &Model) -> Result<PathBuf> {
        let path = self.output.with_file_name(name);
        if model.files().iter().any(|input| same_file(&path, input.path())) {
            let message = "values of the output: expected another file than the model's, found one";
            return Err(Error::Usage(format!("{}: {message}", show_path(&path))).with_hint("-o gives the output another name"));
        }
        if !self.replace && path.symlink_metadata().is_ok() {
            return Err(staging::already_exists(&path));
        }
        if Some(&path) == self.sidecar.as_ref() || path.is_dir() {
            return Err(Error::Usage(format!("{}: values of the output: expected a free name, found another file's", show_path(&path))));
        }
        Ok(path)
    }

    /// Every path that will appear beside others: a directory's sidecar is within it.
    fn appearing(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.output).chain(self.sidecar.as_ref().filter(|_| !self.is_directory))
    }

    /// `--force` replaces what an earlier run may have written, not what merely has the name: a directory that holds a
    /// sidecar of ours or nothing, as a sidecar only a sidecar, and as another file no JSON text but ours.
    fn check_replaceable(&self, path: &Path) -> Result<()> {
        let is_sidecar = |path: &Path| if path.exists() { Document::try_recognize(path) } else { Ok(false) };
        let (expected, fine) = if path.is_dir() {
            let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            ("an output of qtool or an empty directory", is_empty || is_sidecar(&path.join(DIRECTORY_SIDECAR))?)
        } else if Some(path) == self.sidecar.as_deref() && path.is_file() {
            ("a sidecar of qtool", is_sidecar(path)?)
        } else {
            ("a file of a model, not JSON text", !path.is_file() || !is_json(path)? || is_sidecar(path)?)
        };
        if Some(path) == self.sidecar.as_deref() && self.is_of_another(path) {
            let message = "sidecar: expected one of this output to replace, found one of another, which would be lost";
            return Err(Error::Usage(format!("{}: {message}", show_path(path))).with_hint("--sidecar or -o gives this one another name"));
        }
        if let Some(stray) = of_somebody_else(path) {
            let message = format!("{}: output: expected only files that its sidecar lists, found {}", show_path(path), show_path(&stray));
            return Err(Error::Usage(message).with_hint("it would be lost: move it elsewhere, or -o writes elsewhere"));
        }
        match fine {
            true => Ok(()),
            false => Err(staging::not_replaceable(path, "output", expected, "-o writes elsewhere; if it can go, remove it first")),
        }
    }

    /// Whether the sidecar at `path` is of an output which is there and is not replaced.
    fn is_of_another(&self, path: &Path) -> bool {
        let Some(document) = (!self.is_directory).then(|| Document::read(path).ok()).flatten() else { return false };
        let (files, name) = (&document.output.files, self.name());
        files.iter().all(|file| file.name != name) && files.iter().any(|file| path.with_file_name(&file.name).exists())
    }

    fn check(&self, input: &Path, in_place: bool) -> Result<()> {
        let usage = |path: &Path, message: &str| Err(Error::Usage(format!("{}: {message}", show_path(path))));
        for path in self.appearing() {
            if path.file_name().is_none() {
                return usage(path, "output: expected a file name");
            }
            if self.sidecar.is_some() && path.file_name().and_then(std::ffi::OsStr::to_str).is_none() {
                return usage(path, "output: expected a name in UTF-8, as the sidecar records it, found another (-o gives one)");
            }
            match path.metadata() {
                Ok(found) if found.is_dir() && !self.is_directory => {
                    return usage(path, "output: expected a file for a file, found a directory");
                }
                Ok(found) if found.is_file() && self.is_directory => {
                    return usage(path, "output: expected a directory for a directory, found a file");
                }
                Ok(found) if !found.is_dir() && !found.is_file() => {
                    return usage(path, "output: expected a regular file, found a device or a FIFO");
                }
                _ => {}
            }
            let dir = staging::parent(path);
            match dir.metadata() {
                Err(e) => return Err(Error::io(dir, "open output directory", e)),
                Ok(found) if !found.is_dir() => return usage(dir, "output directory: expected a directory"),
                Ok(_) => {
                    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).map_err(|e| Error::io(dir, "write to output directory", e))?
                }
            }
        }
        if self.output.as_os_str() == "-" {
            return usage(&self.output, "output: expected a file name, as standard output is not supported, found -");
        }
        if contains(&self.output, input) {
            return usage(&self.output, "output: expected a place that the input is not in, found a directory above it");
        }
        for existing in self.appearing().filter(|path| self.replace && !same_file(path, input)) {
            self.check_replaceable(existing)?;
        }
        if same_file(&self.output, input) && !in_place {
            return usage(&self.output, "output: expected another file than the input, found the input (quantize --in-place allows it)");
        }
        if let Some(sidecar) = self.sidecar.as_ref().filter(|_| !self.is_directory) {
            if same_file(sidecar, input) || staging::resolve(sidecar) == staging::resolve(&self.output) {
                return usage(sidecar, "sidecar: expected another file than the weights, found the same");
            }
            let dir = |path: &Path| staging::parent(path).canonicalize().ok();
            if dir(sidecar) != dir(&self.output) {
                return usage(sidecar, "sidecar: expected a file beside the output, found another directory");
            }
        }
        match self.appearing().find(|path| !self.replace && path.symlink_metadata().is_ok()) {
            Some(existing) => Err(staging::already_exists(existing)),
            None => Ok(()),
        }
    }
}

/// The output and its sidecar, as they are asked for or by default; nothing is checked of what is there.
///
/// # Errors
///
/// [`Error::Usage`] if a sidecar is named for a directory.
pub(crate) fn paths(destination: &Destination, model: &Model, tag: &str) -> Result<(PathBuf, PathBuf)> {
    let default = if destination.in_place { model.path().to_owned() } else { default_output(model, tag) };
    let output = destination.output.clone().unwrap_or(default);
    let sidecar = match (&destination.sidecar, matches!(model.layout(), Layout::Directory { .. })) {
        (Some(_), true) => {
            return Err(Error::Usage("--sidecar: expected a model file, found a directory, whose sidecar is within it".into()));
        }
        (None, true) => output.join(DIRECTORY_SIDECAR),
        (Some(sidecar), false) => sidecar.clone(),
        (None, false) => sidecar_path(&output),
    };
    Ok((output, sidecar))
}

/// Deepest that directories of outputs nest: those that go with a model.
const DEEPEST: usize = 16;

/// A file in the output directory `dir` that its sidecar does not list, so that somebody else put it there.
fn of_somebody_else(dir: &Path) -> Option<PathBuf> {
    let sidecar = dir.join(DIRECTORY_SIDECAR);
    let document = Document::read(&sidecar).ok().filter(|_| dir.is_dir())?;
    let listed: BTreeSet<PathBuf> = document.output.files.iter().map(|file| dir.join(&file.name)).chain([sidecar]).collect();
    let mut directories = vec![(dir.to_owned(), 0)];
    while let Some((inner, depth)) = directories.pop() {
        for entry in inner.read_dir().ok()?.flatten() {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && depth < DEEPEST {
                directories.push((path, depth + 1));
            } else if !listed.contains(&path) {
                return Some(path);
            }
        }
    }
    None
}

/// Whether the file at `path` begins as JSON documents do.
fn is_json(path: &Path) -> Result<bool> {
    let file = MappedFile::open(path)?;
    Ok(file.bytes().iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'{' | b'[')))
}

/// Makes sure that `output` is none of `inputs`.
///
/// # Errors
///
/// [`Error::Usage`] if it is.
pub(crate) fn spare(output: &Path, inputs: &[impl AsRef<Path>]) -> Result<()> {
    match inputs.iter().map(AsRef::as_ref).any(|input| same_file(output, input) || output.is_dir() && contains(output, input)) {
        true => {
            let found = format!("{}: output: expected another file than those that are read, found one of them", show_path(output));
            Err(Error::Usage(found).with_hint("another name writes elsewhere"))
        }
        false => Ok(()),
    }
}

/// Whether `dir` is a directory somewhere above `path`.
fn contains(dir: &Path, path: &Path) -> bool {
    match (dir.canonicalize(), path.canonicalize()) {
        (Ok(dir), Ok(path)) => path != dir && path.starts_with(dir),
        _ => false,
    }
}

fn default_output(model: &Model, tag: &str) -> PathBuf {
    let path = model.path();
    if let Layout::Directory { .. } = model.layout() {
        // `.` and `..` have no name of their own to append to.
        let named = if path.file_name().is_some() { path.to_owned() } else { path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
        let mut name = named.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{tag}"));
        return named.with_file_name(name);
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{tag}.{}", if model.onnx().is_some() { "onnx" } else { "safetensors" }));
    path.with_file_name(name)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn check_space(dir: &Path, bytes: u64) -> Result<()> {
    let Ok(stat) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    let full =
        std::io::Error::new(std::io::ErrorKind::StorageFull, format!("no space left on device: expected {bytes} bytes free, found {free}"));
    Err(Error::io(dir, "allocate", full))
}
