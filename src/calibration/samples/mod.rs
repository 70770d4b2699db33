//! Samples: what a model is fed with during calibration, read from files one at a time.
//!
//! | file | samples | how arrays find their inputs |
//! |---|---|---|
//! | `.npz` | one | keys are the inputs' names |
//! | `.npy` | as many as the first axis counts, if it has one axis more than the input; else one | the model has one input |
//! | `.safetensors` | one, or one for each INDEX of tensors named `INDEX.NAME` | names are the inputs' names |
//! | `.pb` | one (TensorProto) | its name if that is an input's, else the model has one input |
//! | directory with `input_N.pb` | one (ONNX test data) | its name if that is an input's, else the N-th input |
//! | directory of these | all of them, in the order of the bytes of their names | |
//!
//! [`Samples::open`] checks names, types and dimensions of every sample and keeps where it is; [`Samples::load`] reads
//! its values. A new format is a file that implements `SampleFile`, its `mod` line and its entry in `FORMATS`.

mod decode;
pub(crate) mod drawn;
mod listing;
mod npy;
mod npz;
mod pb;
mod safetensors;
mod signature;
mod zip;

use super::array::Array;
use crate::error::{Error, Result, show_path};
use crate::formats::mmap::MappedFile;
use crate::limits::raised_by;
use decode::Stored;
use signature::check_array;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use listing::expand as list_files;

pub use drawn::Drawn;
pub use signature::InputSpec;

/// Bounds on what a file of samples may ask of the reader.
#[derive(Clone, Copy, Debug)]
pub struct SampleLimits {
    /// Most bytes of the values of one sample in memory: floats take 4 each, integers 8. Default: 256 MiB.
    pub max_sample_bytes: u64,
    /// Most dimensions of an array. Default: 64.
    pub max_rank: u64,
    /// Longest header of a `.npy` file or member, in bytes. Default: 64 KiB.
    pub max_header_bytes: u64,
    /// Most members of a `.npz` file. Default: 65,536.
    pub max_members: u64,
}

impl Default for SampleLimits {
    fn default() -> Self {
        SampleLimits { max_sample_bytes: 256 << 20, max_rank: 64, max_header_bytes: 64 << 10, max_members: 1 << 16 }
    }
}

/// A file of samples that has been opened and checked.
trait SampleFile: Send + Sync {
    /// Number of samples, at least 1.
    fn len(&self) -> usize;

    /// The arrays of the sample at `index`, in the order of `inputs`, which are those it was opened with.
    fn read(&self, index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>>;

    /// What it reads from.
    fn files(&self) -> Vec<&MappedFile>;
}

/// What files are checked against.
struct Context<'a> {
    inputs: &'a [InputSpec],
    limits: &'a SampleLimits,
}

/// One row of [`FORMATS`].
struct FormatEntry {
    /// File name extension, which decides where the content does not.
    extension: &'static str,
    recognizes: fn(&[u8]) -> bool,
    open: fn(MappedFile, &Context<'_>) -> Result<Box<dyn SampleFile>>,
}

/// Every format of single files. What begins in no particular way comes last and is known by its extension.
const FORMATS: &[FormatEntry] = &[
    FormatEntry { extension: "npz", recognizes: zip::recognizes, open: npz::open },
    FormatEntry { extension: "npy", recognizes: npy::recognizes, open: npy::open },
    FormatEntry { extension: "safetensors", recognizes: safetensors::recognizes, open: safetensors::open },
    FormatEntry { extension: "pb", recognizes: |_| false, open: pb::open },
];

fn format_by_extension(path: &Path) -> Option<&'static FormatEntry> {
    let extension = path.extension()?.to_str()?;
    FORMATS.iter().find(|format| format.extension.eq_ignore_ascii_case(extension))
}

/// Opens a file of one of [`FORMATS`], or a directory of test data.
fn open_file(path: &Path, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    if path.is_dir() {
        return pb::open_test_data(path, context);
    }
    let file = MappedFile::open(path)?;
    let format = FORMATS.iter().find(|format| (format.recognizes)(file.bytes())).or_else(|| format_by_extension(path));
    match format {
        Some(format) => (format.open)(file, context),
        None => Err(Error::malformed(path, format!("content: expected samples ({}), found another format", listing::expected()))),
    }
}

