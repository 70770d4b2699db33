//! A run that was decided on, carried out: **observe** → **choose** → **quantize** → **write**.

use super::details::{self, Written};
use super::gates::Judge;
use super::layer_inputs::{self, Observed};
use super::saturated::Counting;
use super::{Destination, HashSource, Prepared, SMALL_MODEL, checkpoint, onnx, plan_of, threads_of, transforms};
use crate::algorithms::Context;
use crate::algorithms::solver::Solver;
use crate::algorithms::transforms::{Calibrated, apply, bias_correction};
use crate::calibration::inputs::LayerInputs;
use crate::calibration::ranges::{self, Ranges};
use crate::calibration::stats::ActivationStats;
use crate::error::{Error, Result};
use crate::gates::{self as limits, GateRow};
use crate::lint::NodeVerdict;
use crate::outputs::assemble::{Assembly, Check, Staged};
use crate::outputs::document::{ActivationRecord, CalibrationRecord, FileRecord};
use crate::outputs::onnx::rewrite::Chosen;
use crate::outputs::{record, staging};
use crate::plan::{self};
use crate::quant::saturation::{PairCheck, Saturation};
use crate::quant::scheme::CodeType;
use crate::report::{Details, QuantizeReport};
use crate::sensitivity::{Findings, cost};
use crate::stream::quantize::{Outcome, QuantizeJobs};
use crate::stream::{self, Progress, observe};
use crate::tensor::Dtype;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What is found before codes are written.
#[derive(Default)]
struct Found {
    /// Parameters that the layout holds, or that no job is to choose again.
    chosen: Chosen,
    /// What the sidecar says of activations, by name.
    records: BTreeMap<String, ActivationRecord>,
    /// What the sidecar says of the samples, if ranges come from any.
    calibration: Option<CalibrationRecord>,
    /// Statistics that ranges were chosen by.
    observed: BTreeMap<String, ActivationStats>,
    /// As in the report.
    integer_share: Option<f64>,
    findings: Option<Findings>,
    verdicts: Vec<NodeVerdict>,
}

/// What came of writing: outcomes by tensor, and the gates.
type Outcomes = (BTreeMap<usize, Outcome>, Vec<GateRow>);

impl Prepared {
    pub(super) fn carry_out(mut self, progress: &dyn Progress) -> Result<QuantizeReport> {
        let recipe = &self.request.recipe;
        recipe.observers.check_allowed(recipe.observers_in_use())?;
        if self.model.onnx().is_some() && !recipe.transforms.is_empty() {
            let (model, notes) = transforms::before(self.model, &self.plan, &self.request, threads_of(&self.request), progress)?;
            self.plan = plan_of(&model, &self.request.recipe)?;
            self.model = model;
            self.notes.extend(notes);
        }
        let mut found = Found::default();
        if self.form.needs_params(&self.model) {
            self.choose_first(&mut found, progress)?;
        }
        if self.model.onnx().is_none() {
            self.look_at_inputs(&mut found)?;
        }
        found.chosen.weights.extend(self.plan.trained());
        found.records.extend(self.trained.activations.clone());
        progress.begin(self.model.bytes());
        let solver = self.solver();
        let (outcomes, gates) = self.write(&found, solver.as_ref(), progress)?;
        let gains = solver.map(Solver::into_gains).unwrap_or_default();
        let report = QuantizeReport::new(&self.model, &self.plan, &outcomes, &self.target, self.layout.bytes());
        let report = report.with_gains(&self.model, &gains);
        self.finish(found, gates, report)
    }

    /// **Observes** and **chooses** before codes are made, for layouts that hold the parameters: those of ONNX models.
    fn choose_first(&mut self, found: &mut Found, progress: &dyn Progress) -> Result<()> {
        let threads = self.threads();
        if !self.plan.values.values.is_empty() {
            match self.request.calibration.is_empty() && self.table.is_none() {
                true => self.take_known_ranges(found)?,
                false => self.choose_ranges(found, progress)?,
            }
        }
        found.chosen.activations.extend(self.plan.values.given.iter().map(|(value, given)| (value.clone(), given.params)));
        let Prepared { request, model, plan, notes, .. } = self;
        if let Some(Observed { inputs, layers, note }) =
            layer_inputs::observe(model, plan, &request.calibration, request.max_memory, threads, progress)?
        {
            notes.extend(note);
            (self.inputs, self.layers) = (Some(inputs), layers);
        }
        let Prepared { model, plan, .. } = &*self;
        let chosen = &mut found.chosen;
        chosen.weights = observe::all_params(model, plan, threads)?;
        chosen.weights.extend(plan.trained());
        if let Some(solver) = self.solver() {
            let looks_at_inputs = |tensor: &usize| plan.scheme(*tensor).is_some_and(|scheme| scheme.observer.looks_at_inputs());
            for tensor in solver.tensors().filter(looks_at_inputs) {
                chosen.weights.insert(tensor, solver.params(tensor)?);
            }
        }
        onnx::leave_room_for_biases(model, plan, &chosen.activations, &mut chosen.weights);
        self.plan.pairs = self.find_pairs(&found.chosen, &found.observed, progress)?;
        self.correct_biases(&mut found.chosen, progress)?;
        if let Some(target) = self.request.lint
            && let Some(graph) = self.form.quantized_graph(&self.model, &self.plan, &found.chosen)
        {
            let (note, nodes) = onnx::check_graph(&graph, target, &self.target.output)?;
            self.notes.extend(note);
            found.verdicts = nodes;
        }
        self.layout = self.form.lay_out(&self.model, &self.plan, &found.chosen, &self.target.name())?;
        Ok(())
    }

