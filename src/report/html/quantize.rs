//! The page of `qtool quantize`.

use super::{Cell, Page, Section, Table, Track, distributions, full_bar, number, sort_key};
use crate::error::{escape, show_path, show_text};
use crate::gates::GateRow;
use crate::lint::NodeVerdict;
use crate::quant::metrics::Metrics;
use crate::report::lint::verdict;
use crate::report::saturation::SaturationReport;
use crate::report::{ActivationDetails, Details, QuantizeReport, TensorOutcome, TensorReport, counted, terminal};
use crate::sensitivity::Findings;
use std::collections::BTreeMap;
use std::path::Path;

/// What a run of `quantize` did with `model`; `command` is the one that does it again.
pub fn quantization(model: &Path, report: &QuantizeReport, details: &Details, command: &str) -> Page {
    let name = |path: &Path| show_text(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()).to_string();
    let mut page = Page::new("quantize", format!("{} → {}", name(model), name(&report.output)));
    let quantized: Vec<(&TensorReport, &Metrics)> = (report.tensors.iter())
        .filter_map(|tensor| match &tensor.outcome {
            TensorOutcome::Quantize { error: Some(error), .. } => Some((tensor, error)),
            _ => None,
        })
        .collect();
    let mut worst_first = quantized.clone();
    worst_first.sort_by(|(_, a), (_, b)| a.sqnr_db.unwrap_or(f64::INFINITY).total_cmp(&b.sqnr_db.unwrap_or(f64::INFINITY)));
    page.sizes(report.bytes_before, report.bytes_after);
    summarize(&mut page, report, details, &worst_first);
    page.notes = notes(report, worst_first.first().map(|(_, error)| **error));
    let in_order: Vec<Option<f64>> = quantized.iter().map(|(_, error)| error.sqnr_db).collect();
    page.push(gates(&report.gates));
    page.push(tensors(&worst_first, &in_order));
    let lead = histogram_lead("quantized tensors", details.distributions.len(), quantized.len());
    page.push(distributions("weights", "Weights before and after", lead, &details.distributions));
    page.push(activations(&details.activations));
    let found: Vec<_> = details.activations.iter().filter_map(|activation| activation.distribution.clone()).collect();
    let lead = format!(
        "Of the {} activations that clip most: values on the samples (filled, logarithms of counts) and the chosen range \
         (vertical lines); short lines below are codes.",
        found.len()
    );
    page.push(distributions("activation-values", "Values of activations", lead, &found));
    if let Some(found) = &report.findings {
        page.push(measured(found));
    }
    page.push(kept(report));
    page.push(lint(&details.lint));
    page.ending(Some(&details.recipe), command);
    page
}

/// What histograms of weights show.
pub(super) fn histogram_lead(what: &str, shown: usize, all: usize) -> String {
    let which = if shown < all { format!("The {shown} {what} with the least SQNR. ") } else { String::new() };
    format!(
        "{which}Filled: values before. Outline: after. Heights are logarithms of counts, so that tails show. Thick vertical lines \
         are the clipping range of the widest group, thin ones that of the narrowest; short lines below are codes of the group with \
         the median scale."
    )
}

fn summarize(page: &mut Page, report: &QuantizeReport, details: &Details, worst_first: &[(&TensorReport, &Metrics)]) {
    let all = report.tensors.len();
    let note = if details.form.is_empty() { String::new() } else { format!("form {}", details.form) };
    page.fact("Quantized", format!("{} of {}", worst_first.len(), counted(all, "tensor")), note);
    if let Some(total) = &report.total {
        page.fact("SQNR of the weights", terminal::sqnr(total), "over all that were quantized");
    }
    if let Some((tensor, error)) = worst_first.first() {
        page.fact("Least SQNR", terminal::sqnr(error), show_text(&tensor.name).to_string());
    }
    if let Some(found) = &report.findings {
        page.fact("SQNR of the worst output", format!("{:.1} dB", found.sqnr_db), format!("on {}", counted(found.samples, "sample")));
        if let Some(decisions) = found.decisions {
            page.fact("Decisions that changed", format!("{:.2} %", 100.0 * decisions.changed), "");
        }
    }
    if let Some(share) = report.integer_share {
        page.fact("In integers", format!("{:.1} %", 100.0 * share), "of multiply-adds with constant weights");
    }
    if let Some(samples) = details.samples {
        page.fact("Calibrated on", counted(samples as usize, "sample"), counted(details.activations.len(), "activation"));
    }
}

