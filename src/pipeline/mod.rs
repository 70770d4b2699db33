//! A run on one page: **read** → **observe** → **choose** → **quantize** → **write**.

pub mod analyze;
pub mod calibrate;
mod carry_out;
pub mod check;
mod checkpoint;
mod details;
mod gates;
pub mod if_changed;
mod layer_inputs;
mod onnx;
mod outlook;
mod saturated;
mod stored;
mod transforms;

use crate::algorithms::NEAREST;
use crate::algorithms::solver::Layer;
use crate::algorithms::transforms::check;
use crate::calibration::inputs::LayerInputs;
use crate::calibration::tables::RangeTable;
use crate::error::{Error, Result, show_path};
use crate::formats::{self, ReadOptions};
use crate::gates::Gates;
use crate::lint;
use crate::method::Method;
use crate::model::Model;
use crate::outputs::document::{Document, RequestRecord};
use crate::outputs::staging;
use crate::outputs::target::Target;
use crate::outputs::{OUTPUTS, Output, OutputLayout, quantized};
use crate::plan::{self, Decision, Plan};
use crate::qat::{self, Trained};
use crate::recipe::{MODES, Mode, Recipe};
use crate::report::{QuantizeReport, html};
use crate::stream::quantize::LARGEST_PIECE_BYTES;
use crate::stream::{Progress, observe};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use crate::outputs::target::Destination;
pub use onnx::CalibrationRequest;
pub use outlook::ActivationUse;

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
    /// The form of the output. Default: that of the run that the recipe is of, else the first of [`OUTPUTS`], that is for the
    /// model.
    pub form: Option<&'static dyn Output>,
    /// The form of the run whose sidecar the recipe is, as [`recorded_run`](crate::outputs::recorded_run) finds it.
    pub recorded_form: Option<&'static dyn Output>,
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
    /// Largest share of the decisions of a static ONNX model that may change on the samples, 0 to 1: layers are spared until no more
    /// do.
    pub max_drop: Option<f64>,
    /// What the output must not fall short of: else nothing is written.
    pub gates: Gates,
    /// The file that the recipe was read from, if it was: no output takes its place, unless it is the output's own sidecar.
    pub recipe_file: Option<PathBuf>,
    /// Where the recipe that was followed goes, with what was found by measuring: JSON if the name ends so, else TOML.
    pub emit_recipe: Option<PathBuf>,
    /// What the sidecar records of this request, for [`if_changed`].
    pub record: Option<RequestRecord>,
    /// Whether the output that is there is known to be an earlier one of this request, and is replaced like those of
    /// [`Destination::force`].
    pub replaces_output: bool,
    /// Where a page about the run will be written by the caller: the report then has the [`Details`](crate::report::Details) that it shows.
    pub page: Option<PathBuf>,
    /// The target whose rules the graph of an ONNX model must pass, as [`lint`](crate::lint::lint) knows them: layers that are to
    /// compute in integers and would not are an error, of `any` only a note. `None` does not look.
    pub lint: Option<&'static str>,
}