    /// Ranges of activations that are what they are whatever comes in.
    fn take_known_ranges(&self, found: &mut Found) -> Result<()> {
        let (recipe, nothing) = (&self.request.recipe, BTreeMap::new());
        let choices = Ranges::new(self.model.path(), &nothing, recipe, Dtype::F32).choose_all(&self.plan.values, recipe)?;
        found.chosen.activations = ranges::params_of(&choices);
        found.records = onnx::records(&choices, recipe);
        Ok(())
    }

    /// Ranges of activations by what is observed on samples, and where that is asked for the layers that are spared by it.
    fn choose_ranges(&mut self, found: &mut Found, progress: &dyn Progress) -> Result<()> {
        let threads = self.threads();
        let Prepared { request, model, plan, notes, trained, table, .. } = self;
        let observer = request.recipe.observers.choose(&request.recipe.activations.observer)?;
        let statistics = onnx::statistics(model, plan, &request.calibration, &observer, threads, progress)?;
        // By what was observed for this plan: of layers that are spared, other values tell.
        let costs = cost::of_layers(model, plan, &statistics);
        let ranges = Ranges::new(model.path(), &statistics.activations, &request.recipe, Dtype::F32).with_table(table.as_ref());
        let search = || onnx::search(model, plan, request, &statistics, &ranges, threads, progress);
        if let Some((recipe, findings)) = if trained.is_of_graph() { None } else { search()? } {
            *plan = plan_of(model, &recipe)?;
            request.recipe = recipe;
            found.findings = findings.map_err(|reason| notes.push(reason)).ok();
        }
        let choices = ranges.choose_all(&plan.values, &request.recipe)?;
        found.chosen.activations = ranges::params_of(&choices);
        found.records = onnx::records(&choices, &request.recipe);
        found.calibration = Some(onnx::calibration_record(&statistics, &request.calibration, table.as_ref()));
        found.integer_share = cost::integer_share(plan, &costs);
        found.observed = statistics.activations;
        Ok(())
    }

    /// What the recorded inputs of a checkpoint's layers change: the weights, by transforms, and the parameters of activations.
    fn look_at_inputs(&mut self, found: &mut Found) -> Result<()> {
        let Some(inputs) = &mut self.inputs else { return Ok(()) };
        let recipe = &self.request.recipe;
        if !recipe.transforms.is_empty() {
            let context = Context { seed: self.request.seed, threads: self.request.threads };
            let calibrated = Calibrated { model: &mut self.model, plan: &self.plan, inputs, layers: &self.layers, context };
            self.notes.extend(apply(&recipe.transforms, calibrated)?);
        }
        let (choices, statistics) = checkpoint::choose_activations(&self.model, &self.plan, recipe, inputs, threads_of(&self.request))?;
        found.observed = statistics;
        found.chosen.activations = ranges::params_of(&choices);
        found.records = onnx::records(&choices, recipe);
        found.calibration = Some(checkpoint::calibration_record(inputs));
        self.layout = self.form.lay_out(&self.model, &self.plan, &found.chosen, &self.target.name())?;
        Ok(())
    }

    /// **Quantizes** and **writes**; what has no parameters yet is observed on the way: see [`crate::stream::quantize`].
    fn write(&self, found: &Found, solver: Option<&Solver<'_>>, progress: &dyn Progress) -> Result<Outcomes> {
        let Prepared { request, form, model, plan, layout, target, .. } = self;
        let outcomes = RefCell::new(BTreeMap::new());
        let judged: RefCell<Vec<GateRow>> = RefCell::default();
        let check = |staged: &Staged| {
            let (outcomes, threads) = (&*outcomes.borrow(), self.threads());
            let rows = Judge { request, model, plan, layout, params: &found.chosen.weights, outcomes, threads }.rows(staged, progress)?;
            judged.replace(rows.clone());
            match limits::failing_count(&rows) {
                0 => Ok(()),
                _ => Err(Error::Gates { model: request.model.clone(), rows }),
            }
        };
        let check: Option<&Check<'_>> = if request.gates.is_empty() { None } else { Some(&check) };
        let unchanged = || self.inputs.as_ref().map_or(Ok(()), LayerInputs::check_unchanged);
        std::thread::scope(|scope| {
            let hashing = std::thread::Builder::new().spawn_scoped(scope, || self.hash_sources());
            Assembly { target, model, layout, check }.write(
                &mut |file, path, layout| {
                    let jobs = QuantizeJobs::new(model, plan, layout, &found.chosen.weights, solver);
                    let hash = stream::run(&jobs, file, path, &layout.header, self.threads(), progress)?;
                    outcomes.borrow_mut().extend(jobs.into_outcomes());
                    unchanged().map(|()| hash)
                },
                |outputs| {
                    // Without a thread to spare it is done here.
                    let sources = hashing.map_or_else(|_| self.hash_sources(), |hashing| hashing.join().expect("hashing does not panic"));
                    let run = record::Run {
                        form: *form,
                        recipe: &request.recipe,
                        seed: request.seed,
                        sources,
                        outputs,
                        activations: found.records.clone(),
                        calibration: found.calibration.clone(),
                        request: request.record.clone(),
                    };
                    Some(record::document(model, plan, &outcomes.borrow(), run).to_json())
                },
            )
        })?;
        Ok((outcomes.into_inner(), judged.into_inner()))
    }