/// What the terminal says besides figures.
fn notes(report: &QuantizeReport, worst: Option<Metrics>) -> Vec<String> {
    let mut notes: Vec<String> =
        report.findings.iter().flat_map(|found| terminal::findings(found).lines().map(escape).collect::<Vec<_>>()).collect();
    notes.extend(report.saturation.iter().map(SaturationReport::text).flat_map(|text| text.lines().map(escape).collect::<Vec<_>>()));
    notes.extend(report.notes.iter().map(|note| escape(note)));
    if let [first, more @ ..] = report.left_behind.as_slice() {
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        notes.push(format!("not carried over: {}{more}", show_path(first)));
    }
    notes.push(format!("next: {}", terminal::advice(report, worst)));
    notes
}

fn tensors(worst_first: &[(&TensorReport, &Metrics)], in_order: &[Option<f64>]) -> Section {
    let has = |what: fn(&TensorOutcome) -> bool| worst_first.iter().any(|(tensor, _)| what(&tensor.outcome));
    let has_mode = has(|outcome| matches!(outcome, TensorOutcome::Quantize { mode: Some(_), .. }));
    let has_gain = has(|outcome| matches!(outcome, TensorOutcome::Quantize { output_gain_db: Some(_), .. }));
    let mut columns = vec![("tensor", false), ("SQNR", true), ("max error", true), ("MSE", true), ("shape", true), ("types", false)];
    columns.extend([("scales", false), ("observer", false), ("rounding", false)]);
    columns.extend(has_gain.then_some(("won by rounding", true)));
    columns.extend(has_mode.then_some(("mode", false)));
    let mut table = Table::new("tensors", &columns, Some(1));
    let full = full_bar(worst_first.iter().map(|(_, error)| error.sqnr_db));
    for (tensor, error) in worst_first {
        let TensorOutcome::Quantize { dtype, granularity, mode, observer, rounding, output_gain_db, .. } = &tensor.outcome else {
            continue;
        };
        let mut cells = vec![
            Cell::name(&tensor.name),
            Cell::sqnr(error, full),
            Cell::number(error.max_abs),
            Cell::number(error.mse),
            Cell::shape(&tensor.shape),
            Cell::text(format!("{} → {dtype}", tensor.source_dtype)),
            Cell::text(granularity),
            Cell::text(observer),
            Cell::text(rounding),
        ];
        if has_gain {
            cells.push(
                output_gain_db.map_or_else(Cell::default, |db| Cell { key: Some(sort_key(db)), ..Cell::text(format!("{db:.1} dB")) }),
            );
        }
        if has_mode {
            cells.push(Cell::text(mode.unwrap_or_default()));
        }
        table.push(cells);
    }
    let charts = super::compare::profile("SQNR in dB, in the model's order", in_order);
    let of_gain = " Won by rounding: by how much less the layer's outputs change on the samples than with the nearest codes.";
    let lead = format!("Least SQNR first.{}", if has_gain { of_gain } else { "" });
    Section { id: "tensors", title: "Quantized tensors".into(), lead, charts, table: Some(table), text: None }
}

fn activations(found: &[ActivationDetails]) -> Section {
    let columns = [
        ("activation", false),
        ("range", false),
        ("clipped", true),
        ("chosen min", true),
        ("chosen max", true),
        ("least", true),
        ("largest", true),
        ("scale", true),
        ("zero point", true),
        ("codes", false),
        ("observer", false),
    ];
    let mut table = Table::new("activations", &columns, None);
    for ActivationDetails { name, record, observed, clipped, .. } in found {
        let end = |end: Option<f32>| end.map_or_else(Cell::default, |end| Cell::number(end.into()));
        table.push(vec![
            Cell::name(name),
            Cell { track: track(observed.map(|range| [range.min, range.max]), [record.min, record.max]), ..Cell::default() },
            clipped.map_or_else(Cell::default, |share| Cell { key: Some(format!("{share:e}")), ..Cell::text(percent(share)) }),
            Cell::number(record.min.into()),
            Cell::number(record.max.into()),
            end(observed.map(|range| range.min)),
            end(observed.map(|range| range.max)),
            Cell::number(record.scale.into()),
            Cell { key: Some(record.zero_point.to_string()), ..Cell::text(record.zero_point.to_string()) },
            Cell::text(record.dtype.name()),
            Cell::text(record.observer.to_string()),
        ]);
    }
    let lead =
        "Filled: the values that were observed on the samples. Frame: the range that was chosen; what is beyond it is clipped.".into();
    Section { id: "activations", title: "Activations".into(), lead, table: Some(table), ..Section::default() }
}

fn percent(share: f64) -> String {
    if share == 0.0 { "0 %".into() } else { format!("{} %", number(100.0 * share)) }
}

