//! Writes the small files of an output, and the records of all its files and tensors that make up the sidecar.

use super::document::{
    self, ActivationRecord, CalibrationRecord, Document, FileRecord, OutputRecord, RequestRecord, SaturatedSums, SaturationRecord,
    SourceRecord, TensorRecord, Values,
};
use super::{FileKind, FileLayout, Output, staging};
use crate::error::{Error, Result};
use crate::formats::{self, mmap::MappedFile};
use crate::model::{Model, SourceFile};
use crate::plan::{Decision, Plan, TensorScheme};
use crate::quant::metrics::ErrorSums;
use crate::quant::scheme::Granularity;
use crate::recipe::Recipe;
use crate::stream::quantize::Outcome;
use crate::tensor::TensorInfo;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The record of a source file: its header's hash, and its content's if `content`.
pub(crate) fn source(file: &SourceFile, content: bool) -> FileRecord {
    let hex = |bytes: &[u8]| Some(blake3::hash(bytes).to_hex().to_string());
    FileRecord {
        blake3: if content { hex(file.bytes()) } else { None },
        bytes: file.bytes().len() as u64,
        header_blake3: hex(file.header()),
        name: file.name().into_owned(),
    }
}

/// Writes `content` to a new file `name` in `dir`.
pub(crate) fn write_document(dir: &Path, name: &str, content: &[u8]) -> Result<FileRecord> {
    let path = dir.join(name);
    staging::remember_member(&path);
    let written = File::create_new(&path).and_then(|file| file.write_all_at(content, 0));
    written.map_err(|e| Error::io(&path, "write", e))?;
    Ok(FileRecord {
        blake3: Some(blake3::hash(content).to_hex().to_string()),
        bytes: content.len() as u64,
        header_blake3: None,
        name: name.to_owned(),
    })
}

/// Bytes of a file that are copied at a time.
const PIECE: usize = 1 << 20;

/// Copies a file that goes with a model, such as its tokenizer.
///
/// # Errors
///
/// [`Error::Changed`] if it changes meanwhile; [`Error::Io`].
pub(crate) fn copy_companion(from: &Path, to: &Path, relative: &Path) -> Result<FileRecord> {
    let copy = to.join(relative);
    for dir in relative.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let dir = to.join(dir);
        staging::remember_member(&dir);
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
    }
    // Through the map, which only opens regular files; and with the mode of a new file, not the source's.
    let source = MappedFile::open(&from.join(relative))?;
    staging::remember_member(&copy);
    let failed = |e| Error::io(&copy, "write", e);
    let file = File::create_new(&copy).map_err(failed)?;
    let (mut hasher, mut piece, mut bytes) = (blake3::Hasher::new(), Vec::new(), 0);
    for read in source.bytes().chunks(PIECE) {
        // What is written is what is hashed, whatever becomes of the source.
        piece.clear();
        piece.extend_from_slice(read);
        hasher.update(&piece);
        file.write_all_at(&piece, bytes).map_err(failed)?;
        bytes += piece.len() as u64;
    }
    source.check_unchanged()?;
    let name = relative.to_string_lossy().into_owned();
    Ok(FileRecord { blake3: Some(hasher.finalize().to_hex().to_string()), bytes, header_blake3: None, name })
}

/// Writes all of `content` to an empty file.
pub(crate) fn write_all(file: &File, path: &Path, content: &[u8]) -> Result<()> {
    file.write_all_at(content, 0).map_err(|e| Error::io(path, "write", e))
}

/// Reads the header of a file that was just written, through our own reader and the reference one.
pub(crate) fn check_written(file: &File, path: &Path, layout: &FileLayout) -> Result<()> {
    let open = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let reread = || -> Result<bool> {
        match layout.kind {
            FileKind::Safetensors => {}
            FileKind::Onnx => return formats::onnx::check_written(MappedFile::open(&open)?).map(|()| true),
            FileKind::Data => return Ok(file.metadata().is_ok_and(|metadata| metadata.len() == layout.len)),
        }
        let (source, tensors) = formats::read_written_safetensors(MappedFile::open(&open)?)?;
        let reference = safetensors::SafeTensors::read_metadata(source.bytes());
        Ok(source.header() == layout.header && tensors.len() == layout.contents.len() && reference.is_ok())
    };
    match reread() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::malformed(path, "output: expected to read back what was written, found something else")),
        // The name that the user knows it by, rather than the one it has while it is open.
        Err(Error::Io { action, source, .. }) => Err(Error::io(path, action, source)),
        Err(e) => Err(Error::malformed(path, format!("output: expected to read back what was written, found {e}"))),
    }
}