    /// Writes the recipe that was followed, if that was asked for, and completes the report.
    fn finish(&self, found: Found, gates: Vec<GateRow>, report: QuantizeReport) -> Result<QuantizeReport> {
        let Prepared { request, form, model, plan, layout, target, .. } = self;
        if let Some(path) = &request.emit_recipe {
            let Destination { force, durability, .. } = request.destination;
            staging::write_file(path, request.recipe.to_text(path)?.as_bytes(), force, durability)?;
        }
        let unneeded = matches!(plan.saturation, Saturation::Nudge | Saturation::SevenBit)
            && plan.pairs.is_empty()
            && request.recipe.settings.weights == CodeType::Int8;
        let unneeded = unneeded.then(|| format!("--saturation {}: no int8 weight is multiplied in integers", plan.saturation.name()));
        let notes = self.notes.iter().chain(&report.notes).cloned().chain(unneeded).collect();
        let details = match &request.page {
            Some(page) => {
                let (params, threads) = (&found.chosen.weights, self.threads());
                let written = Written { model, plan, layout, target, params, read: &request.read, threads };
                Some(Details {
                    form: form.name(),
                    recipe: request.recipe.to_text(&page.with_extension("toml"))?,
                    samples: found.calibration.as_ref().and_then(|calibration| calibration.samples),
                    distributions: written.distributions(&report)?,
                    activations: details::activations(&found.records, &found.observed),
                    lint: found.verdicts,
                })
            }
            None => None,
        };
        Ok(QuantizeReport { integer_share: found.integer_share, findings: found.findings, notes, details, gates, ..report })
    }

    /// The pairs of weights that could saturate, with what was counted of them on samples, if that was asked for.
    fn find_pairs(
        &self,
        chosen: &Chosen,
        observed: &BTreeMap<String, ActivationStats>,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<usize, PairCheck>> {
        let Prepared { request, form, model, plan, .. } = self;
        let codes = onnx::ObservedCodes { model, plan, activations: &chosen.activations, observed };
        let mut pairs = plan::saturation::find(model, plan, form.name() == onnx::QOPERATOR, &|layer| codes.of(layer));
        let is_asked_for = matches!(request.recipe.saturation, Some(Saturation::Report | Saturation::Nudge));
        if is_asked_for && !request.calibration.samples.is_empty() {
            let (solver, calibration, threads) = (self.solver(), &request.calibration, self.threads());
            let (solver, max_memory) = (solver.as_ref(), request.max_memory);
            Counting { model, plan, chosen, solver, calibration, max_memory, threads, progress }.count(&mut pairs)?;
        }
        Ok(pairs)
    }

    /// Puts the mean errors of outputs of an ONNX model's layers into their biases, if that was asked for.
    fn correct_biases(&mut self, chosen: &mut Chosen, progress: &dyn Progress) -> Result<()> {
        if self.model.onnx().is_none() || !transforms::corrects_biases(&self.request.recipe) {
            return Ok(());
        }
        let wanted = transforms::in_layers(&self.model, &self.plan);
        let means = layer_inputs::means(&self.model, &wanted, &self.request.calibration, self.threads(), progress)?;
        let corrected = transforms::correct_biases(&self.model, &self.plan, &chosen.weights, self.solver().as_ref(), &means)?;
        corrected.iter().for_each(|(bias, values)| self.model.replace(*bias, values));
        self.notes.push(format!("{}: {}", bias_correction::NAME, bias_correction::summary(corrected.len(), wanted.len())));
        onnx::leave_room_for_biases(&self.model, &self.plan, &chosen.activations, &mut chosen.weights);
        Ok(())
    }

    /// Chooses codes by what layers take, where that is known.
    fn solver(&self) -> Option<Solver<'_>> {
        let context = Context { seed: self.request.seed, threads: self.threads() };
        self.inputs.as_ref().map(|inputs| Solver::new(&self.model, &self.plan, inputs, self.layers.clone(), context))
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
