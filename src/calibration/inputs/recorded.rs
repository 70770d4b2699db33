//! Recorded inputs of layers: safetensors files with tensors `LAYER` or `LAYER.input`, `[..., features]`.
//!
//! Any number of files and of tensors may belong to a layer; each is a batch of rows. `docs/recording.md` shows how to record
//! them. Files stay on disk: values are read when they are asked for.

use super::stats::{Detail, InputStats};
use crate::calibration::samples::list_files;
use crate::calibration::stats::{ActivationStats, ModelIdentity, Refusal, Statistics};
use crate::error::{Error, Result, show_name};
use crate::formats::mmap::MappedFile;
use crate::formats::read_safetensors;
use crate::model::{Model, SourceFile};
use crate::stream::{self, Progress};
use crate::tensor::{TensorInfo, decode_f32};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// What a layer is called beside its own name.
const INPUT: &str = ".input";

/// What the weight of a layer is called, after the layer's name.
const WEIGHT: &str = ".weight";

/// Files of recorded inputs, their headers read.
pub(crate) struct Recorded {
    files: Vec<File>,
    /// By name of the layer: places of its batches, file by file.
    layers: BTreeMap<String, Vec<Batch>>,
}

/// A tensor of inputs of one layer.
struct Batch {
    file: usize,
    info: TensorInfo,
    hash: blake3::Hash,
}

struct File {
    source: SourceFile,
    hash: blake3::Hash,
}

/// Which of the files are read, and how strictly.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection {
    /// Most files.
    pub(crate) limit: Option<usize>,
    /// Of the files, every `count`-th from `index` on.
    pub(crate) part: Option<(usize, usize)>,
    /// Whether tensors that belong to no layer are left out.
    pub(crate) ignore_unused: bool,
}

impl Recorded {
    /// Reads the headers of all files and matches their tensors with the layers of `model`. A file that is there twice counts
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for a tensor that is no layer's input; [`Error::Malformed`] for a file that is not safetensors;
    /// [`Error::Io`].
    pub(crate) fn open(paths: &[PathBuf], model: &Model, selection: Selection, threads: usize) -> Result<Self> {
        let (paths, _) = list_files(paths)?;
        let (index, count) = selection.part.unwrap_or((0, 1));
        let chosen = paths.into_iter().take(selection.limit.unwrap_or(usize::MAX)).skip(index).step_by(count);
        let features = features_of(model);
        let mut this = Recorded { files: Vec::new(), layers: BTreeMap::new() };
        for path in chosen {
            let file = MappedFile::open(&path)?;
            if file.bytes().get(8) != Some(&b'{') {
                let found = "samples: expected recorded inputs of layers in safetensors, found another format";
                return Err(Error::malformed(&path, found)
                    .with_hint("docs/recording.md shows how they are recorded; samples of other kinds are for ONNX models"));
            }
            let (source, tensors) = read_safetensors(file)?;
            let hashes = stream::map(tensors.len(), threads, |i| blake3::hash(&source.bytes()[tensors[i].bytes.clone()]));
            let hash = hash_of(&tensors, &hashes);
            if this.files.iter().any(|file| file.hash == hash) {
                continue;
            }
            let number = this.files.len();
            for (info, hash) in tensors.into_iter().zip(hashes) {
                let name = if features.contains_key(info.name.as_str()) {
                    info.name.as_str()
                } else {
                    info.name.strip_suffix(INPUT).unwrap_or(&info.name)
                };
                let Some(features) = features.get(name) else {
                    if selection.ignore_unused {
                        continue;
                    }
                    let found = format!("name: expected LAYER or LAYER{INPUT} of a layer with a tensor LAYER{WEIGHT}, found another");
                    return Err(Error::tensor(&path, &info.name, found)
                        .with_hint("`qtool inspect MODEL` lists the layers; --ignore-unused leaves out what belongs to none"));
                };
                check(&path, &info, *features)?;
                if info.elements() == 0 {
                    // Nothing came this way, as with experts that no token was sent to.
                    continue;
                }
                this.layers.entry(name.to_owned()).or_default().push(Batch { file: number, info, hash });
            }
            this.files.push(File { source, hash });
        }
        if this.layers.is_empty() {
            return Err(Error::Usage("--samples: expected recorded inputs of layers, found none".into()));
        }
        Ok(this)
    }

    /// Names of layers with recorded inputs.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Reads all inputs of a layer.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for values that are not finite or too large.
    pub(crate) fn inputs(&self, layer: &str, detail: Detail, threads: usize) -> Result<InputStats> {
        let features = self.layers[layer].first().and_then(|batch| batch.info.shape.last().copied()).unwrap_or(0);
        if let Some(limit) = InputStats::too_many(features, detail) {
            let file = &self.files[self.layers[layer][0].file];
            let what = format!("features of layer {}, for methods that look at their products", show_name(layer));
            return Err(Error::Limit { file: file.source.path().to_owned(), what, limit, found: features as u64 });
        }
        let mut stats = InputStats::new(features, detail);
        self.for_each_batch(layer, |values| stats.observe(values, threads))?;
        Ok(stats)
    }

