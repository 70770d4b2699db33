//! Text for people: plans, summaries and tables, readable without colour, every name escaped.

use super::saturation::SaturationReport;
use super::{QuantizeReport, TensorOutcome, TensorReport, counted};
use crate::compare::{Comparison, Difference, LayerDifference, OutputComparison};
use crate::error::{show_line, show_name, show_path, show_text};
use crate::gates::{self, GateRow, Kind};
use crate::inspect::{Inspection, QUANTIZE, ValueSummary};
use crate::pipeline::calibrate::CalibrationReport;
use crate::pipeline::check::RuleMatch;
use crate::pipeline::if_changed::Unchanged;
use crate::quant::metrics::Metrics;
use crate::recipe::presets::PRESETS;
use crate::sensitivity::{Decisions, Findings, LayerSensitivity, Ranking};
use crate::verify::Verification;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// Rows of the list of worst tensors.
const WORST: usize = 5;

/// `12.3 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (count.checked_ilog2().unwrap_or(0) / 10).min(UNITS.len() as u32 - 1);
    match power {
        0 => format!("{count} B"),
        _ => format!("{:.1} {}", count as f64 / (1u64 << (10 * power)) as f64, UNITS[power as usize]),
    }
}

/// `43.9 dB`, `exact` where nothing was lost.
pub fn sqnr(metrics: &Metrics) -> String {
    match metrics.sqnr_db {
        Some(db) => format!("{db:.1} dB"),
        None if metrics.mse == 0.0 => "exact".into(),
        None => "none".into(),
    }
}

/// Lines of columns; those named in `right` are aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right.contains(&column) { write!(line, "  {cell:>width$}") } else { write!(line, "  {cell:<width$}") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `[384, 1536]`.
pub fn shape(dims: &[usize]) -> String {
    format!("{dims:?}")
}

/// What `--dry-run` prints.
pub fn plan(report: &QuantizeReport, buffer_bytes: u64) -> String {
    let mut rows = vec![["tensor", "dtype", "shape", "becomes", "why"].map(String::from).to_vec()];
    for tensor in &report.tensors {
        let (becomes, why) = match &tensor.outcome {
            TensorOutcome::Quantize { dtype, granularity, mode, observer, .. } => {
                let mode = mode.map(|mode| format!(" {mode}")).unwrap_or_default();
                (format!("{dtype} {granularity}{mode}"), observer.clone())
            }
            TensorOutcome::Keep { reason } => ("unchanged".into(), show_line(reason).to_string()),
        };
        rows.push(vec![show_name(&tensor.name).to_string(), tensor.source_dtype.clone(), shape(&tensor.shape), becomes, why]);
    }
    let mut text = table(&rows, &[]) + "\n";
    report.notes.iter().for_each(|note| text += &format!("note: {}\n", show_line(note)));
    let _ = writeln!(text, "would write {} and {}", show_path(&report.output), show_path(&report.sidecar));
    let _ = writeln!(
        text,
        "weights {} → {}; disk {}; buffers up to {}",
        bytes(report.bytes_before),
        bytes(report.bytes_after),
        bytes(report.bytes_after),
        bytes(buffer_bytes)
    );
    text
}

/// What `recipe list` prints.
pub fn presets() -> String {
    let rows: Vec<Vec<String>> = PRESETS.iter().map(|preset| vec![preset.name.to_owned(), preset.summary().to_owned()]).collect();
    table(&rows, &[])
}

/// What `recipe check` prints of a recipe with so many rules; `matches` are the tensors of each in a model.
pub fn recipe_check(path: &Path, rules: usize, matches: Option<&[RuleMatch]>) -> String {
    let mut text = format!("{}: a recipe with {}\n", show_path(path), counted(rules, "rule"));
    for (number, rule) in matches.unwrap_or_default().iter().enumerate() {
        let weights = if rule.weights == rule.tensors { String::new() } else { format!(", {} of them weights", rule.weights) };
        let _ = writeln!(text, "rule {}: {}: {}{weights}", number + 1, show_line(&rule.criteria), counted(rule.tensors, "tensor"));
    }
    text
}

/// What `calibrate` and `merge` print.
pub fn calibration(report: &CalibrationReport) -> String {
    let CalibrationReport { samples, activations, output } = report;
    format!("observed {} in {}\nwrote {}\n", counted(*activations, "activation"), counted(*samples, "sample"), show_path(output))
}

