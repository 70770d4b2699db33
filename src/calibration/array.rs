//! A tensor in memory, as samples hold it and as an engine takes and returns it.

use crate::tensor::Dtype;

/// A tensor in memory: row-major values, outermost dimension first.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The element type that it is stored as, or that the model declares.
    pub dtype: Dtype,
    /// The dimensions; empty for a scalar. Their product is the number of values.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Data,
}

/// The values of an [`Array`], by kind: every type that models calculate with converts to one of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// F32; F16, BF16 and FP8 without loss; F64 rounded to nearest.
    Float(Vec<f32>),
    /// Integers of any width, and booleans as 0 and 1.
    Int(Vec<i64>),
}

impl Data {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Data::Float(values) => values.len(),
            Data::Int(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Array {
    /// The values as floats, if they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(values) => Some(values),
            Data::Int(_) => None,
        }
    }
}

/// Of two arrays of classes, `[batch, classes]` or `[batch, steps, classes]`: number of rows, and of those whose largest value is the
/// same. `None` for other arrays. Rows with NaN, of which none is the largest, are the same only as themselves.
pub(crate) fn decisions(expected: &Array, found: &Array) -> Option<[u64; 2]> {
    let (a, b) = (expected.floats()?, found.floats()?);
    let ([_, classes] | [_, _, classes]) = expected.shape[..] else { return None };
    if classes < 2 || expected.shape != found.shape {
        return None;
    }
    let rows = a.chunks_exact(classes).zip(b.chunks_exact(classes));
    let is_same = |a: &[f32], b: &[f32]| match a.iter().chain(b).any(|value| value.is_nan()) {
        true => a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())),
        false => largest(a) == largest(b),
    };
    Some(rows.fold([0, 0], |[rows, same], (a, b)| [rows + 1, same + u64::from(is_same(a, b))]))
}

/// Place of the first of the largest values.
fn largest(values: &[f32]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, value)| if *value > values[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_a_largest_value_decide_nothing() {
        let array = |values: [f32; 6]| Array { dtype: Dtype::F32, shape: vec![2, 3], data: Data::Float(values.to_vec()) };
        let float = array([3.0, 1.0, 2.0, 0.0, 5.0, f32::NEG_INFINITY]);
        let nan = f32::NAN;
        for (found, same) in [
            (array([30.0, 10.0, 20.0, 0.0, 1.0, 0.5]), 2),
            (array([nan, nan, nan, 0.0, 1.0, 0.0]), 1),
            (array([3.0, nan, 2.0, nan, nan, nan]), 0),
        ] {
            assert_eq!(decisions(&float, &found), Some([2, same]));
        }
        let masked = array([nan, 1.0, 2.0, 0.0, 1.0, 0.0]);
        assert_eq!(decisions(&masked, &masked.clone()), Some([2, 2]));
    }
}