impl Request {
    /// What the program does with `model` without options: the form for its kind beside it, int8 per channel, on all cores.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Request {
            model: model.into(),
            destination: Destination::default(),
            recipe: Recipe::default(),
            form: None,
            recorded_form: None,
            calibration: CalibrationRequest::default(),
            read: ReadOptions::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            max_memory: 512 << 20,
            hash_source: HashSource::Auto,
            seed: 0,
            gates: Gates::default(),
            recipe_file: None,
            emit_recipe: None,
            max_drop: None,
            record: None,
            replaces_output: false,
            page: None,
            lint: Some(lint::ANY),
        }
    }
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
    /// Of a checkpoint that is calibrated: what is known of its layers' inputs, and the layers it makes a difference for.
    inputs: Option<LayerInputs>,
    layers: BTreeMap<usize, Layer>,
    /// Parameters that came with the model.
    trained: Trained,
    /// Ranges of activations that other tools found.
    table: Option<RangeTable>,
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
        let form = form_of(&model, &request);
        request.recipe.settings.convention.get_or_insert_with(|| form.convention(&model));
        form.adapt(&mut request.recipe);
        let is_trained = onnx::is_trained(&model, &request.recipe);
        decide_mode(&mut request, is_trained)?;
        onnx::check_codes(&request.recipe, form)?;
        let mut notes: Vec<String> = onnx::already_quantized(&model, &request.recipe).into_iter().collect();
        let (table, note) = onnx::open_table(&model, &request)?;
        notes.extend(note);
        notes.extend(onnx::note_drawn(&model, &request.calibration));
        let model =
            if form.keeps_graph() { onnx::as_given(model, &request.recipe, &request.read)? } else { onnx::ready(model, &request.recipe)? };
        let (model, trained) = qat::import(model, &request.recipe)?;
        notes.extend(trained.notes.iter().cloned());
        if let Some(codes) = trained.activation_codes() {
            // Operators take codes of one type.
            request.recipe.activations.dtype = codes;
        }
        notes.extend(form.note(&model).map(str::to_owned));
        let model = form.ready(plan::declare(model, &request.recipe)?, &request.recipe)?;
        check_trained(&trained, &request)?;
        let mut plan = match trained.is_of_graph() {
            // What was trained is quantized whatever its size.
            true => plan_of(&model, &Recipe { min_elements: 0, ..request.recipe.clone() })?,
            false => plan_of(&model, &request.recipe)?,
        };
        notes.extend(trained.apply(&model, &mut plan, !request.calibration.is_empty())?);
        check_samples(&model, &plan, &request)?;
        gates::check(&model, &request)?;
        if request.max_drop.is_some() && plan.values.values.is_empty() {
            return Err(Error::Usage(
                "--max-drop: expected an ONNX model and samples, for layers that run in integers, found no such layer".into(),
            ));
        }
        if table.is_some() && plan.values.values.is_empty() {
            return Err(Error::Usage("--ranges: expected layers that run in integers with known ranges (static), found none".into()));
        }
        let is_calibrated = model.onnx().is_none() && !request.calibration.is_empty();
        let inputs = is_calibrated.then(|| checkpoint::open_inputs(&model, &request.calibration, request.threads)).transpose()?;
        let mut layers = BTreeMap::new();
        if let Some(inputs) = &inputs {
            let (found, note) = checkpoint::adjust(&model, &mut plan, inputs, !request.recipe.transforms.is_empty());
            layers = found;
            notes.extend(note);
        }
        let target = choose_target(&request, form, &model)?;
        let any = onnx::placeholders(&model, &plan);
        let layout = form.lay_out(&model, &plan, &any, &target.name())?;
        check_apart(&request, &target, &layout, &model)?;
        target.check_space(layout.bytes())?;
        Ok(Prepared { request, form, model, plan, layout, target, notes, inputs, layers, trained, table })
    }

    /// Does it: outputs appear complete, or not at all.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NonFinite`] if a weight holds NaN or infinities, [`crate::Error::Changed`] if the model changed
    /// meanwhile, [`crate::Error::Io`] if the outputs cannot be written, [`crate::Error::Usage`] if an observer is a command that
    /// may not run, [`crate::Error::Gates`] if a gate fails.
    pub fn run(self, progress: &dyn Progress) -> Result<QuantizeReport> {
        let inputs = self.model.watch();
        self.carry_out(progress).map_err(|error| inputs.explain(error))
    }

    /// How many threads the memory budget allows.
    fn threads(&self) -> usize {
        threads_of(&self.request)
    }
}

/// What `auto` means for a model, trained with fake quantizers or not.
fn decide_mode(request: &mut Request, is_trained: bool) -> Result<()> {
    let has_ranges = is_trained || !request.calibration.is_empty() || request.calibration.ranges.is_some();
    match request.recipe.mode {
        Mode::Auto if has_ranges => request.recipe.mode = Mode::Static,
        Mode::Static if !has_ranges => {
            let error = Error::Usage("--mode static: expected samples or statistics, found neither".into());
            let hint =
                "--samples PATH gives inputs of the model, --stats FILE what `qtool calibrate` wrote, --ranges FILE what other tools found";
            return Err(error.with_hint(hint));
        }
        _ => {}
    }
    Ok(())
}

/// Where the output goes, which is nowhere that something is read from.
fn choose_target(request: &Request, form: &dyn Output, model: &Model) -> Result<Target> {
    if let Some(path) = &request.emit_recipe {
        staging::check_free(path, request.destination.force)?;
        check_is_recipe(path)?;
    }
    let force = request.destination.force || request.replaces_output;
    let destination = Destination { force, ..request.destination.clone() };
    let target = Target::choose(&destination, model, &form.tag(request.recipe.settings.weights), true)?;
    // A run may be done again from the sidecar that it replaces.
    let recipe = request.recipe_file.clone().filter(|recipe| !target.replaces_sidecar(recipe));
    let read: Vec<PathBuf> = request.calibration.files()?.into_iter().chain(recipe).collect();
    target.spare(&read)?;
    if let Some(page) = &request.page {
        html::check_free(page, request.destination.force)?;
    }
    Ok(target)
}

