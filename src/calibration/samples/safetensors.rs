//! Samples in safetensors: tensors named as the inputs, or `INDEX.NAME` for several samples in one file.
//!
//! Samples come in the order of their indices as numbers, which need not be consecutive. A file in which any name is
//! that of an input is one sample.

use super::decode::{Stored, read_array};
use super::signature::{InputSpec, match_names, show_inputs};
use super::{Context, Origin, SampleFile, check_sample};
use crate::calibration::array::Array;
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::model::SourceFile;
use crate::tensor::TensorInfo;
use std::collections::{BTreeMap, HashSet};

/// Whether a file begins with the length of a header that fits it, and a header.
pub(super) fn recognizes(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    u64::from_le_bytes(*length) <= rest.len() as u64 && rest.first() == Some(&b'{')
}

struct SafetensorsFile {
    source: SourceFile,
    tensors: Vec<TensorInfo>,
    /// For each sample the places of its tensors, in the order of the inputs.
    samples: Vec<Sample>,
}

struct Sample {
    /// What its names begin with, if there are several.
    index: Option<u64>,
    places: Vec<usize>,
}

/// Opens a `.safetensors` file.
pub(super) fn open(file: MappedFile, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    let (source, tensors) = crate::formats::read_safetensors(file)?;
    let path = source.path();
    if tensors.is_empty() {
        let message = format!("inputs: expected {}, found no samples: there is no tensor", show_inputs(context.inputs));
        return Err(Error::malformed(path, message));
    }
    let known: HashSet<&str> = context.inputs.iter().map(|input| input.name.as_str()).collect();
    let is_single = tensors.iter().any(|tensor| known.contains(tensor.name.as_str()));
    let groups = if is_single { None } else { group(&tensors) };
    let mut samples = Vec::new();
    match groups {
        None => {
            let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            samples.push(Sample { index: None, places: match_names(path, "inputs", context.inputs, &names)? });
        }
        Some(groups) => {
            for (index, members) in groups {
                let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
                let matched = match_names(path, &format!("inputs of sample {index}"), context.inputs, &names)?;
                samples.push(Sample { index: Some(index), places: matched.into_iter().map(|place| members[place].1).collect() });
            }
        }
    }
    for sample in &samples {
        let stored: Vec<Stored> = sample.places.iter().map(|place| stored(&tensors[*place])).collect();
        check_sample(path, sample.index, context, &stored.iter().collect::<Vec<_>>())?;
    }
    Ok(Box::new(SafetensorsFile { source, tensors, samples }))
}

/// Tensors by the index that their names begin with, each with the rest of its name and its place; `None` if one of the
/// names has no index.
fn group(tensors: &[TensorInfo]) -> Option<BTreeMap<u64, Vec<(&str, usize)>>> {
    let mut groups: BTreeMap<u64, Vec<(&str, usize)>> = BTreeMap::new();
    for (place, tensor) in tensors.iter().enumerate() {
        let (index, name) = tensor.name.split_once('.')?;
        let is_number = index.bytes().all(|b| b.is_ascii_digit());
        let index = index.parse().ok().filter(|_| is_number)?;
        groups.entry(index).or_default().push((name, place));
    }
    Some(groups)
}

fn stored(tensor: &TensorInfo) -> Stored {
    Stored::plain(tensor.dtype, tensor.shape.clone())
}

impl SampleFile for SafetensorsFile {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>> {
        let sample = &self.samples[index];
        let read = |(input, place): (&InputSpec, &usize)| {
            let tensor = &self.tensors[*place];
            let origin = Origin { sample: sample.index, ..Origin::of(self.source.path(), &input.name) };
            read_array(&origin, input, &stored(tensor), &mut &self.source.bytes()[tensor.bytes.clone()])
        };
        inputs.iter().zip(&sample.places).map(read).collect()
    }

    fn files(&self) -> Vec<&MappedFile> {
        vec![&self.source.file]
    }
}