/// What `quantize --if-changed` prints where there is nothing to do.
pub fn unchanged(found: &Unchanged) -> String {
    let mut text = format!("unchanged: {} is what this run would write\n", show_path(&found.output));
    if found.source == "header" {
        text += "note: of the model only the header was looked at: other values of the same names, types and shapes go unnoticed\n";
    }
    text
}

/// What a run prints at its end; `others` were written besides.
pub fn summary(report: &QuantizeReport, others: &[&Path], elapsed: Duration, all: bool) -> String {
    let mut text = String::new();
    let quantized: Vec<(&TensorReport, &Metrics)> = (report.tensors.iter())
        .filter_map(|tensor| match &tensor.outcome {
            TensorOutcome::Quantize { error: Some(error), .. } => Some((tensor, error)),
            _ => None,
        })
        .collect();
    let ratio = report.bytes_before as f64 / report.bytes_after.max(1) as f64;
    let change = if report.bytes_before == report.bytes_after { "the same size".into() } else { format!("{ratio:.2} times smaller") };
    let _ = write!(text, "{} → {} ({change})", bytes(report.bytes_before), bytes(report.bytes_after));
    let _ = writeln!(text, " in {:.2} s", elapsed.as_secs_f64());
    let _ = write!(text, "quantized {} of {}", quantized.len(), counted(report.tensors.len(), "tensor"));
    let _ = match &report.total {
        Some(total) => writeln!(text, "; SQNR over these {}", sqnr(total)),
        None => writeln!(text),
    };
    if let Some(share) = report.integer_share {
        let _ = writeln!(text, "multiply-adds of constant weights in integers: {:.1} %", 100.0 * share);
    }
    if let Some(found) = &report.findings {
        text += &findings(found);
    }
    text += &report.saturation.as_ref().map(SaturationReport::text).unwrap_or_default();
    report.notes.iter().for_each(|note| text += &format!("note: {}\n", show_line(note)));
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for tensor in &report.tensors {
        if let TensorOutcome::Keep { reason } = &tensor.outcome {
            // What was measured of each is in the plan.
            let reason = if reason.starts_with("measured:") { "measured to lose much" } else { reason };
            reasons.entry(reason).or_default().push(&tensor.name);
        }
    }
    for (reason, names) in reasons {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        let _ = writeln!(text, "kept {} ({}): {}{more}", names.len(), show_line(reason), show_name(names[0]));
    }
    if let [first, more @ ..] = report.left_behind.as_slice() {
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let _ = writeln!(text, "not carried over: {}{more}", show_path(first));
    }
    let mut worst = quantized;
    worst.sort_by(|(_, a), (_, b)| a.sqnr_db.unwrap_or(f64::INFINITY).total_cmp(&b.sqnr_db.unwrap_or(f64::INFINITY)));
    let shown = if all { worst.len() } else { WORST.min(worst.len()) };
    if shown > 0 {
        let _ = writeln!(text, "\n{}", if all { "every quantized tensor, worst first:" } else { "lowest SQNR:" });
        let row = |(tensor, error): &(&TensorReport, &Metrics)| {
            vec![show_name(&tensor.name).to_string(), shape(&tensor.shape), sqnr(error), format!("max error {:.3e}", error.max_abs)]
        };
        text += &table(&worst[..shown].iter().map(row).collect::<Vec<_>>(), &[2]);
    }
    text += &verdict(&report.gates);
    let _ = writeln!(text, "\nwrote {}\n      {}", show_path(&report.output), show_path(&report.sidecar));
    others.iter().for_each(|path| text += &format!("      {}\n", show_path(path)));
    let _ = writeln!(text, "next: {}", advice(report, worst.first().map(|(_, error)| **error)));
    text
}

/// What was measured, and what followed from it.
pub(super) fn findings(found: &Findings) -> String {
    let Findings { samples, min_sqnr_db, all_quantized_db, sqnr_db, spared, dynamic, observer, observers, decisions } = found;
    let mut text = format!("SQNR of the worst output on {}: {sqnr_db:.1} dB\n", counted(*samples, "sample"));
    let changes = [(spared.len(), "layers in float"), (dynamic.len(), "dynamic"), (observers.len(), "values by other observers")];
    let for_all = observer.iter().map(|observer| format!("observer {observer}"));
    let counted = changes.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let changes: Vec<String> = for_all.chain(counted).collect();
    if !changes.is_empty() {
        text.pop();
        let _ = writeln!(text, ", {all_quantized_db:.1} dB without {}", changes.join(", "));
    }
    if sqnr_db < min_sqnr_db {
        let _ = writeln!(text, "note: {min_sqnr_db:.0} dB would take more than a tenth of the multiply-adds or weights in float");
    }
    if let Some(Decisions { changed, max_changed }) = decisions {
        let (changed, max_changed) = (100.0 * changed, 100.0 * max_changed);
        let _ = writeln!(text, "decisions that changed: {changed:.2} %");
        if changed > max_changed {
            let _ =
                writeln!(text, "note: no more than {max_changed} % would take more than a tenth of the multiply-adds or weights in float");
        }
    }
    text
}

