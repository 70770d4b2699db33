//! A run on one page: **read** → **observe** → **choose** → **quantize** → **write**.

use crate::error::{Error, Result, show_path};
use crate::formats::{self, ReadOptions};
use crate::model::{Layout, Model};
use crate::outputs::document::{self, FileRecord};
use crate::outputs::staging::{self, Durability, StagedDir, StagedFile};
use crate::outputs::{FileLayout, Output, OutputLayout, record};
use crate::plan::{Decision, Plan};
use crate::recipe::Recipe;
use crate::report::QuantizeReport;
use crate::stream::quantize::{Outcome, QuantizeJobs};
use crate::stream::{self, Progress, observe};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Whether the content of the source is hashed, or only its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// The content, unless the model is large and quantizing it is about as fast as reading it.
    Auto,
    /// The content.
    Always,
    /// The header.
    Header,
}

/// Everything that a run of `quantize` is told.
pub struct Request {
    /// The model: a file or a directory.
    pub model: PathBuf,
    /// The main output. Default: beside the model, named after the type of codes.
    pub output: Option<PathBuf>,
    /// The sidecar. Default: beside the output.
    pub sidecar: Option<PathBuf>,
    /// What is asked for.
    pub recipe: Recipe,
    /// The form of the output.
    pub form: &'static dyn Output,
    /// Bounds of the reader.
    pub read: ReadOptions,
    /// Threads that work; at least 1.
    pub threads: usize,
    /// Most bytes that buffers may take, not counting pages of mapped files.
    pub max_memory: u64,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Whether the output may be the input.
    pub in_place: bool,
    /// Whether outputs are made to last before success is reported.
    pub durability: Durability,
    /// How sources are identified.
    pub hash_source: HashSource,
    /// Seed of methods that draw random numbers.
    pub seed: u64,
}

/// A run that was decided on but not carried out: the model is read, the plan made, paths and space are checked.
pub struct Prepared {
    request: Request,
    model: Model,
    plan: Plan,
    layout: OutputLayout,
    paths: Paths,
}

/// Where outputs go.
struct Paths {
    output: PathBuf,
    sidecar: PathBuf,
    replace: bool,
}

impl Prepared {
    /// Reads the model, decides what becomes of every tensor, and checks that the outputs can be written.
    ///
    /// # Errors
    ///
    /// As [`formats::open`] and [`Plan::new`]; [`Error::Usage`] if an output exists or is the input; [`Error::Io`] if
    /// the output's directory does not exist or is full.
    pub fn new(request: Request) -> Result<Self> {
        let model = formats::open(&request.model, &request.read)?;
        let mut plan = Plan::new(&model, &request.recipe)?;
        if request.recipe.allow_non_finite {
            keep_non_finite(&model, &mut plan);
        }
        let layout = request.form.lay_out(&model, &plan)?;
        let paths = choose_paths(&request, &model)?;
        let prepared = Prepared { request, model, plan, layout, paths };
        Ok(prepared)
    }

    /// What would be done.
    pub fn report(&self) -> QuantizeReport {
        QuantizeReport::new(&self.model, &self.plan, &BTreeMap::new(), &self.paths.output, &self.paths.sidecar, self.output_bytes())
    }

    /// Size of the model, in bytes.
    pub fn model_bytes(&self) -> u64 {
        self.model.bytes()
    }

    /// Size of the files of weights that will be written, in bytes.
    pub fn output_bytes(&self) -> u64 {
        self.layout.files.iter().map(|file| file.len).sum()
    }

    /// Most memory that buffers will take, in bytes.
    pub fn buffer_bytes(&self) -> u64 {
        self.threads() as u64 * self.bytes_per_thread()
    }

