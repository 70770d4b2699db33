//! Arithmetic on constants, element by element, with the broadcasting of NumPy.
//!
//! Integers that leave the range of their type, divisions by zero and conversions that would not be exact in the
//! specification's sense are not computed.

use super::super::SMALL;
use super::value::{Constant, Numbers, integer_range};
use crate::formats::onnx::proto::NodeProto;
use crate::formats::onnx::tensor::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16};

/// Functions of one number.
pub(super) fn unary(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x)] = inputs else { return None };
    macro_rules! float {
        ($values:expr) => {
            match node.op_type.as_str() {
                "Abs" => $values.iter().map(|v| v.abs()).collect(),
                "Ceil" => $values.iter().map(|v| v.ceil()).collect(),
                "Exp" => $values.iter().map(|v| v.exp()).collect(),
                "Floor" => $values.iter().map(|v| v.floor()).collect(),
                "Neg" => $values.iter().map(|v| -v).collect(),
                "Reciprocal" => $values.iter().map(|v| 1.0 / v).collect(),
                "Sqrt" => $values.iter().map(|v| v.sqrt()).collect(),
                _ => return None,
            }
        };
    }
    let numbers = match x.numbers()? {
        Numbers::Floats(values) => Numbers::Floats(float!(values)),
        Numbers::Doubles(values) => Numbers::Doubles(float!(values)),
        Numbers::Ints(values) => Numbers::Ints(match node.op_type.as_str() {
            "Abs" => values.iter().map(|v| v.checked_abs()).collect::<Option<_>>()?,
            "Neg" => values.iter().map(|v| v.checked_neg()).collect::<Option<_>>()?,
            _ => return None,
        }),
    };
    Constant::from_numbers(x.code, x.shape.clone(), &numbers)
}

/// Functions of two numbers of one type.
pub(super) fn binary(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(a), Some(b)] = inputs else { return None };
    // Before version 7 an attribute said how to broadcast.
    if a.code != b.code || a.code == BOOL || !node.attribute.is_empty() {
        return None;
    }
    let (shape, places) = broadcast(&a.shape, &b.shape)?;
    macro_rules! float {
        ($a:expr, $b:expr) => {{
            let pairs = places.iter().map(|(i, j)| ($a[*i], $b[*j]));
            match node.op_type.as_str() {
                "Add" => pairs.map(|(x, y)| x + y).collect(),
                "Sub" => pairs.map(|(x, y)| x - y).collect(),
                "Mul" => pairs.map(|(x, y)| x * y).collect(),
                "Div" => pairs.map(|(x, y)| x / y).collect(),
                "Max" | "Min" if $a.iter().chain(&$b).any(|x| x.is_nan()) => return None,
                "Max" => pairs.map(|(x, y)| x.max(y)).collect(),
                "Min" => pairs.map(|(x, y)| x.min(y)).collect(),
                _ => return None,
            }
        }};
    }
    let numbers = match (a.numbers()?, b.numbers()?) {
        (Numbers::Floats(a), Numbers::Floats(b)) => Numbers::Floats(float!(a, b)),
        (Numbers::Doubles(a), Numbers::Doubles(b)) => Numbers::Doubles(float!(a, b)),
        (Numbers::Ints(a), Numbers::Ints(b)) => {
            let compute = |x: i64, y: i64| match node.op_type.as_str() {
                "Add" => x.checked_add(y),
                "Sub" => x.checked_sub(y),
                "Mul" => x.checked_mul(y),
                // Runtimes do not agree on which way quotients of negative numbers are rounded.
                "Div" if x >= 0 && y > 0 => x.checked_div(y),
                "Max" => Some(x.max(y)),
                "Min" => Some(x.min(y)),
                _ => None,
            };
            Numbers::Ints(places.iter().map(|(i, j)| compute(a[*i], b[*j])).collect::<Option<_>>()?)
        }
        _ => return None,
    };
    Constant::from_numbers(a.code, shape, &numbers)
}

/// Pow of a float base, to an exponent of whatever type.
pub(super) fn power(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(a), Some(b)] = inputs else { return None };
    if !node.attribute.is_empty() {
        return None;
    }
    let (shape, places) = broadcast(&a.shape, &b.shape)?;
    let exponents: Vec<f64> = match b.numbers()? {
        Numbers::Floats(values) => values.into_iter().map(f64::from).collect(),
        Numbers::Doubles(values) => values,
        Numbers::Ints(values) => values.into_iter().map(|value| value as f64).collect(),
    };
    let numbers = match a.numbers()? {
        Numbers::Floats(a) => Numbers::Floats(places.iter().map(|(i, j)| f64::from(a[*i]).powf(exponents[*j]) as f32).collect()),
        Numbers::Doubles(a) => Numbers::Doubles(places.iter().map(|(i, j)| a[*i].powf(exponents[*j])).collect()),
        Numbers::Ints(_) => return None,
    };
    Constant::from_numbers(a.code, shape, &numbers)
}

