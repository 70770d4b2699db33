//! Reads samples as calibration does, for several kinds of inputs that a model may declare.

use crate::{check_error, sample_limits};
use qtool::calibration::array::Data;
use qtool::calibration::samples::{InputSpec, Samples};
use qtool::tensor::Dtype;
use std::path::Path;

/// Opens the file for inputs of these names and reads every sample, twice.
pub fn load_all(path: &Path, names: &[&str]) {
    let free = |name: &&str| InputSpec { name: (*name).to_owned(), dtype: None, shape: None };
    let declared = |name: &&str| InputSpec { dtype: Some(Dtype::F32), shape: Some(vec![None, Some(3)]), ..free(name) };
    let integer = |name: &&str| InputSpec { dtype: Some(Dtype::I32), ..free(name) };
    for inputs in [
        names.iter().map(free).collect::<Vec<_>>(),
        names[..1].iter().map(free).collect(),
        names.iter().map(declared).collect(),
        names[..1].iter().map(integer).collect(),
    ] {
        match Samples::open(&[path.to_owned()], &inputs, None, None, &sample_limits()) {
            Err(error) => check_error(&error, false),
            Ok(samples) => read(&samples, &inputs),
        }
    }
}

fn read(samples: &Samples, inputs: &[InputSpec]) {
    for index in 0..samples.len().min(4) {
        match samples.load(index) {
            // Whether values are finite is known only now.
            Err(error) => {
                check_error(&error, false);
                assert_eq!(error.exit_code(), 1, "a sample that was checked: {error}");
            }
            Ok(arrays) => {
                assert_eq!(arrays.len(), inputs.len());
                for ((name, array), input) in arrays.iter().zip(inputs) {
                    assert_eq!(*name, input.name);
                    let len = match &array.data {
                        Data::Float(values) => {
                            assert!(values.iter().all(|value| value.is_finite()), "{array:?}");
                            values.len()
                        }
                        Data::Int(values) => values.len(),
                    };
                    assert_eq!(len, array.shape.iter().product::<usize>(), "{:?}", array.shape);
                    assert!(input.dtype.is_none_or(|dtype| dtype == array.dtype), "{:?}", array.dtype);
                }
            }
        }
    }
}