/// Below this a weight has usually lost what a model needs; int8 per channel is near 40 dB.
const LOW_SQNR_DB: f64 = 25.0;

pub(super) fn advice(report: &QuantizeReport, worst: Option<Metrics>) -> String {
    let output = shell_word(&report.output);
    let per_tensor =
        |tensor: &TensorReport| matches!(&tensor.outcome, TensorOutcome::Quantize { granularity, .. } if granularity == "per-tensor");
    match worst.and_then(|worst| worst.sqnr_db) {
        None if worst.is_none() => "nothing was quantized; `--dry-run` shows why".into(),
        Some(db) if db < LOW_SQNR_DB && report.tensors.iter().any(per_tensor) => {
            "some tensors lost much: try --granularity per-channel".into()
        }
        Some(db) if db < LOW_SQNR_DB => {
            "some tensors lost much: --weights int8, --observer mse, smaller groups or --exclude would keep more".into()
        }
        _ => format!("qtool verify {output}"),
    }
}

/// What `inspect` prints.
pub fn inspection(found: &Inspection) -> String {
    let mut rows = vec![["tensor", "dtype", "shape", "min", "max", "values", "quantize"].map(String::from).to_vec()];
    for tensor in &found.tensors {
        let (min, max, values) = match &tensor.values {
            Some(values) => (number(values.min), number(values.max), sparkline(values)),
            None => Default::default(),
        };
        let plan = if tensor.plan == QUANTIZE { "yes".to_owned() } else { format!("no: {}", show_line(&tensor.plan)) };
        rows.push(vec![show_name(&tensor.name).to_string(), tensor.dtype.to_owned(), shape(&tensor.shape), min, max, values, plan]);
    }
    let (tensors, files) = (counted(found.tensors.len(), "tensor"), counted(found.files, "file"));
    let mut text = format!("{tensors} in {files}, {}\n", bytes(found.bytes));
    for (key, value) in &found.metadata {
        let _ = writeln!(text, "metadata {} = {}", show_name(key), show_name(value));
    }
    text + &table(&rows, &[3, 4])
}

/// Four digits, in scientific notation where they would not show the size.
fn number(value: f32) -> String {
    match value.abs() {
        0.0 => "0".into(),
        1e-3..1e6 => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}

/// A histogram in one line; the heights are those of the square roots, so that tails can be seen.
pub(super) fn sparkline(values: &ValueSummary) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = values.histogram.iter().copied().max().unwrap_or(0).max(1) as f64;
    let bar = |count: &u64| BARS[((*count as f64 / largest).sqrt() * 8.0).ceil() as usize];
    let bars: String = values.histogram.iter().map(bar).collect();
    if values.finite { bars } else { format!("{bars} not finite") }
}

/// What `compare` prints; tensors that fail a gate are marked.
pub fn comparison(found: &Comparison, judged: &[GateRow]) -> String {
    let mut rows = vec![["tensor", "SQNR", "MSE", "max abs", "cosine", ""].map(String::from).to_vec()];
    let failing: HashSet<&str> = gates::failing(judged).map(|row| row.name.as_str()).collect();
    for tensor in &found.tensors {
        let fails = failing.contains(tensor.name.as_str());
        let note = match (fails, tensor.quantized) {
            (true, _) => "FAILS",
            (false, true) => "",
            (false, false) => "float",
        };
        rows.push(cells(show_name(&tensor.name).to_string(), &tensor.difference, note.into()));
    }
    rows.push(cells("total".into(), &found.total, String::new()));
    table(&rows, &[1, 2, 3, 4]) + &verdict(judged)
}

/// What became of the gates: those that fail, in a table of their own. Nothing, if there are none.
pub fn verdict(judged: &[GateRow]) -> String {
    let failing: Vec<&GateRow> = gates::failing(judged).collect();
    match (failing.as_slice(), judged.len()) {
        (_, 0) => String::new(),
        ([], all) => format!("\ngates: all {all} hold\n"),
        (failing, all) => {
            let row = |row: &&GateRow| {
                let name = format!("{} {}", row.kind.name(), show_name(&row.name));
                vec![name, row.measure.title().to_owned(), row.found_text(), row.limit_text()]
            };
            let header = vec![["gate", "measure", "found", "limit"].map(String::from).to_vec()];
            let rows: Vec<Vec<String>> = header.into_iter().chain(failing.iter().map(row)).collect();
            format!("\ngates: {} of {all} fail\n{}", failing.len(), table(&rows, &[2]))
        }
    }
}

