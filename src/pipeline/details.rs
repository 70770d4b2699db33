//! What a page shows of a run besides the report: values of the tensors that lost most, before and after, and activations.

use crate::calibration::stats::ActivationStats;
use crate::error::Result;
use crate::formats::ReadOptions;
use crate::formats::mmap::MappedFile;
use crate::model::Model;
use crate::outputs::document::ActivationRecord;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::outputs::quantized::{DequantizeScratch, QuantizedModel};
use crate::outputs::target::Target;
use crate::outputs::{Content, OutputLayout};
use crate::plan::Plan;
use crate::quant::packing::packed_len;
use crate::quant::params::{Params, Range};
use crate::report::distribution::{BINS, COUNTED, CodeGrid, Distribution};
use crate::report::{ActivationDetails, QuantizeReport, TensorOutcome};
use crate::stream;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What was written, and from what.
pub(super) struct Written<'a> {
    pub model: &'a Model,
    pub plan: &'a Plan,
    pub layout: &'a OutputLayout,
    pub target: &'a Target,
    /// Parameters of weights, of forms that hold them in an ONNX model.
    pub params: &'a ParamsOf,
    pub read: &'a ReadOptions,
    pub threads: usize,
}

impl Written<'_> {
    /// Histograms of the tensors that lost most, worst first, from the output as it is on the disk.
    ///
    /// # Errors
    ///
    /// As [`QuantizedModel::open`].
    pub(super) fn distributions(&self, report: &QuantizeReport) -> Result<Vec<Distribution>> {
        let sqnr = |tensor: usize| match &report.tensors[tensor].outcome {
            TensorOutcome::Quantize { error: Some(error), .. } => error.sqnr_db,
            _ => None,
        };
        let mut worst: Vec<(usize, f64)> = self.plan.quantized().filter_map(|tensor| Some((tensor, sqnr(tensor)?))).collect();
        worst.sort_by(|a, b| a.1.total_cmp(&b.1));
        worst.truncate(COUNTED);
        if self.model.onnx().is_some() { self.of_onnx(&worst) } else { self.of_checkpoint(&worst) }
    }

    fn of_checkpoint(&self, worst: &[(usize, f64)]) -> Result<Vec<Distribution>> {
        let Target { output, sidecar, is_directory, .. } = self.target;
        let written = if *is_directory { output } else { sidecar.as_ref().unwrap_or(output) };
        let written = QuantizedModel::open(written, self.read)?;
        let index = written.model.index();
        let of = |i: usize| {
            let info = &self.model.tensors()[worst[i].0].info;
            let counterpart = *index.get(info.name.as_str())?;
            let (mut scratch, mut written_scratch) = (Vec::new(), DequantizeScratch::default());
            let grid = written.grid(counterpart).and_then(|(params, codes)| CodeGrid::new(params, codes));
            Some(Distribution::of(&info.name, info.elements(), grid, |elements, before, after| {
                before.extend_from_slice(self.model.values(worst[i].0, elements.clone(), &mut scratch));
                after.extend_from_slice(written.values(counterpart, elements, &mut written_scratch));
            }))
        };
        Ok(stream::map(worst.len(), self.threads, of).into_iter().flatten().collect())
    }

    fn of_onnx(&self, worst: &[(usize, f64)]) -> Result<Vec<Distribution>> {
        let mut files = Vec::new();
        let mut places: HashMap<usize, (usize, &Content, u64)> = HashMap::new();
        for (file, layout) in self.layout.files.iter().enumerate() {
            let is_main = file + 1 == self.layout.files.len();
            let path = if is_main { self.target.output.clone() } else { self.target.output.with_file_name(&layout.name) };
            files.push(MappedFile::open(&path)?);
            for (content, place) in &layout.contents {
                if let Content::Codes(tensor) | Content::TransposedCodes(tensor) | Content::UnsignedCodes(tensor) = content {
                    places.entry(*tensor).or_insert((file, content, place.start));
                }
            }
        }
        let of = |i: usize| {
            let tensor = worst[i].0;
            let info = &self.model.tensors()[tensor].info;
            let (scheme, params) = (self.plan.scheme(tensor)?, self.params.get(&tensor)?);
            let &(file, content, start) = places.get(&tensor)?;
            let len = packed_len(scheme.codes, info.elements());
            let bytes = files[file].bytes().get(usize::try_from(start).ok()?..)?.get(..len)?;
            let stored = StoredCodes { bytes, bits: scheme.codes.bits(), is_signed: scheme.codes.is_signed(), content, shape: &info.shape };
            let mut scratch = Vec::new();
            Some(Distribution::of(&info.name, info.elements(), CodeGrid::new(params, scheme.clip), |elements, before, after| {
                before.extend_from_slice(self.model.values(tensor, elements.clone(), &mut scratch));
                scheme.layout.for_each_run(elements, |group, run| {
                    let Params { scale, zero_point } = params[group];
                    after.extend(run.map(|element| (stored.code(element) - zero_point) as f32 * scale));
                });
            }))
        };
        Ok(stream::map(worst.len(), self.threads, of).into_iter().flatten().collect())
    }
}

