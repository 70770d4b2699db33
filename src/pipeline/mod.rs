//! A run on one page: **read** → **observe** → **choose** → **quantize** → **write**.

pub mod calibrate;
mod onnx;

use crate::calibration::ranges::{self, Ranges};
use crate::error::{Error, Result, show_path};
use crate::formats::{self, ReadOptions};
use crate::model::{Model, SourceFile};
use crate::outputs::assemble::Assembly;
use crate::outputs::document::{self, Document, FileRecord};
use crate::outputs::onnx::rewrite::Chosen;
use crate::outputs::target::Target;
use crate::outputs::{OUTPUTS, Output, OutputLayout, record};
use crate::plan::{Decision, Plan};
use crate::recipe::{Mode, Recipe};
use crate::report::QuantizeReport;
use crate::sensitivity::cost;
use crate::stream::quantize::{LARGEST_PIECE_BYTES, QuantizeJobs};
use crate::stream::{self, Progress, observe};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use crate::outputs::target::Destination;
pub use onnx::CalibrationRequest;

/// Whether the content of the source is hashed, or only its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// The content of models up to 64 MiB; the header of larger ones, which are quantized about as fast as they are read.
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
    /// Where the output goes.
    pub destination: Destination,
    /// What is asked for.
    pub recipe: Recipe,
    /// The form of the output. Default: the first of [`OUTPUTS`] that is for the model.
    pub form: Option<&'static dyn Output>,
    /// Where ranges of activations come from.
    pub calibration: CalibrationRequest,
    /// Bounds of the reader.
    pub read: ReadOptions,
    /// Threads that work; at least 1.
    pub threads: usize,
    /// Most bytes that buffers may take, not counting pages of mapped files.
    pub max_memory: u64,
    /// How sources are identified.
    pub hash_source: HashSource,
    /// Seed of methods that draw random numbers.
    pub seed: u64,
}

/// A run that was decided on but not carried out: the model is read, the plan made, paths and space are checked.
pub struct Prepared {
    request: Request,
    form: &'static dyn Output,
    model: Model,
    plan: Plan,
    layout: OutputLayout,
    target: Target,
    notes: Vec<String>,
}

impl Prepared {
    /// **Reads** the model, decides what becomes of every tensor, and checks that the outputs can be written.
    ///
    /// # Errors
    ///
    /// As [`formats::open`] and [`Plan::new`]; [`crate::Error::Usage`] if an output exists or is the input;
    /// [`crate::Error::Io`] if the output's directory does not exist or is full.
    pub fn new(mut request: Request) -> Result<Self> {
        let model = formats::open(&request.model, &request.read)?;
        refuse_own_output(&model)?;
        let form = request.form.unwrap_or_else(|| default_form(&model));
        request.recipe.settings.convention.get_or_insert_with(|| form.convention(&model));
        match (request.recipe.mode, request.calibration.is_empty()) {
            (Mode::Auto, false) => request.recipe.mode = Mode::Static,
            (Mode::Static, true) => {
                let error = Error::Usage("--mode static: expected samples or statistics, found neither".into());
                return Err(error.with_hint("--samples PATH gives inputs of the model, --stats FILE what `qtool calibrate` wrote"));
            }
            _ => {}
        }
        onnx::check_codes(&request.recipe, form)?;
        let notes = onnx::already_quantized(&model).into_iter().collect();
        let model = form.ready(onnx::ready(model, &request.recipe)?, &request.recipe)?;
        let plan = plan_of(&model, &request.recipe)?;
        let target = Target::choose(&request.destination, &model, request.recipe.settings.weights.name(), true)?;
        let any = if form.needs_params() { onnx::placeholders(&plan) } else { Chosen::default() };
        let layout = form.lay_out(&model, &plan, &any, &target.name())?;
        for beside in layout.files.iter().rev().skip(1).filter(|_| !target.is_directory) {
            target.check_beside(&beside.name, &model)?;
        }
        target.check_space(layout.bytes())?;
        Ok(Prepared { request, form, model, plan, layout, target, notes })
    }

