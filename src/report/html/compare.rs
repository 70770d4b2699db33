//! The pages of `qtool compare`.

use super::{Cell, Chart, Page, Section, Table, chart, distributions, full_bar, quantize::histogram_lead};
use crate::compare::{Comparison, Details, Difference, OutputComparison};
use crate::error::show_text;
use crate::gates::{self, GateRow, Kind};
use crate::quant::metrics::Metrics;
use crate::report::{counted, terminal};
use std::collections::HashSet;
use std::path::Path;

/// How far the tensors of a quantized model are from those of the float one; those that fail a gate are marked.
pub fn comparison(paths: [&Path; 2], found: &Comparison, judged: &[GateRow], details: &Details, command: &str) -> Page {
    let mut page = begin(paths, details);
    let failing: HashSet<&str> = gates::failing(judged).map(|row| row.name.as_str()).collect();
    let codes = found.tensors.iter().filter(|tensor| tensor.quantized).count();
    page.fact("Compared", counted(found.tensors.len(), "tensor"), format!("{codes} stored as codes"));
    page.fact("SQNR over all", terminal::sqnr(&metrics(&found.total)), "");
    if let Some(worst) = found.tensors.first() {
        page.fact("Least SQNR", terminal::sqnr(&metrics(&worst.difference)), show_text(&worst.name).to_string());
    }
    verdict(&mut page, gates::failing_count(judged));
    let columns =
        [("tensor", false), ("SQNR", true), ("max error", true), ("MSE", true), ("cosine", true), ("stored as", false), ("", false)];
    let mut table = Table::new("tensors", &columns, Some(1));
    let full = full_bar(found.tensors.iter().map(|tensor| tensor.difference.sqnr_db));
    for tensor in &found.tensors {
        let mut cells = difference(&tensor.name, &tensor.difference, full);
        let fails = failing.contains(tensor.name.as_str());
        cells.push(Cell::text(if tensor.quantized { "codes" } else { "float" }));
        cells.push(Cell::text(if fails { "FAILS" } else { "" }));
        table.push(cells);
        table.rows.last_mut().expect("one was pushed").is_failing = fails;
    }
    let by_error: Vec<Option<f64>> = found.tensors.iter().map(|tensor| tensor.difference.sqnr_db).collect();
    let charts = profile("SQNR in dB, worst first", &by_error);
    let lead = "Least SQNR first.".to_owned();
    page.push(Section { id: "tensors", title: "Tensors".into(), lead, charts, table: Some(table), text: None });
    let lead = histogram_lead("tensors", details.distributions.len(), codes);
    page.push(distributions("weights", "Weights before and after", lead, &details.distributions));
    page.ending(details.recipe.as_deref(), command);
    page
}

/// How far the outputs of a quantized model are from those of the float one; those that fail a gate are marked.
pub fn output_comparison(paths: [&Path; 2], found: &OutputComparison, judged: &[GateRow], details: &Details, command: &str) -> Page {
    let mut page = begin(paths, details);
    page.fact("Compared", counted(found.outputs.len(), "output"), format!("on {}", counted(found.samples, "sample")));
    let worst = found.outputs.iter().min_by(|a, b| a.difference.quality().total_cmp(&b.difference.quality()));
    if let Some(worst) = worst {
        page.fact("Least SQNR", terminal::sqnr(&metrics(&worst.difference)), show_text(&worst.name).to_string());
    }
    verdict(&mut page, gates::failing_count(judged));
    let columns = [("output", false), ("SQNR", true), ("max error", true), ("MSE", true), ("cosine", true), ("top-1", true), ("", false)];
    let mut table = Table::new("outputs", &columns, None);
    let full = full_bar(found.outputs.iter().map(|output| output.difference.sqnr_db));
    for output in &found.outputs {
        let fails = terminal::fails(judged, Kind::Output, &output.name);
        let mut cells = difference(&output.name, &output.difference, full);
        cells.push(output.top1.map_or_else(Cell::default, |share| Cell::text(format!("{:.2} %", 100.0 * share))));
        cells.push(Cell::text(if fails { "FAILS" } else { "" }));
        table.push(cells);
        table.rows.last_mut().expect("one was pushed").is_failing = fails;
    }
    page.push(Section { id: "outputs", title: "Outputs".into(), table: Some(table), ..Section::default() });
    if let Some(layers) = &found.layers {
        let columns = [("value", false), ("SQNR", true), ("alone", true), ("operator", false), ("max error", true), ("cosine", true)];
        let mut table = Table::new("values", &columns, Some(1));
        let full = full_bar(layers.iter().flat_map(|layer| [layer.difference.sqnr_db, layer.local.sqnr_db]));
        for layer in layers {
            table.push(vec![
                Cell::name(&layer.name),
                Cell::sqnr(&metrics(&layer.difference), full),
                Cell::sqnr(&metrics(&layer.local), full),
                Cell::text(show_text(&layer.op).to_string()),
                Cell::number(layer.difference.max_abs),
                cosine(&layer.difference),
            ]);
            table.rows.last_mut().expect("one was pushed").is_failing = terminal::fails(judged, Kind::Layer, &layer.name);
        }
        let by_error: Vec<Option<f64>> = layers.iter().map(|layer| layer.difference.sqnr_db).collect();
        let charts = profile("SQNR in dB, worst first", &by_error);
        let lead = "With all that came before, and alone: as if what the operator takes were exact. Least SQNR first.".to_owned();
        page.push(Section { id: "values", title: "Values within the model".into(), lead, charts, table: Some(table), text: None });
    }
    page.ending(details.recipe.as_deref(), command);
    page
}

fn begin([float, quantized]: [&Path; 2], details: &Details) -> Page {
    let name = |path: &Path| show_text(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()).to_string();
    let mut page = Page::new("compare", format!("{} and {}", name(float), name(quantized)));
    page.sizes(details.bytes_before, details.bytes_after);
    page
}

fn verdict(page: &mut Page, failing: usize) {
    if failing > 0 {
        page.fact("Gates", format!("{failing} fail"), "their rows are marked");
    }
}

fn metrics(difference: &Difference) -> Metrics {
    Metrics { sqnr_db: difference.sqnr_db, mse: difference.mse, max_abs: difference.max_abs }
}

fn difference(name: &str, difference: &Difference, full: f64) -> Vec<Cell> {
    let Difference { max_abs, mse, .. } = *difference;
    vec![Cell::name(name), Cell::sqnr(&metrics(difference), full), Cell::number(max_abs), Cell::number(mse), cosine(difference)]
}

fn cosine(difference: &Difference) -> Cell {
    Cell::text(difference.cosine.map_or("none".to_owned(), |cosine| format!("{cosine:.6}")))
}

/// The chart of one SQNR after the other; none of fewer than two.
pub(super) fn profile(title: &str, values: &[Option<f64>]) -> Vec<Chart> {
    if values.iter().flatten().count() < 2 {
        return Vec::new();
    }
    let (svg, per_bar) = chart::profile(values);
    let note = if per_bar > 1 { format!("Each bar is the worst of {per_bar} neighbours.") } else { String::new() };
    vec![Chart { title: title.into(), svg, note }]
}