/// Makes sure that all that is written goes to places of its own.
fn check_apart(request: &Request, target: &Target, layout: &OutputLayout, model: &Model) -> Result<()> {
    let besides = layout.files.iter().rev().skip(1).filter(|_| !target.is_directory);
    let mut others = besides.map(|beside| target.check_beside(&beside.name, model)).collect::<Result<Vec<_>>>()?;
    if let Some(page) = &request.page {
        target.check_apart("--report", page, &others)?;
        others.push(page.clone());
    }
    request.emit_recipe.iter().try_for_each(|path| target.check_apart("--emit-recipe", path, &others))
}

/// What is replaced by a recipe must be one, and no sidecar.
fn check_is_recipe(path: &Path) -> Result<()> {
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    let is_recipe = metadata.is_file() && !Document::recognizes(path) && Recipe::read(path).is_ok();
    if is_recipe || metadata.is_file() && metadata.len() == 0 {
        return Ok(());
    }
    let hint = "--emit-recipe writes elsewhere with another name; if it can go, remove it first";
    Err(staging::not_replaceable(path, "recipe", "a recipe", hint))
}

/// Methods that look at layers' inputs need some.
fn check_samples(model: &Model, plan: &Plan, request: &Request) -> Result<()> {
    check(&request.recipe.transforms, model.onnx().is_some())?;
    let transform = request.recipe.transforms.first().map(|method| format!("--transform {method}"));
    let mut schemes = plan.quantized().filter_map(|tensor| plan.scheme(tensor));
    let rounding = schemes.find(|scheme| !scheme.rounding.is_nearest()).map(|scheme| format!("--rounding {}", scheme.rounding.method()));
    match transform.or(rounding) {
        Some(method) if request.calibration.is_empty() => {
            let error = Error::Usage(format!("{method}: expected samples or statistics, found neither"));
            Err(error.with_hint("--samples PATH gives inputs of the model, or recorded inputs of the layers of a checkpoint"))
        }
        _ => Ok(()),
    }
}

/// What was trained is for the model as it was trained.
fn check_trained(trained: &Trained, request: &Request) -> Result<()> {
    let Recipe { transforms, mode, settings, min_sqnr, .. } = &request.recipe;
    let of_graph = trained.is_of_graph();
    let found = match (transforms.first(), *mode) {
        _ if trained.is_empty() => return Ok(()),
        (None, Mode::Static) if of_graph && settings.rounding != Method::new(NEAREST) => {
            format!("--rounding {}: expected a model whose weights are not quantized yet", settings.rounding)
        }
        (None, Mode::Static) if of_graph && (request.max_drop.is_some() || min_sqnr.is_some_and(|db| db > 0.0)) => {
            "--min-sqnr or --max-drop: expected a model of which layers can be spared".to_owned()
        }
        (None, Mode::Static) if of_graph => return Ok(()),
        (None, mode) if of_graph => {
            let name = MODES.iter().find(|entry| entry.0 == mode).map_or("", |entry| entry.1);
            format!("--mode {name}: expected auto or static")
        }
        (Some(method), _) => format!("--transform {method}: expected a model whose ranges are observed"),
        (None, Mode::Static) => "--mode static: expected ranges of activations from samples only".to_owned(),
        _ => return Ok(()),
    };
    let error = Error::Usage(format!("{found}, found one from quantization-aware training"));
    Err(error.with_hint("--ignore-qat observes anew; --mode weight-only takes samples for --rounding"))
}

/// How many threads the memory budget allows.
fn threads_of(request: &Request) -> usize {
    let affordable = request.max_memory / LARGEST_PIECE_BYTES;
    request.threads.clamp(1, affordable.max(1) as usize)
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

/// The form that was asked for, or that of the run that the recipe is of, or the first that is for the model.
fn form_of(model: &Model, request: &Request) -> &'static dyn Output {
    let recorded = request.recorded_form.filter(|form| form.is_for(model));
    request.form.or(recorded).unwrap_or_else(|| default_form(model))
}

/// The first form that is for the model.
fn default_form(model: &Model) -> &'static dyn Output {
    *OUTPUTS.iter().find(|form| form.is_for(model)).expect("every kind of model has a form")
}

/// Models up to this size are hashed whole by default: it takes milliseconds.
const SMALL_MODEL: u64 = 64 << 20;

/// Codes must not be taken for weights: what a sidecar of ours lists as its output is quantized already.
fn refuse_own_output(model: &Model) -> Result<()> {
    let Some((sidecar, _)) = quantized::sidecar_of_codes(model) else { return Ok(()) };
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