    /// Does it: outputs appear complete, or not at all.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NonFinite`] if a weight holds NaN or infinities, [`crate::Error::Changed`] if the model changed
    /// meanwhile, [`crate::Error::Io`] if the outputs cannot be written.
    pub fn run(mut self, progress: &dyn Progress) -> Result<QuantizeReport> {
        let mut chosen = Chosen::default();
        let (mut activations, mut integer_share, mut findings) = (None, None, None);
        if self.form.needs_params() {
            // **Observes** and **chooses** before, as the layout holds the parameters.
            let threads = self.threads();
            let Prepared { request, model, plan, notes, .. } = &mut self;
            if !plan.values.values.is_empty() {
                let observer = &request.recipe.activations.observer;
                let statistics = onnx::statistics(model, plan, &request.calibration, observer, threads, progress)?;
                let ranges = Ranges::new(model.path(), &statistics, &request.recipe);
                if let Some((recipe, found)) = onnx::search(model, plan, request, &statistics, &ranges, threads, progress)? {
                    *plan = plan_of(model, &recipe)?;
                    request.recipe = recipe;
                    findings = found.map_err(|reason| notes.push(reason)).ok();
                }
                let choices = ranges.choose_all(&plan.values, &request.recipe)?;
                chosen.activations = ranges::params_of(&choices);
                activations = Some((onnx::records(&choices, &request.recipe), onnx::calibration_record(&statistics)));
                integer_share = cost::integer_share(plan, &cost::of_layers(model, plan, &statistics));
            }
            let Prepared { model, plan, .. } = &self;
            chosen.weights = observe::all_params(model, plan, self.threads())?;
            onnx::leave_room_for_biases(model, plan, &chosen.activations, &mut chosen.weights);
            self.layout = self.form.lay_out(model, plan, &chosen, &self.target.name())?;
        }
        progress.begin(self.model.bytes());
        let Prepared { request, form, model, plan, layout, target, .. } = &self;
        let outcomes = RefCell::new(BTreeMap::new());
        std::thread::scope(|scope| {
            let hashing = std::thread::Builder::new().spawn_scoped(scope, || self.hash_sources());
            Assembly { target, model, layout }.write(
                // **Observes**, **chooses** and **quantizes**, and **writes** the codes: see `stream::quantize`.
                &mut |file, path, layout| {
                    let jobs = QuantizeJobs::new(model, plan, layout, &chosen.weights);
                    let hash = stream::run(&jobs, file, path, &layout.header, self.threads(), progress)?;
                    outcomes.borrow_mut().extend(jobs.into_outcomes());
                    Ok(hash)
                },
                |outputs| {
                    // Without a thread to spare it is done here.
                    let sources = hashing.map_or_else(|_| self.hash_sources(), |hashing| hashing.join().expect("hashing does not panic"));
                    let (activations, calibration) = activations.unzip();
                    let activations = activations.unwrap_or_default();
                    let run = record::Run {
                        form: *form,
                        recipe: &request.recipe,
                        seed: request.seed,
                        sources,
                        outputs,
                        activations,
                        calibration,
                    };
                    Some(record::document(model, plan, &outcomes.borrow(), run).to_json())
                },
            )
        })?;
        let report = QuantizeReport::new(model, plan, &outcomes.borrow(), target, layout.bytes());
        Ok(QuantizeReport { integer_share, findings, notes: self.notes.clone(), ..report })
    }

    /// What would be done.
    pub fn report(&self) -> QuantizeReport {
        let report = QuantizeReport::new(&self.model, &self.plan, &BTreeMap::new(), &self.target, self.layout.bytes());
        QuantizeReport { notes: self.notes.clone(), ..report }
    }

    /// Most memory that buffers will take, in bytes.
    pub fn buffer_bytes(&self) -> u64 {
        self.threads() as u64 * LARGEST_PIECE_BYTES
    }

    /// How many threads the memory budget allows.
    fn threads(&self) -> usize {
        let affordable = self.request.max_memory / LARGEST_PIECE_BYTES;
        self.request.threads.clamp(1, affordable.max(1) as usize)
    }

    fn hash_sources(&self) -> Vec<FileRecord> {
        let content = match self.request.hash_source {
            HashSource::Always => true,
            HashSource::Header => false,
            HashSource::Auto => self.model.bytes() <= SMALL_MODEL,
        };
        self.model.files().iter().map(|file| record::source(file, content)).collect()
    }
}

/// Decides for every tensor of `model` by `recipe`.
fn plan_of(model: &Model, recipe: &Recipe) -> Result<Plan> {
    let mut plan = Plan::new(model, recipe)?;
    if recipe.allow_non_finite {
        keep_non_finite(model, &mut plan);
        plan.choose_modes(model, recipe.mode);
    }
    Ok(plan)
}

/// The first form that is for the model.
fn default_form(model: &Model) -> &'static dyn Output {
    *OUTPUTS.iter().find(|form| form.is_for(model)).expect("every kind of model has a form")
}

/// Models up to this size are hashed whole by default: it takes milliseconds.
const SMALL_MODEL: u64 = 64 << 20;

/// Codes must not be taken for weights: what a sidecar of ours lists as its output is quantized already.
fn refuse_own_output(model: &Model) -> Result<()> {
    let Ok(sidecar) = document::find(model.path()) else { return Ok(()) };
    let Ok(document) = Document::read(&sidecar) else { return Ok(()) };
    let listed = |file: &SourceFile| {
        let bytes = file.bytes().len() as u64;
        document.output.files.iter().any(|record| record.name == file.name() && record.bytes == bytes)
    };
    if document.tensors.is_empty() || !model.files().iter().all(listed) {
        return Ok(());
    }
    let found = format!("model: expected a float model, found an output of qtool, as {} says", show_path(&sidecar));
    Err(Error::malformed(model.path(), found).with_hint("`qtool dequantize` gives a float model back"))
}

fn keep_non_finite(model: &Model, plan: &mut Plan) {
    for tensor in 0..plan.decisions.len() {
        let is_weight = matches!(plan.decisions[tensor], Decision::Quantize(_) | Decision::Keep { is_weight: true, .. });
        if is_weight && !observe::is_finite(model, tensor) {
            plan.decisions[tensor] = Decision::Keep { reason: "NaN or Inf".into(), is_weight: false };
        }
    }
}