/// Where an array is, for messages.
struct Origin<'a> {
    path: &'a Path,
    /// The name of the input.
    key: Option<&'a str>,
    /// Which sample of the file, if it has several.
    sample: Option<u64>,
}

impl<'a> Origin<'a> {
    fn of(path: &'a Path, key: &'a str) -> Self {
        Origin { path, key: Some(key), sample: None }
    }

    fn error(&self, message: impl AsRef<str>) -> Error {
        let message = format!("{}{}", self.place(), message.as_ref());
        match self.key {
            Some(key) => Error::tensor(self.path, key, message),
            None => Error::malformed(self.path, message),
        }
    }

    fn limit(&self, what: &str, limit: u64, found: u64) -> Error {
        let key = self.key.map(|key| format!("tensor {}: ", crate::error::show_name(key))).unwrap_or_default();
        Error::Limit { file: self.path.to_owned(), what: format!("{key}{}{what}", self.place()), limit, found }
    }

    fn place(&self) -> String {
        self.sample.map(|sample| format!("sample {sample}: ")).unwrap_or_default()
    }
}

/// Checks how the arrays of one sample are stored, one for each input.
fn check_sample(path: &Path, sample: Option<u64>, context: &Context<'_>, stored: &[&Stored]) -> Result<()> {
    let memory = stored.iter().fold(0u64, |sum, stored| sum.saturating_add(stored.memory()));
    check_memory(path, sample, memory, context.limits)?;
    // Single inputs may well be empty, such as the past of a language model at its first token.
    if memory == 0 {
        let shapes = stored.iter().take(3).map(|stored| format!("{:?}", stored.shape)).collect::<Vec<_>>().join(", ");
        let found = format!("values: expected at least one, found no samples in arrays of {shapes}");
        return Err(Origin { path, key: None, sample }.error(found));
    }
    for (stored, input) in stored.iter().zip(context.inputs) {
        let origin = Origin { sample, ..Origin::of(path, &input.name) };
        if stored.shape.len() as u64 > context.limits.max_rank {
            return Err(raised_by(origin.limit("limit of dimensions", context.limits.max_rank, stored.shape.len() as u64), "sample-rank"));
        }
        check_array(&origin, input, stored.dtype, &stored.shape)?;
    }
    Ok(())
}

fn check_memory(path: &Path, sample: Option<u64>, memory: u64, limits: &SampleLimits) -> Result<()> {
    if memory <= limits.max_sample_bytes {
        return Ok(());
    }
    let error = Origin { path, key: None, sample }.limit("limit of bytes of a sample in memory", limits.max_sample_bytes, memory);
    Err(raised_by(error, "sample-bytes"))
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleSource {
    /// Files and directories of them.
    Files(Vec<PathBuf>),
    /// Nowhere: they are random.
    Drawn(Drawn),
}

impl Default for SampleSource {
    fn default() -> Self {
        SampleSource::Files(Vec::new())
    }
}

impl From<Vec<PathBuf>> for SampleSource {
    fn from(files: Vec<PathBuf>) -> Self {
        SampleSource::Files(files)
    }
}

impl SampleSource {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, SampleSource::Files(files) if files.is_empty())
    }

    /// The files and directories.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            SampleSource::Files(files) => files,
            SampleSource::Drawn(_) => &[],
        }
    }

    /// The files and directories, for a model that is no graph and takes what was recorded of its layers.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if they are random.
    pub(crate) fn recorded(&self) -> Result<&[PathBuf]> {
        match self {
            SampleSource::Files(files) => Ok(files),
            SampleSource::Drawn(_) => {
                Err(Error::Usage("--synthetic: expected an ONNX model, found another, whose layers' inputs must be recorded".into()))
            }
        }
    }

    /// How they are drawn, if they are random.
    pub fn drawn(&self) -> Option<&Drawn> {
        match self {
            SampleSource::Files(_) => None,
            SampleSource::Drawn(drawn) => Some(drawn),
        }
    }
}