    /// Does it: outputs appear complete, or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] if a weight holds NaN or infinities, [`Error::Changed`] if the model changed meanwhile,
    /// [`Error::Io`] if the outputs cannot be written.
    pub fn run(self, progress: &dyn Progress) -> Result<QuantizeReport> {
        check_space(&self.paths, self.output_bytes())?;
        let source = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| self.hash_sources());
            let written = match self.model.layout() {
                Layout::File => self.write_file(progress),
                Layout::Directory { .. } => self.write_directory(progress),
            };
            let hashes = hashing.join().expect("hashing does not panic");
            written.map(|written| (written, hashes))
        });
        let (written, hashes) = source?;
        let outcomes = self.publish(written, hashes)?;
        let (output, sidecar) = (&self.paths.output, &self.paths.sidecar);
        Ok(QuantizeReport::new(&self.model, &self.plan, &outcomes, output, sidecar, self.output_bytes()))
    }

    fn write_file(&self, progress: &dyn Progress) -> Result<Written> {
        let [layout] = self.layout.files.as_slice() else { unreachable!("a model of one file has one output") };
        let staged = StagedFile::create(&self.paths.output, layout.len)?;
        let (record, outcomes) = self.fill(staged.file(), staged.path(), layout, progress)?;
        let name = self.paths.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Written { records: vec![FileRecord { name, ..record }], outcomes, staged: Staged::File(staged) })
    }

    fn write_directory(&self, progress: &dyn Progress) -> Result<Written> {
        let staged = StagedDir::create(&self.paths.output)?;
        let dir = staged.building().to_owned();
        let (mut records, mut outcomes) = (Vec::new(), BTreeMap::new());
        for layout in &self.layout.files {
            let path = dir.join(&layout.name);
            let file = staging::create_allocated(&path, layout.len)?;
            let (record, of_file) = self.fill(&file, &path, layout, progress)?;
            records.push(record);
            outcomes.extend(of_file);
        }
        for (name, content) in &self.layout.documents {
            records.push(record::write_document(&dir, name, content)?);
        }
        for companion in self.model.companions() {
            records.push(record::copy_companion(self.model.path(), &dir, companion)?);
        }
        Ok(Written { records, outcomes, staged: Staged::Dir(staged) })
    }

    /// Observes, chooses, quantizes and writes: one output file, streamed.
    fn fill(
        &self,
        file: &File,
        path: &Path,
        layout: &FileLayout,
        progress: &dyn Progress,
    ) -> Result<(FileRecord, BTreeMap<usize, Outcome>)> {
        let jobs = QuantizeJobs::new(&self.model, &self.plan, layout);
        let hash = stream::run(&jobs, file, path, &layout.header, self.threads(), progress)?;
        record::check_written(file, path, layout)?;
        let record =
            FileRecord { blake3: Some(hash.to_hex().to_string()), bytes: layout.len, header_blake3: None, name: layout.name.clone() };
        Ok((record, jobs.into_outcomes()))
    }

    /// Makes the outputs appear, the sidecar last.
    fn publish(&self, written: Written, sources: Vec<FileRecord>) -> Result<BTreeMap<usize, Outcome>> {
        let Written { records, outcomes, staged } = written;
        let request = &self.request;
        let run = record::Run { form: request.form, recipe: &request.recipe, seed: request.seed, sources, outputs: records };
        let text = record::document(&self.model, &self.plan, &outcomes, run).to_json();
        match staged {
            Staged::File(staged) => {
                let sidecar = StagedFile::create(&self.paths.sidecar, text.len() as u64)?;
                record::write_all(sidecar.file(), sidecar.path(), &text)?;
                self.model.check_unchanged()?;
                staging::publish_files(vec![staged, sidecar], self.paths.replace, request.durability)?;
            }
            Staged::Dir(staged) => {
                record::write_document(staged.building(), document::DIRECTORY_SIDECAR, &text)?;
                staging::sync_tree(staged.building(), request.durability)?;
                self.model.check_unchanged()?;
                staged.publish(self.paths.replace, request.durability)?;
            }
        }
        Ok(outcomes)
    }

    /// How many threads the memory budget allows.
    fn threads(&self) -> usize {
        let affordable = (self.request.max_memory / self.bytes_per_thread()).max(1);
        self.request.threads.clamp(1, affordable as usize)
    }

    fn bytes_per_thread(&self) -> u64 {
        stream::quantize::LARGEST_PIECE_BYTES
    }

    fn hash_sources(&self) -> Vec<FileRecord> {
        let content = match self.request.hash_source {
            HashSource::Always => true,
            HashSource::Header => false,
            HashSource::Auto => {
                self.model.bytes() <= SMALL_MODEL
                    || self.plan.quantized().any(|t| self.plan.scheme(t).is_some_and(|s| s.observer.method().name != "min-max"))
            }
        };
        self.model.files().iter().map(|file| record::source(file, content)).collect()
    }
}

