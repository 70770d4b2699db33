//! Random samples, for who has none and says so: they show that a model runs and how fast, not which ranges it needs.
//!
//! Floats are uniform from -1 to 1, integers and booleans are 0 or 1, which are indices of nearly every table. The same count gives
//! the same values on every machine.

use super::decode::{Stored, round};
use super::signature::{InputSpec, fits, show_shape};
use super::{Context, SampleFile, check_sample};
use crate::calibration::array::{Array, Data};
use crate::error::{Error, Result, show_name};
use crate::formats::mmap::MappedFile;
use crate::random::Random;
use crate::tensor::Dtype;
use serde::Serialize;
use std::path::Path;

/// How random samples are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drawn {
    /// How many, at least 1.
    pub count: usize,
    /// Dimensions of inputs by name, where the model leaves some open. Those that nobody gives are 1.
    pub shapes: Vec<(String, Vec<usize>)>,
}

/// Stands for a path in messages.
pub(super) const PLACE: &str = "--synthetic";

/// Samples that are drawn when they are wanted.
struct DrawnFile {
    count: usize,
    /// For each input its type and shape.
    arrays: Vec<Stored>,
}

/// Decides on the dimensions of every input.
///
/// # Errors
///
/// [`Error::Usage`] if a shape is for no input or not one that it takes, or an input has none; [`Error::Limit`] if samples are too large.
pub(super) fn open(drawn: &Drawn, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    if drawn.count == 0 {
        return Err(Error::Usage("--synthetic: expected at least 1 sample, found 0".into()));
    }
    if let Some((name, _)) = drawn.shapes.iter().find(|(name, _)| context.inputs.iter().all(|input| input.name != *name)) {
        let found = format!("--input-shape: expected an input of the model, found {}", show_name(name));
        return Err(Error::Usage(found).with_hint(format!("it takes {}", super::signature::show_inputs(context.inputs))));
    }
    let stored = |input: &InputSpec| -> Result<Stored> {
        let given = drawn.shapes.iter().rev().find(|(name, _)| *name == input.name).map(|(_, shape)| shape);
        let shape = match (given, &input.shape) {
            (Some(given), Some(expected)) if !fits(expected, given) => {
                let (name, expected) = (show_name(&input.name), show_shape(expected));
                return Err(Error::Usage(format!("--input-shape: {name}: expected {expected}, found {given:?}")));
            }
            (Some(given), _) => given.clone(),
            (None, Some(expected)) => expected.iter().map(|dim| dim.unwrap_or(1)).collect(),
            (None, None) => {
                let found = format!("--synthetic: {}: expected an input with dimensions, found none in the model", show_name(&input.name));
                return Err(Error::Usage(found).with_hint("--input-shape NAME=1x3x224x224 gives them"));
            }
        };
        Ok(Stored::plain(input.dtype.unwrap_or(Dtype::F32), shape))
    };
    let arrays = context.inputs.iter().map(stored).collect::<Result<Vec<_>>>()?;
    if let Some(array) = arrays.iter().find(|array| array.size().is_none()) {
        return Err(Error::Usage(format!("--input-shape: expected dimensions whose product is a size, found {:?}", array.shape)));
    }
    check_sample(Path::new(PLACE), None, context, &arrays.iter().collect::<Vec<_>>())?;
    Ok(Box::new(DrawnFile { count: drawn.count, arrays }))
}

impl SampleFile for DrawnFile {
    fn len(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>> {
        let draw = |(place, stored): (usize, &Stored)| {
            let mut random = Random::new(0, index * inputs.len() + place);
            let data = if stored.dtype.is_decodable() {
                // 24 bits, which a float holds exactly.
                let mut values: Vec<f32> =
                    (0..stored.elements()).map(|_| (random.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect();
                round(stored.dtype, &mut values);
                Data::Float(values)
            } else {
                Data::Int((0..stored.elements()).map(|_| random.below(2) as i64).collect())
            };
            Array { dtype: stored.dtype, shape: stored.shape.clone(), data }
        };
        Ok(self.arrays.iter().enumerate().map(draw).collect())
    }

    fn files(&self) -> Vec<&MappedFile> {
        Vec::new()
    }
}

/// What is to be noted of a run on random samples: dimensions that were taken as 1 too.
pub(crate) fn note(drawn: &Drawn, inputs: &[InputSpec]) -> String {
    let is_open = |input: &&InputSpec| {
        let is_given = drawn.shapes.iter().any(|(name, _)| *name == input.name);
        !is_given && input.shape.as_ref().is_some_and(|shape| shape.contains(&None))
    };
    let open: Vec<InputSpec> = inputs.iter().filter(is_open).cloned().collect();
    let open = match open.is_empty() {
        true => String::new(),
        false => format!("; dimensions that the model leaves open are 1 (--input-shape): {}", super::signature::show_inputs(&open)),
    };
    format!("--synthetic: what random inputs show of ranges and errors does not hold for real ones: to try, not to ship{open}")
}
