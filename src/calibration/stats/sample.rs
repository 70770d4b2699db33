//! What tells one sample from another.

use crate::calibration::array::{Array, Data};
use blake3::{Hash, Hasher};

/// A hash of the inputs of a sample, by name: of types, shapes and values, in whatever order the inputs come, and whatever
/// kind of file they come from.
pub fn sample_hash<'a>(inputs: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Hash {
    let mut inputs: Vec<(&str, &Array)> = inputs.into_iter().collect();
    inputs.sort_by_key(|(name, _)| *name);
    let mut hasher = Hasher::new();
    for (name, array) in inputs {
        // With lengths, so that no two samples read the same.
        for text in [name, array.dtype.name()] {
            add_number(&mut hasher, text.len() as u64);
            hasher.update(text.as_bytes());
        }
        add_number(&mut hasher, array.shape.len() as u64);
        array.shape.iter().for_each(|dim| add_number(&mut hasher, *dim as u64));
        match &array.data {
            Data::Float(values) => add_values(&mut hasher, values, f32::to_le_bytes),
            Data::Int(values) => add_values(&mut hasher, values, i64::to_le_bytes),
        }
    }
    hasher.finalize()
}

fn add_number(hasher: &mut Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}

/// Values that are turned into bytes at a time.
const PIECE: usize = 1 << 14;

fn add_values<T: Copy, const N: usize>(hasher: &mut Hasher, values: &[T], to_bytes: fn(T) -> [u8; N]) {
    add_number(hasher, values.len() as u64);
    let mut bytes = Vec::with_capacity(PIECE * N);
    for piece in values.chunks(PIECE) {
        bytes.clear();
        piece.iter().for_each(|value| bytes.extend(to_bytes(*value)));
        hasher.update(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn the_hash_is_of_names_types_shapes_and_values() {
        let float =
            |shape: &[usize], values: &[f32]| Array { dtype: Dtype::F32, shape: shape.to_vec(), data: Data::Float(values.to_vec()) };
        let (a, b) = (float(&[2], &[1.0, 2.0]), float(&[1], &[0.0]));
        let hash = sample_hash([("a", &a), ("b", &b)]);
        assert_eq!(hash, sample_hash([("b", &b), ("a", &a)]));
        for (what, other) in [
            ("name", sample_hash([("a", &a), ("c", &b)])),
            ("names", sample_hash([("b", &a), ("a", &b)])),
            ("shape", sample_hash([("a", &float(&[2, 1], &[1.0, 2.0])), ("b", &b)])),
            ("value", sample_hash([("a", &float(&[2], &[1.0, 2.5])), ("b", &b)])),
            ("type", sample_hash([("a", &Array { dtype: Dtype::F16, ..a.clone() }), ("b", &b)])),
            ("kind", sample_hash([("a", &Array { data: Data::Int(vec![1, 2]), ..a.clone() }), ("b", &b)])),
            ("number", sample_hash([("a", &a)])),
        ] {
            assert_ne!(hash, other, "{what}");
        }
    }
}