/// Models up to this size are hashed whole by default, whatever is done with them: it takes milliseconds.
const SMALL_MODEL: u64 = 64 << 20;

/// What was written and waits to be published.
struct Written {
    records: Vec<FileRecord>,
    outcomes: BTreeMap<usize, Outcome>,
    staged: Staged,
}

enum Staged {
    File(StagedFile),
    Dir(StagedDir),
}

fn keep_non_finite(model: &Model, plan: &mut Plan) {
    for tensor in 0..plan.decisions.len() {
        let is_weight = matches!(plan.decisions[tensor], Decision::Quantize(_) | Decision::Keep { is_weight: true, .. });
        if is_weight && !observe::is_finite(model, tensor) {
            plan.decisions[tensor] = Decision::Keep { reason: "NaN or Inf".into(), is_weight: false };
        }
    }
}

/// Names the outputs and refuses what would surprise: replacing without being told to, writing over the input.
fn choose_paths(request: &Request, model: &Model) -> Result<Paths> {
    let default = default_output(model, request.recipe.settings.weights.name());
    let output = request.output.clone().unwrap_or(if request.in_place { request.model.clone() } else { default });
    let is_directory = matches!(model.layout(), Layout::Directory { .. });
    let sidecar = match (&request.sidecar, is_directory) {
        (Some(_), true) => return Err(Error::Usage("--sidecar: expected a model file, found a directory, whose sidecar is within".into())),
        (Some(sidecar), false) => sidecar.clone(),
        (None, true) => output.join(document::DIRECTORY_SIDECAR),
        (None, false) => document::sidecar_path(&output),
    };
    let usage = |path: &Path, message: &str| Err(Error::Usage(format!("{}: {message}", show_path(path))));
    for path in if is_directory { vec![&output] } else { vec![&output, &sidecar] } {
        if path.file_name().is_none() {
            return usage(path, "output: expected a file name");
        }
        match path.metadata() {
            Ok(found) if found.is_dir() != is_directory => {
                return usage(path, "output: expected a file for a file and a directory for a directory");
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
            Ok(_) => rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).map_err(|e| Error::io(dir, "write to output directory", e))?,
        }
    }
    let is_input = same_file(&output, &request.model);
    if is_input && !request.in_place {
        return usage(&output, "output: expected another file than the input, found the input (--in-place allows it)");
    }
    if !is_directory && (same_file(&sidecar, &request.model) || sidecar == output) {
        return usage(&sidecar, "sidecar: expected another file than the weights, found the same");
    }
    let replace = request.force || request.in_place;
    if !replace {
        if let Some(existing) = [&output, &sidecar].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(staging::already_exists(existing));
        }
    }
    Ok(Paths { output, sidecar, replace })
}

/// `model.safetensors` → `model.int8.safetensors`, `DIR` → `DIR-int8`.
fn default_output(model: &Model, codes: &str) -> PathBuf {
    let path = model.path();
    if let Layout::Directory { .. } = model.layout() {
        // `.` and `..` have no name of their own to append to.
        let named = if path.file_name().is_some() { path.to_owned() } else { path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
        let mut name = named.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{codes}"));
        return named.with_file_name(name);
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{codes}.safetensors"));
    path.with_file_name(name)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn check_space(paths: &Paths, bytes: u64) -> Result<()> {
    let dir = staging::parent(&paths.output);
    match rustix::fs::statvfs(dir) {
        Ok(stat) if stat.f_bavail.saturating_mul(stat.f_frsize) < bytes => {
            let found = stat.f_bavail.saturating_mul(stat.f_frsize);
            let full = std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!("no space left on device: expected {bytes} bytes free, found {found}"),
            );
            Err(Error::io(dir, "allocate", full))
        }
        _ => Ok(()),
    }
}
