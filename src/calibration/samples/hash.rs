//! A hash over samples, the same however files store them.
//!
//! Hashed are, for each sample: `u64` number of arrays, then for each array `u64` length and bytes of its name, the same
//! of the name of its type, `u64` number of dimensions, each dimension as `u64`, and its values: floats as 4 bytes,
//! integers as 8. Numbers are little-endian.

use crate::calibration::array::{Array, Data};

/// Values that are turned into bytes at a time.
const CHUNK: usize = 2048;

/// Hashes samples one after the other.
#[derive(Clone, Default)]
pub struct SamplesHasher(blake3::Hasher);

impl SamplesHasher {
    /// Adds a sample as [`super::Samples::load`] returns it.
    pub fn update(&mut self, sample: &[(String, Array)]) {
        self.number(sample.len());
        for (name, array) in sample {
            for text in [name, array.dtype.name()] {
                self.number(text.len());
                self.0.update(text.as_bytes());
            }
            self.number(array.shape.len());
            array.shape.iter().for_each(|dim| self.number(*dim));
            match &array.data {
                Data::Float(values) => self.values(values, |value| value.to_le_bytes()),
                Data::Int(values) => self.values(values, |value| value.to_le_bytes()),
            }
        }
    }

    /// The hash as 64 hexadecimal digits.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_le_bytes());
    }

    fn values<T: Copy, const N: usize>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; N]) {
        let mut buffer = [[0; N]; CHUNK];
        for values in values.chunks(CHUNK) {
            let buffer = &mut buffer[..values.len()];
            buffer.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = to_bytes(*value));
            self.0.update(buffer.as_flattened());
        }
    }
}