/// What a run was told that its sidecar records.
pub(crate) struct Run<'r> {
    pub form: &'r dyn Output,
    pub recipe: &'r Recipe,
    pub seed: u64,
    pub sources: Vec<FileRecord>,
    pub outputs: Vec<FileRecord>,
    pub activations: BTreeMap<String, ActivationRecord>,
    pub calibration: Option<CalibrationRecord>,
    pub request: Option<RequestRecord>,
}

/// The sidecar of a run.
pub(crate) fn document(model: &Model, plan: &Plan, outcomes: &BTreeMap<usize, Outcome>, run: Run<'_>) -> Document {
    let (mut tensors, mut kept) = (BTreeMap::new(), BTreeMap::new());
    for (tensor, decision) in plan.decisions.iter().enumerate() {
        let info = &model.tensors()[tensor].info;
        match decision {
            Decision::Keep { reason, .. } => {
                kept.insert(info.name.clone(), reason.clone());
            }
            Decision::Quantize(scheme) => {
                let outcome = &outcomes[&tensor];
                let record = tensor_record(info, scheme, outcome, run.form.parameter_suffixes());
                let saturation = saturation(model, plan, tensor, outcome);
                tensors.insert(info.name.clone(), TensorRecord { saturation, ..record });
            }
        }
    }
    Document {
        activations: run.activations,
        blake3: Some(document::NO_HASH.to_owned()),
        calibration: run.calibration,
        format: document::FORMAT.to_owned(),
        kept,
        output: OutputRecord { files: run.outputs, form: run.form.name().to_owned() },
        qtool_version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: run.recipe.clone(),
        request: run.request,
        seed: run.seed,
        source: SourceRecord { files: run.sources },
        tensors,
        version: document::VERSION,
    }
}

fn tensor_record(info: &TensorInfo, scheme: &TensorScheme, outcome: &Outcome, suffixes: Option<[&str; 2]>) -> TensorRecord {
    let (granularity, axis, group_size) = match scheme.granularity {
        Granularity::PerTensor => ("per_tensor", None, None),
        Granularity::PerChannel => ("per_channel", Some(scheme.axis), None),
        Granularity::PerGroup(size) => ("per_group", Some(info.shape.len() - 1), Some(size)),
    };
    let (scale, zero_point) = match group_size.and(suffixes) {
        None => (
            Values::Inline(outcome.params.iter().map(|p| p.scale).collect()),
            Values::Inline(outcome.params.iter().map(|p| p.zero_point).collect()),
        ),
        Some([scale, zero_point]) => (
            Values::Tensor { tensor: format!("{}{scale}", info.name) },
            match scheme.rule.symmetric {
                true => Values::Inline(vec![scheme.rule.middle()]),
                false => Values::Tensor { tensor: format!("{}{zero_point}", info.name) },
            },
        ),
    };
    TensorRecord {
        axis,
        convention: scheme.rule.convention,
        dtype: scheme.codes,
        error: outcome.sums.metrics(),
        granularity: granularity.to_owned(),
        group_size,
        observer: scheme.observer_method(),
        qmax: scheme.clip.qmax,
        qmin: scheme.clip.qmin,
        rounding: scheme.rounding.method().to_string(),
        saturation: None,
        scale,
        scheme: if scheme.rule.symmetric { "symmetric" } else { "asymmetric" }.to_owned(),
        shape: info.shape.clone(),
        source_dtype: info.dtype.name().to_owned(),
        zero_point,
    }
}

/// What was found of a tensor's pairs of weights, if they were checked.
pub(crate) fn saturation(model: &Model, plan: &Plan, tensor: usize, outcome: &Outcome) -> Option<SaturationRecord> {
    let check = plan.pairs.get(&tensor)?;
    let found = outcome.saturation;
    let before = ErrorSums { error: outcome.sums.error - found.extra_error, ..outcome.sums };
    Some(SaturationRecord {
        changed: found.changed,
        extra_squared_error: found.extra_error,
        observed_codes: check.observed,
        pairs: check.count(model.tensors()[tensor].info.elements()),
        possible: found.possible,
        samples: check.on_samples.map(|[saturated, sums]| SaturatedSums { saturated, sums }),
        sqnr_db_before: before.metrics().sqnr_db.filter(|_| found.changed > 0),
        treatment: plan.saturation,
        within_observed: check.observed.map(|_| found.within_range),
    })
}
