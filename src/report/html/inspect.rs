//! The page of `qtool inspect`.

use super::{Cell, Page, Section, Table, distributions};
use crate::error::{escape, show_text};
use crate::inspect::{Inspection, QUANTIZE, TensorInspection};
use crate::quant::params::Range;
use crate::report::distribution::{COUNTED, Distribution};
use crate::report::terminal;
use std::collections::BTreeMap;
use std::path::Path;

/// What the model at `model` holds.
pub fn inspection(model: &Path, found: &Inspection, command: &str) -> Page {
    let name = show_text(&model.file_name().unwrap_or(model.as_os_str()).to_string_lossy()).to_string();
    let mut page = Page::new("inspect", name);
    let files = if found.files == 1 { "1 file".to_owned() } else { format!("{} files", found.files) };
    page.fact("Size", terminal::bytes(found.bytes), files);
    let to_quantize = found.tensors.iter().filter(|tensor| tensor.plan == QUANTIZE).count();
    page.fact("Tensors", found.tensors.len().to_string(), format!("{to_quantize} would be quantized by default"));
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    found.tensors.iter().for_each(|tensor| *types.entry(tensor.dtype).or_default() += 1);
    let types: Vec<String> = types.iter().map(|(dtype, count)| format!("{dtype} {count}")).collect();
    page.fact("Types", types.join(", "), "tensors of each");
    let broken = found.tensors.iter().filter(|tensor| tensor.values.as_ref().is_some_and(|values| !values.finite)).count();
    if broken > 0 {
        page.notes.push(format!("{broken} tensors hold NaN or infinities"));
    }
    page.push(tensors(&found.tensors));
    page.push(histograms(&found.tensors));
    let mut metadata = Table::new("entries", &[("key", false), ("value", false)], None);
    found.metadata.iter().for_each(|(key, value)| metadata.push(vec![Cell::name(key), Cell::name(value)]));
    page.push(Section { id: "metadata", title: "Metadata".into(), table: Some(metadata), ..Section::default() });
    page.ending(None, command);
    page
}

fn tensors(found: &[TensorInspection]) -> Section {
    let columns =
        [("tensor", false), ("type", false), ("shape", true), ("least", true), ("largest", true), ("values", false), ("quantize", false)];
    let mut table = Table::new("tensors", &columns, None);
    for tensor in found {
        let (least, largest, values) = match &tensor.values {
            Some(values) => (Cell::number(values.min.into()), Cell::number(values.max.into()), terminal::sparkline(values)),
            None => Default::default(),
        };
        let plan = if tensor.plan == QUANTIZE { "yes".to_owned() } else { format!("no: {}", escape(&tensor.plan)) };
        table.push(vec![
            Cell::name(&tensor.name),
            Cell::text(tensor.dtype),
            Cell::shape(&tensor.shape),
            least,
            largest,
            Cell::text(values),
            Cell::text(plan),
        ]);
    }
    let lead = "In the model's order.".into();
    Section { id: "tensors", title: "Tensors".into(), lead, table: Some(table), ..Section::default() }
}

/// Of the tensors with the most values that would be quantized.
fn histograms(found: &[TensorInspection]) -> Section {
    let mut largest: Vec<&TensorInspection> = found.iter().filter(|tensor| tensor.plan == QUANTIZE && tensor.values.is_some()).collect();
    largest.sort_by_key(|tensor| std::cmp::Reverse(tensor.shape.iter().map(|dim| *dim as u128).product::<u128>()));
    largest.truncate(COUNTED);
    let of = |tensor: &&TensorInspection| {
        let values = tensor.values.as_ref().expect("those without were left out");
        let range = Range { min: values.min, max: values.max };
        Distribution { name: tensor.name.clone(), range, before: values.histogram.to_vec(), after: Vec::new(), grid: None }
    };
    let charts: Vec<Distribution> = largest.iter().map(of).collect();
    let lead =
        format!("Of the {} largest tensors that would be quantized. Heights are logarithms of counts, so that tails show.", charts.len());
    distributions("weights", "Weights", lead, &charts)
}