/// Both ranges on one line.
fn track(observed: Option<[f32; 2]>, chosen: [f32; 2]) -> Option<Track> {
    let ends = || observed.iter().chain(std::iter::once(&chosen)).flatten().map(|end| f64::from(*end));
    let (low, high) = (ends().fold(0.0, f64::min), ends().fold(0.0, f64::max));
    let width = high - low;
    let place = |value: f64| 100.0 * (value - low) / width;
    let span = |[from, to]: [f32; 2]| {
        let (from, to) = (place(from.into()), place(to.into()));
        [format!("{from:.1}"), format!("{:.1}", (to - from).max(0.0))]
    };
    let zero = || format!("{:.1}", place(0.0));
    (width > 0.0 && width.is_finite()).then(|| Track { observed: span(observed.unwrap_or([0.0, 0.0])), chosen: span(chosen), zero: zero() })
}

/// Layers and values that were dealt with otherwise than asked for.
fn measured(found: &Findings) -> Section {
    let mut table = Table::new("decisions", &[("tensor or value", false), ("what was decided", false)], None);
    let mut push = |name: &str, what: String| table.push(vec![Cell::name(name), Cell::text(what)]);
    found.spared.iter().for_each(|name| push(name, "its layer stays in float".into()));
    found.dynamic.iter().for_each(|name| push(name, "ranges of its input are found when the model runs".into()));
    found.observers.iter().for_each(|(name, observer)| push(name, format!("observer {observer}")));
    let lead = format!(
        "The worst output keeps {:.1} dB with everything in integers and {:.1} dB with these decisions; {:.0} dB were asked for.",
        found.all_quantized_db, found.sqnr_db, found.min_sqnr_db
    );
    Section { id: "measured", title: "Decided by measuring".into(), lead, table: Some(table), ..Section::default() }
}

/// What had to hold.
fn gates(rows: &[GateRow]) -> Section {
    let columns = [("tensor or output", false), ("measure", false), ("found", true), ("limit", true)];
    let mut table = Table::new("gates", &columns, None);
    for row in rows {
        let found = row.found.map_or_else(|| Cell::text(row.found_text()), |found| Cell { text: row.found_text(), ..Cell::number(found) });
        table.push(vec![Cell::name(&row.name), Cell::text(row.measure.title()), found, Cell::number(row.limit)]);
    }
    let lead = "All of these hold, or nothing would have been written.".into();
    Section { id: "gates", title: "Gates".into(), lead, table: Some(table), ..Section::default() }
}

/// What a runtime makes of the nodes: first those that are quantized in vain.
fn lint(nodes: &[NodeVerdict]) -> Section {
    let columns = [("node", false), ("operator", false), ("verdict", false), ("kernel", false), ("why, and what to do", false)];
    let mut table = Table::new("nodes", &columns, None);
    let (failing, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.fails());
    let count = failing.len();
    for node in failing.into_iter().chain(others) {
        let why: Vec<String> =
            node.findings.iter().map(|finding| format!("{}: {}; {}", finding.rule, escape(&finding.found), finding.fix)).collect();
        table.push(vec![
            Cell::name(&node.node),
            Cell::text(escape(&node.op)),
            Cell::text(verdict(node.verdict)),
            Cell::text(escape(node.kernel.as_deref().unwrap_or_default())),
            Cell::text(why.join(" · ")),
        ]);
    }
    let lead = format!("By the rules of the target; {count} of {} nodes are quantized in vain.", nodes.len());
    Section { id: "lint", title: "What the runtime makes of it".into(), lead, table: Some(table), ..Section::default() }
}

fn kept(report: &QuantizeReport) -> Section {
    let mut table = Table::new("tensors", &[("tensor", false), ("type", false), ("shape", true), ("why", false)], None);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in &report.tensors {
        if let TensorOutcome::Keep { reason } = &tensor.outcome {
            table.push(vec![
                Cell::name(&tensor.name),
                Cell::text(&tensor.source_dtype),
                Cell::shape(&tensor.shape),
                Cell::text(escape(reason)),
            ]);
            *reasons.entry(if reason.starts_with("measured:") { "measured to lose much" } else { reason }).or_default() += 1;
        }
    }
    let counts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} ({})", escape(reason))).collect();
    let lead = format!("Copied bit for bit: {}.", counts.join(", "));
    Section { id: "kept", title: "Kept as they were, and why".into(), lead, table: Some(table), ..Section::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_placed_between_the_ends_of_both() {
        let track = track(Some([-1.0, 3.0]), [0.0, 2.0]).unwrap();
        assert_eq!(
            (track.observed, track.chosen, track.zero),
            (["0.0".into(), "100.0".into()], ["25.0".into(), "50.0".into()], "25.0".into())
        );
        assert!(super::track(None, [0.0, 0.0]).is_none() && super::track(None, [0.0, 1.0]).is_some());
    }
}