/// Conversion between numbers. Floats become integers towards zero, if they fit.
pub(super) fn cast(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x)] = inputs else { return None };
    let to = node.attribute("to")?.i?;
    if to == x.code {
        return Some(x.clone());
    }
    let numbers = match (to, x.numbers()?) {
        (BOOL, Numbers::Floats(values)) => Numbers::Ints(values.iter().map(|v| i64::from(*v != 0.0)).collect()),
        (BOOL, Numbers::Doubles(values)) => Numbers::Ints(values.iter().map(|v| i64::from(*v != 0.0)).collect()),
        (BOOL, Numbers::Ints(values)) => Numbers::Ints(values.iter().map(|v| i64::from(*v != 0)).collect()),
        (FLOAT | FLOAT16 | BFLOAT16, Numbers::Doubles(values)) => Numbers::Floats(values.iter().map(|v| *v as f32).collect()),
        (FLOAT | FLOAT16 | BFLOAT16, Numbers::Ints(values)) => Numbers::Floats(values.iter().map(|v| *v as f32).collect()),
        (FLOAT | FLOAT16 | BFLOAT16, floats) => floats,
        (DOUBLE, Numbers::Floats(values)) => Numbers::Doubles(values.iter().map(|v| f64::from(*v)).collect()),
        (DOUBLE, Numbers::Ints(values)) => Numbers::Doubles(values.iter().map(|v| *v as f64).collect()),
        (_, Numbers::Floats(values)) => truncated(values.iter().map(|v| f64::from(*v)))?,
        (_, Numbers::Doubles(values)) => truncated(values.iter().copied())?,
        (_, ints) => ints,
    };
    Constant::from_numbers(to, x.shape.clone(), &numbers)
}

/// Integers towards zero, if all are of a size that f64 holds exactly.
fn truncated(values: impl Iterator<Item = f64>) -> Option<Numbers> {
    let exact = 2f64.powi(53);
    values.map(|v| (v.abs() <= exact).then_some(v as i64)).collect::<Option<_>>().map(Numbers::Ints)
}

/// Range of integers.
pub(super) fn range(_node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(start), Some(limit), Some(delta)] = inputs else { return None };
    integer_range(start.code)?;
    let one = |constant: &Constant| constant.to_ints().filter(|values| values.len() == 1).map(|values| i128::from(values[0]));
    let (start_at, limit, delta) = (one(start)?, one(limit)?, one(delta)?);
    if delta == 0 {
        return None;
    }
    let distance = if delta > 0 { limit - start_at } else { start_at - limit };
    let count = (distance.max(0) + delta.abs() - 1) / delta.abs();
    let count = usize::try_from(count).ok().filter(|count| *count <= SMALL)?;
    let values = (0..count).map(|i| i64::try_from(start_at + i as i128 * delta).ok()).collect::<Option<_>>()?;
    Constant::from_numbers(start.code, vec![count], &Numbers::Ints(values))
}

/// Where the elements of two constants are that meet in each element of a result, row-major.
type Places = Vec<(usize, usize)>;

/// The shape that two shapes broadcast to, and for each of its elements the places of the two that meet there. Nothing
/// if they do not match or the result is not [`SMALL`].
fn broadcast(a: &[usize], b: &[usize]) -> Option<(Vec<usize>, Places)> {
    let rank = a.len().max(b.len());
    let padded = |shape: &[usize]| [vec![1; rank - shape.len()], shape.to_vec()].concat();
    let (a, b) = (padded(a), padded(b));
    let mut shape = Vec::with_capacity(rank);
    for (x, y) in a.iter().zip(&b) {
        shape.push(match (*x, *y) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return None,
        });
    }
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim).filter(|size| *size <= SMALL))?;
    // Grown one axis at a time: an axis of size 1 stays at its only place.
    let mut places = vec![(0, 0)];
    for ((x, y), size) in a.iter().zip(&b).zip(&shape) {
        let step = |own: usize, place: usize, i: usize| if own == 1 { place } else { place * own + i };
        places = places.iter().flat_map(|(p, q)| (0..*size).map(move |i| (step(*x, *p, i), step(*y, *q, i)))).collect();
    }
    Some((shape, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_last_axis() {
        assert_eq!(broadcast(&[2, 1], &[3]), Some((vec![2, 3], vec![(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)])));
        assert_eq!(broadcast(&[], &[2]), Some((vec![2], vec![(0, 0), (0, 1)])));
        assert_eq!(broadcast(&[0], &[1]), Some((vec![0], vec![])));
        assert_eq!(broadcast(&[2], &[3]), None);
        assert_eq!(broadcast(&[1 << 9, 1], &[1 << 9]), None, "too large");
    }
}