/// A file of samples: where, and which.
struct Entry {
    path: PathBuf,
    /// Number of the first sample among all.
    first: usize,
    /// What tells whether it is still as it was.
    fingerprint: u64,
}

/// The samples of a run: where each is. Values are read when they are wanted, so memory holds one sample at a time.
pub struct Samples {
    inputs: Vec<InputSpec>,
    limits: SampleLimits,
    entries: Vec<Entry>,
    /// Number of samples in all entries, within the limit.
    total: usize,
    /// `(index, count)`: every `count`-th sample from `index` on.
    part: (usize, usize),
    skipped: Vec<PathBuf>,
    /// The file that was read last, opened; what is drawn stays there.
    last: Mutex<Option<(usize, Arc<dyn SampleFile>)>>,
}

impl Samples {
    /// Finds the samples at `paths`, in that order, and checks that each has an array for every one of `inputs` and no
    /// others, of the right type and dimensions.
    ///
    /// `limit` keeps the first so many samples; what follows is not looked at. `part` is `(index, count)`, of which the
    /// first is less than the second: of the samples within the limit, every `count`-th from `index` on. So the parts of
    /// all indices together are all samples, each once.
    ///
    /// Floats may be of any float type and integers of any integer type, see [`Samples::load`].
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] or [`Error::Tensor`] if a file is malformed or its content is not what the model takes;
    /// [`Error::Limit`] if it exceeds one of `limits`; [`Error::Io`] if it cannot be read; [`Error::Usage`] if no sample is
    /// asked for: without inputs or paths, with a limit of 0, or a part that has none.
    pub fn open(
        paths: &[PathBuf],
        inputs: &[InputSpec],
        limit: Option<usize>,
        part: Option<(usize, usize)>,
        limits: &SampleLimits,
    ) -> Result<Samples> {
        check_selection(inputs, limit, part)?;
        if paths.is_empty() {
            return Err(Error::Usage("samples: expected at least one path, found none".into()));
        }
        let (files, skipped) = listing::expand(paths)?;
        let context = Context { inputs, limits };
        let most = limit.unwrap_or(usize::MAX);
        let mut total: usize = 0;
        let mut entries = Vec::new();
        for path in files {
            if total >= most {
                break;
            }
            let file = open_file(&path, &context)?;
            entries.push(Entry { first: total, fingerprint: fingerprint(&*file), path });
            total = total.saturating_add(file.len());
        }
        Samples { inputs: inputs.to_vec(), limits: *limits, entries, total, part: (0, 1), skipped, last: Mutex::default() }
            .select(limit, part)
    }

    /// The samples of `source`, else as [`Samples::open`].
    ///
    /// # Errors
    ///
    /// As [`Samples::open`]; [`Error::Usage`] if samples cannot be drawn as `source` says.
    pub fn of(
        source: &SampleSource,
        inputs: &[InputSpec],
        limit: Option<usize>,
        part: Option<(usize, usize)>,
        limits: &SampleLimits,
    ) -> Result<Samples> {
        let drawn = match source {
            SampleSource::Files(paths) => return Samples::open(paths, inputs, limit, part, limits),
            SampleSource::Drawn(drawn) => drawn,
        };
        check_selection(inputs, limit, part)?;
        let file = drawn::open(drawn, &Context { inputs, limits })?;
        let entries = vec![Entry { path: drawn::PLACE.into(), first: 0, fingerprint: fingerprint(&*file) }];
        let (total, last) = (file.len(), Mutex::new(Some((0, Arc::from(file)))));
        Samples { inputs: inputs.to_vec(), limits: *limits, entries, total, part: (0, 1), skipped: Vec::new(), last }.select(limit, part)
    }

    /// Those within `limit`, and of these the `part`.
    fn select(mut self, limit: Option<usize>, part: Option<(usize, usize)>) -> Result<Samples> {
        self.total = self.total.min(limit.unwrap_or(usize::MAX));
        self.part = part.unwrap_or((0, 1));
        let (Samples { total, .. }, (index, count)) = (&self, self.part);
        if index >= *total {
            let message = format!("samples: part: expected at least one sample in part {index} of {count}, found {total} in all");
            return Err(Error::Usage(message).with_hint(format!("use at most {total} parts")));
        }
        Ok(self)
    }

    /// Number of samples that are used, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "there is always a sample")]
    pub fn len(&self) -> usize {
        (self.total - self.part.0).div_ceil(self.part.1)
    }

    /// What was found in directories and is not a sample, without hidden files.
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// Reads the sample at `index`, below [`Samples::len`]: for each input its name and values, in the order of the
    /// inputs.
    ///
    /// Values have the type that the model declares, or that of the file where the model does not say: floats are rounded
    /// to it, to nearest even; integers must fit. The file that was read last stays open, so samples are best read in order.
    ///
    /// # Errors
    ///
    /// As [`Samples::open`]; [`Error::Tensor`] also if a value is NaN, infinite or out of the declared type's range;
    /// [`Error::Changed`] if the file is not as it was.
    ///
    /// # Panics
    ///
    /// If there is no such sample.
    pub fn load(&self, index: usize) -> Result<Vec<(String, Array)>> {
        let (place, position) = self.locate(index);
        let file = self.opened(place)?;
        let arrays = file.read(position, &self.inputs)?;
        file.files().into_iter().try_for_each(MappedFile::check_unchanged)?;
        Ok(self.inputs.iter().map(|input| input.name.clone()).zip(arrays).collect())
    }

    /// File and place in it of the sample at `index`, for messages: `calib.npz`, or `calib.npy: sample 3`, counted from 0.
    ///
    /// # Panics
    ///
    /// If there is no such sample.
    pub fn describe(&self, index: usize) -> String {
        let (place, position) = self.locate(index);
        let next = self.entries.get(place + 1).map_or(self.total, |entry| entry.first);
        let path = show_path(&self.entries[place].path);
        // The last file may be cut by the limit to its first sample, which is nothing to tell apart.
        if next - self.entries[place].first == 1 { path.to_string() } else { format!("{path}: sample {position}") }
    }

    /// The entry of a sample and its place there.
    fn locate(&self, index: usize) -> (usize, usize) {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let number = self.part.0 + index * self.part.1;
        let entry = self.entries.partition_point(|entry| entry.first <= number) - 1;
        (entry, number - self.entries[entry].first)
    }

    fn opened(&self, place: usize) -> Result<Arc<dyn SampleFile>> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = last().as_ref().filter(|(last, _)| *last == place) {
            return Ok(file.clone());
        }
        let entry = &self.entries[place];
        let file: Arc<dyn SampleFile> = open_file(&entry.path, &Context { inputs: &self.inputs, limits: &self.limits })?.into();
        if fingerprint(&*file) != entry.fingerprint {
            return Err(Error::Changed { path: entry.path.clone(), found: "modified" });
        }
        *last() = Some((place, file.clone()));
        Ok(file)
    }
}

/// There must be something to choose from, and something to be chosen.
fn check_selection(inputs: &[InputSpec], limit: Option<usize>, part: Option<(usize, usize)>) -> Result<()> {
    let usage = |message: String| Err(Error::Usage(message));
    match part.unwrap_or((0, 1)) {
        _ if inputs.is_empty() => usage("samples: expected a model with inputs, found one without".into()),
        _ if limit == Some(0) => usage("samples: expected a limit of at least 1, found 0".into()),
        (index, count) if index >= count => {
            usage(format!("samples: part: expected an index below the number of parts, {count}, found {index}"))
        }
        _ => Ok(()),
    }
}

/// Tells files apart by what changes when they do: inode, size, modification time. Only ever compared within a run.
fn fingerprint(file: &dyn SampleFile) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in file.files() {
        let identity = file.path().metadata().ok().map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        (file.path(), identity).hash(&mut hasher);
    }
    hasher.finish()
}