/// The columns of a difference.
fn cells(name: String, difference: &Difference, note: String) -> Vec<String> {
    let Difference { cosine, max_abs, mse, .. } = *difference;
    let cosine = cosine.map_or("none".to_owned(), |cosine| format!("{cosine:.6}"));
    vec![name, shown_sqnr(difference), format!("{mse:.3e}"), format!("{max_abs:.3e}"), cosine, note]
}

fn shown_sqnr(difference: &Difference) -> String {
    sqnr(&Metrics { sqnr_db: difference.sqnr_db, mse: difference.mse, max_abs: difference.max_abs })
}

/// What `compare` prints of models that it ran; outputs that fail a gate are marked.
pub fn output_comparison(found: &OutputComparison, judged: &[GateRow]) -> String {
    let mut rows = vec![["output", "SQNR", "MSE", "max abs", "cosine", "top-1", ""].map(String::from).to_vec()];
    for output in &found.outputs {
        let fails = fails(judged, Kind::Output, &output.name);
        let top1 = output.top1.map_or(String::new(), |share| format!("{:.2} %", 100.0 * share));
        let mut row = cells(show_name(&output.name).to_string(), &output.difference, top1);
        row.push(if fails { "FAILS".into() } else { String::new() });
        rows.push(row);
    }
    let mut text = format!("{}\n{}", counted(found.samples, "sample"), table(&rows, &[1, 2, 3, 4, 5]));
    if let Some(layers) = &found.layers {
        let mut rows = vec![["value", "operator", "SQNR", "alone", ""].map(String::from).to_vec()];
        let row = |layer: &LayerDifference| {
            let note = if fails(judged, Kind::Layer, &layer.name) { "FAILS" } else { "" };
            let (all, alone) = (shown_sqnr(&layer.difference), shown_sqnr(&layer.local));
            vec![show_name(&layer.name).to_string(), show_text(&layer.op).to_string(), all, alone, note.to_owned()]
        };
        rows.extend(layers.iter().map(row));
        let _ = write!(text, "\n{}", table(&rows, &[2, 3]));
    }
    text + &verdict(judged)
}

/// Whether a gate fails that is about something of this kind and name.
pub(super) fn fails(judged: &[GateRow], kind: Kind, name: &str) -> bool {
    gates::failing(judged).any(|row| row.kind == kind && row.name == name)
}

/// What `analyze` prints.
pub fn ranking(found: &Ranking) -> String {
    let db = |db: f64| if db.is_finite() { format!("{db:.1} dB") } else { "exact".into() };
    let mut rows = vec![["weight", "operator", "multiply-adds", "SQNR", "of the weight", "of activations"].map(String::from).to_vec()];
    let row = |layer: &LayerSensitivity| {
        let LayerSensitivity { tensor, op, multiply_adds, sqnr_db, weight_sqnr_db, activation_sqnr_db } = layer;
        let activations = activation_sqnr_db.map_or(String::new(), db);
        let share = format!("{:.2} %", 100.0 * multiply_adds);
        vec![show_name(tensor).to_string(), show_text(op).to_string(), share, db(*sqnr_db), db(*weight_sqnr_db), activations]
    };
    rows.extend(found.layers.iter().map(row));
    format!(
        "SQNR of the worst output on {}: {} with everything quantized; with one layer alone:\n\n{}",
        counted(found.samples, "sample"),
        db(found.all_quantized_db),
        table(&rows, &[2, 3, 4, 5])
    )
}

/// What `verify` prints.
pub fn verification(found: &Verification) -> String {
    let mut text = String::new();
    for name in &found.intact {
        let _ = writeln!(text, "intact  {}", show_name(name));
    }
    for finding in &found.findings {
        let _ = writeln!(text, "BROKEN  {}", show_line(finding));
    }
    let verdict = if found.findings.is_empty() { "whole" } else { "not whole" };
    let _ = writeln!(text, "{}: {verdict}", show_path(&found.sidecar));
    text
}

/// A path that can be pasted into a shell.
fn shell_word(path: &Path) -> String {
    let text = show_path(path).to_string();
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || "_-./+,:@%".contains(c)) && !text.starts_with('-');
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