/// The codes of a tensor as they are in a file.
struct StoredCodes<'a> {
    bytes: &'a [u8],
    bits: u32,
    is_signed: bool,
    content: &'a Content,
    shape: &'a [usize],
}

impl StoredCodes<'_> {
    /// The code of an element, in the order of the tensor.
    fn code(&self, element: usize) -> i32 {
        let at = match (self.content, self.shape) {
            (Content::TransposedCodes(_), [.., rows, columns]) => {
                let (matrix, within) = (element / (rows * columns), element % (rows * columns));
                matrix * rows * columns + within % columns * rows + within / columns
            }
            _ => element,
        };
        let code = match self.bits {
            4 => i32::from(self.bytes[at / 2] >> (4 * (at % 2)) & 0xf),
            _ => i32::from(self.bytes[at]),
        };
        let half = 1 << (self.bits - 1);
        match self.content {
            Content::UnsignedCodes(_) => code - half,
            _ if self.is_signed && code >= half => code - 2 * half,
            _ => code,
        }
    }
}

/// What is known of each activation: first those of whose values most are clipped.
pub(super) fn activations(
    records: &BTreeMap<String, ActivationRecord>,
    stats: &BTreeMap<String, ActivationStats>,
) -> Vec<ActivationDetails> {
    let mut details: Vec<ActivationDetails> = records.iter().map(|(name, record)| of_activation(name, record, stats.get(name))).collect();
    // Names are in order, and stay so where as much is clipped.
    details.sort_by(|a, b| b.clipped.unwrap_or(-1.0).total_cmp(&a.clipped.unwrap_or(-1.0)));
    for detail in details.iter_mut().take(COUNTED) {
        detail.distribution = stats.get(&detail.name).filter(|stats| stats.values() > 0).map(|stats| histogram(detail, stats));
    }
    details
}

fn of_activation(name: &str, record: &ActivationRecord, stats: Option<&ActivationStats>) -> ActivationDetails {
    let stats = stats.filter(|stats| stats.values() > 0);
    let clipped = stats.map(|stats| {
        let beyond = |mean: f32| mean < record.min || mean > record.max;
        let clipped: u64 = stats.summary().bins.iter().filter(|bin| beyond(bin.mean)).map(|bin| bin.count).sum();
        clipped as f64 / stats.values() as f64
    });
    let observed = stats.map(ActivationStats::extent);
    ActivationDetails { name: name.to_owned(), record: record.clone(), observed, clipped, distribution: None }
}

fn histogram(detail: &ActivationDetails, stats: &ActivationStats) -> Distribution {
    let (record, extent) = (&detail.record, stats.extent());
    let params = Params { scale: record.scale, zero_point: record.zero_point };
    let grid = CodeGrid::new(&[params], record.dtype.grid());
    let ends = grid.map_or(Range { min: record.min, max: record.max }, |grid| grid.widest);
    let range = Range { min: extent.min.min(ends.min), max: extent.max.max(ends.max) };
    let before = if range.min < range.max { stats.summary().even_counts(BINS, range.min, range.max) } else { vec![stats.values()] };
    Distribution { name: detail.name.clone(), range, before, after: Vec::new(), grid }
}

/// Makes sure that a page takes the place of nothing that the run writes.
pub(super) fn check_apart(page: &Path, target: &Target) -> Result<()> {
    let page = crate::outputs::staging::resolve(page);
    let outputs = std::iter::once(&target.output).chain(&target.sidecar);
    match outputs.map(|path| crate::outputs::staging::resolve(path)).find(|path| *path == page) {
        None => Ok(()),
        Some(taken) => Err(crate::error::Error::Usage(format!(
            "{}: report: expected another file than the outputs, found one of them",
            crate::error::show_path(&taken)
        ))),
    }
}