    /// Statistics of all values of each layer's inputs, whose features are divided first where there are divisors; layers with
    /// the same inputs are read once. Each tensor is a batch, in the order of files, for observers with an averaging weight.
    ///
    /// # Errors
    ///
    /// As [`Recorded::inputs`].
    pub(crate) fn activations(
        &self,
        divisors: &BTreeMap<String, Vec<f32>>,
        averaging_weight: Option<f32>,
        threads: usize,
    ) -> Result<BTreeMap<String, ActivationStats>> {
        let key =
            |layer: &str| (self.fingerprint(layer), divisors.get(layer).map(|divisors| divisors.iter().map(|d| d.to_bits()).collect()));
        let keys: BTreeMap<&str, (blake3::Hash, Option<Vec<u32>>)> = self.layers().map(|layer| (layer, key(layer))).collect();
        let first: HashMap<&(blake3::Hash, Option<Vec<u32>>), &str> = keys.iter().rev().map(|(layer, key)| (key, *layer)).collect();
        let distinct: Vec<&str> = keys.iter().filter(|(layer, key)| first[key] == **layer).map(|(layer, _)| *layer).collect();
        let stats = stream::map(distinct.len(), threads, |i| {
            let mut stats = averaging_weight.map_or_else(ActivationStats::new, ActivationStats::with_moving_average);
            let divisors = divisors.get(distinct[i]);
            let observe = |values: &mut [f32]| {
                if let Some(divisors) = divisors {
                    for row in values.chunks_exact_mut(divisors.len()) {
                        row.iter_mut().zip(divisors).for_each(|(value, divisor)| *value /= divisor);
                    }
                }
                stats.observe(values)
            };
            self.for_each_batch(distinct[i], observe).map(|()| stats)
        });
        let stats = stats.into_iter().collect::<Result<Vec<_>>>()?;
        let known: HashMap<&str, &ActivationStats> = distinct.into_iter().zip(&stats).collect();
        Ok(keys.iter().map(|(layer, key)| ((*layer).to_owned(), known[first[key]].clone())).collect())
    }

    fn for_each_batch(&self, layer: &str, mut observe: impl FnMut(&mut [f32]) -> Result<(), Refusal>) -> Result<()> {
        let mut values = Vec::new();
        for Batch { file, info, .. } in &self.layers[layer] {
            let source = &self.files[*file].source;
            values.resize(info.elements(), 0.0);
            decode_f32(info.dtype, &source.bytes()[info.bytes.clone()], &mut values);
            observe(&mut values).map_err(|refusal| Error::tensor(source.path(), &info.name, refusal.to_string()))?;
        }
        Ok(())
    }

    /// A hash of all inputs of a layer.
    pub(crate) fn fingerprint(&self, layer: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for Batch { info, hash, .. } in &self.layers[layer] {
            hasher.update(hash.as_bytes()).update(info.dtype.name().as_bytes());
        }
        hasher.finalize()
    }

    /// Everything that is kept of all layers, all at once; with Gram matrices if `detail` says so.
    ///
    /// # Errors
    ///
    /// As [`Recorded::inputs`].
    pub(crate) fn statistics(
        &self,
        model: ModelIdentity,
        detail: Detail,
        averaging_weight: Option<f32>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Statistics> {
        let mut statistics = Statistics::new(model, self.activations(&BTreeMap::new(), averaging_weight, threads)?);
        for file in &self.files {
            let is_new = statistics.add_sample(file.hash);
            debug_assert!(is_new, "files are different");
        }
        progress.begin_samples(self.layers.len() as u64);
        for layer in self.layers() {
            statistics.inputs.insert(layer.to_owned(), self.inputs(layer, detail, threads)?);
            progress.advance(1);
        }
        Ok(statistics)
    }

    /// Number of files, and a hash of all of them whatever their order.
    pub(crate) fn identity(&self) -> (usize, blake3::Hash) {
        let mut hashes: Vec<&[u8; 32]> = self.files.iter().map(|file| file.hash.as_bytes()).collect();
        hashes.sort();
        let mut hasher = blake3::Hasher::new();
        for hash in hashes {
            hasher.update(hash);
        }
        (self.files.len(), hasher.finalize())
    }

    /// Whether all files are still as they were when opened.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] for the first that is not.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.source.file.check_unchanged())
    }
}

/// Input features of the layers of a checkpoint: of its matrices `LAYER.weight [out, in]`.
fn features_of(model: &Model) -> HashMap<&str, usize> {
    let layer = |info: &TensorInfo| match info.shape[..] {
        [_, features] if info.dtype.is_decodable() => Some(features),
        _ => None,
    };
    let tensors = model.tensors().iter().map(|tensor| &tensor.info);
    tensors.filter_map(|info| Some((info.name.strip_suffix(WEIGHT)?, layer(info)?))).collect()
}

fn check(path: &std::path::Path, info: &TensorInfo, features: usize) -> Result<()> {
    if !info.dtype.is_decodable() {
        return Err(Error::tensor(path, &info.name, format!("dtype: expected floats, found {}", info.dtype)));
    }
    if info.shape.last() != Some(&features) || features == 0 {
        let found = format!("shape: expected [..., {features}], the input features of the layer, found {:?}", info.shape);
        return Err(Error::tensor(path, &info.name, found));
    }
    Ok(())
}

/// A hash of what a file records: names, types, dimensions and values, of which `hashes` are those of each tensor, whatever their
/// order.
fn hash_of(tensors: &[TensorInfo], hashes: &[blake3::Hash]) -> blake3::Hash {
    let mut sorted: Vec<(&TensorInfo, &blake3::Hash)> = tensors.iter().zip(hashes).collect();
    sorted.sort_by_key(|(info, _)| &info.name);
    let mut hasher = blake3::Hasher::new();
    for (info, hash) in sorted {
        let text = format!("{} {} {:?}", info.name, info.dtype, info.shape);
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes()).update(hash.as_bytes());
    }
    hasher.finalize()
}
