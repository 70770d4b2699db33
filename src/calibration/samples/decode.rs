//! Stored numbers become the values that a model declares, from whatever a file hands out.
//!
//! Floats are rounded to the declared type, to nearest even; integers must fit. Nothing changes its kind: a float is
//! never taken for an integer or a boolean. What is not finite afterwards is an error, for one NaN spoils every
//! statistic of the values that it reaches.

use super::Origin;
use super::signature::InputSpec;
use crate::calibration::array::{Array, Data};
use crate::error::Result;
use crate::tensor::{Dtype, decode_f32, encode_f32};
use std::io::Read;

/// Bytes that are converted at a time: a multiple of every element's size that fits the first-level cache.
const CHUNK: usize = 16 << 10;

/// How an array lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub big_endian: bool,
    /// Whether the first axis is the fastest, as in Fortran, instead of the last.
    pub column_major: bool,
}

impl Stored {
    /// Row-major and little-endian, as most formats are.
    pub(super) fn plain(dtype: Dtype, shape: Vec<usize>) -> Self {
        Stored { dtype, shape, big_endian: false, column_major: false }
    }

    /// Bytes of one element.
    ///
    /// # Panics
    ///
    /// If the type has no whole bytes; readers refuse those types.
    pub(super) fn element_bytes(&self) -> usize {
        self.dtype.bytes().expect("readers refuse types of less than a byte") as usize
    }

    /// Number of elements and of bytes, or `None` if they overflow. Zeros count as ones in that question, so that the
    /// answer does not depend on the order of dimensions.
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        let product = self.shape.iter().try_fold(1usize, |product, dim| product.checked_mul((*dim).max(1)))?;
        let bytes = product.checked_mul(self.element_bytes())?;
        Some(if self.shape.contains(&0) { (0, 0) } else { (product, bytes) })
    }

    /// Number of elements, of which [`Stored::size`] has been asked before.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the values take in memory: floats 4 each, integers 8.
    pub(super) fn memory(&self) -> u64 {
        let each = if self.dtype.is_decodable() { 4 } else { 8 };
        (self.elements() as u64).saturating_mul(each)
    }
}

/// Reads the values of an array, all of which `source` must have, as `input` declares them, row-major.
///
/// # Errors
///
/// If `source` ends early or fails, a value is not finite in the declared type, or an integer does not fit it.
pub(super) fn read_array(origin: &Origin<'_>, input: &InputSpec, stored: &Stored, source: &mut dyn Read) -> Result<Array> {
    let dtype = input.dtype.unwrap_or(stored.dtype);
    let data = if stored.dtype.is_decodable() {
        let mut values: Vec<f32> = reserve(origin, stored)?;
        read_chunks(origin, stored, source, |bytes, count| {
            let start = values.len();
            values.resize(start + count, 0.0);
            decode_f32(stored.dtype, bytes, &mut values[start..]);
        })?;
        if dtype != stored.dtype {
            round(dtype, &mut values);
        }
        let values = to_row_major(values, stored);
        check_finite(origin, dtype, &values)?;
        Data::Float(values)
    } else {
        let mut values: Vec<i64> = reserve(origin, stored)?;
        let mut too_large = false;
        read_chunks(origin, stored, source, |bytes, _| too_large |= !decode_integers(stored.dtype, bytes, &mut values))?;
        let values = to_row_major(values, stored);
        if too_large {
            return Err(origin.error(format!("values: expected integers of 64 bits with a sign, found larger ones of {}", stored.dtype)));
        }
        check_range(origin, dtype, &values)?;
        Data::Int(values)
    };
    Ok(Array { dtype, shape: stored.shape.clone(), data })
}

/// An empty vector with room for the values; a file that claims more than the machine has is no reason to abort.
fn reserve<T>(origin: &Origin<'_>, stored: &Stored) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(stored.elements()) {
        Ok(()) => Ok(values),
        Err(_) => Err(crate::Error::io(origin.path, "allocate memory for a sample", std::io::ErrorKind::OutOfMemory)),
    }
}

/// Hands out the elements in chunks of little-endian bytes, with their number.
fn read_chunks(origin: &Origin<'_>, stored: &Stored, source: &mut dyn Read, mut take: impl FnMut(&[u8], usize)) -> Result<()> {
    let size = stored.element_bytes();
    let mut buffer = [0; CHUNK];
    let mut left = stored.elements();
    while left > 0 {
        let count = left.min(CHUNK / size);
        let bytes = &mut buffer[..count * size];
        source.read_exact(bytes).map_err(|e| origin.error(format!("data: expected {left} more elements, found {e}")))?;
        if stored.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        take(bytes, count);
        left -= count;
    }
    Ok(())
}

/// Rounds to what `dtype` can hold.
pub(super) fn round(dtype: Dtype, values: &mut [f32]) {
    if matches!(dtype, Dtype::F32 | Dtype::F64) {
        return;
    }
    let size = dtype.bytes().expect("declared floats are whole bytes") as usize;
    let mut buffer = [0; CHUNK];
    for values in values.chunks_mut(CHUNK / size) {
        let bytes = &mut buffer[..values.len() * size];
        encode_f32(dtype, values, bytes);
        decode_f32(dtype, bytes, values);
    }
}

/// Appends the integers of `bytes`; `false` if one does not fit.
fn decode_integers(dtype: Dtype, bytes: &[u8], out: &mut Vec<i64>) -> bool {
    fn each<const N: usize>(bytes: &[u8], out: &mut Vec<i64>, decode: impl Fn([u8; N]) -> i64) {
        out.extend(bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)));
    }
    let start = out.len();
    match dtype {
        Dtype::Bool => each(bytes, out, |[b]| i64::from(b != 0)),
        Dtype::U8 => each(bytes, out, |[b]| i64::from(b)),
        Dtype::I8 => each(bytes, out, |b| i64::from(i8::from_le_bytes(b))),
        Dtype::U16 => each(bytes, out, |b| i64::from(u16::from_le_bytes(b))),
        Dtype::I16 => each(bytes, out, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U32 => each(bytes, out, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I32 => each(bytes, out, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::I64 => each(bytes, out, i64::from_le_bytes),
        Dtype::U64 => {
            each(bytes, out, |b| u64::from_le_bytes(b).cast_signed());
            return out[start..].iter().all(|value| *value >= 0);
        }
        other => unreachable!("readers refuse {other}"),
    }
    true
}

fn check_finite(origin: &Origin<'_>, dtype: Dtype, values: &[f32]) -> Result<()> {
    // Without a way out of the loop, so that it becomes vector code.
    if values.iter().fold(true, |finite, value| finite & value.is_finite()) {
        return Ok(());
    }
    let mut bad = values.iter().enumerate().filter(|(_, value)| !value.is_finite());
    let (index, value) = bad.next().expect("one is not finite");
    let more = match bad.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let found = format!("values: expected finite numbers in the range of {dtype}, found {value} at index {index}{more}");
    Err(origin.error(found).with_hint("leave the sample out, or find out where its values come from"))
}

/// Whether integers lie in the range of the declared type. Unsigned integers of 64 bits end at the largest of those
/// with a sign.
fn check_range(origin: &Origin<'_>, dtype: Dtype, values: &[i64]) -> Result<()> {
    let (min, max) = match dtype {
        Dtype::U8 => (0, i64::from(u8::MAX)),
        Dtype::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        Dtype::U16 => (0, i64::from(u16::MAX)),
        Dtype::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Dtype::U32 => (0, i64::from(u32::MAX)),
        Dtype::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Dtype::U64 => (0, i64::MAX),
        _ => return Ok(()),
    };
    match values.iter().position(|value| !(min..=max).contains(value)) {
        None => Ok(()),
        Some(at) => Err(origin.error(format!("values: expected integers in the range of {dtype}, found {} at index {at}", values[at]))),
    }
}

/// The same values with the last axis as the fastest.
fn to_row_major<T: Copy>(values: Vec<T>, stored: &Stored) -> Vec<T> {
    let shape = &stored.shape;
    if !stored.column_major || shape.len() < 2 || values.len() < 2 {
        return values;
    }
    let strides: Vec<usize> = shape
        .iter()
        .scan(1, |stride, dim| {
            let this = *stride;
            *stride *= dim;
            Some(this)
        })
        .collect();
    let mut at = vec![0; shape.len()];
    let mut offset = 0;
    let mut out = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        out.push(values[offset]);
        // The next index, from the last axis on; an axis that is full begins again and carries.
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            offset += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            at[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(stored: &Stored, declared: Option<Dtype>, mut bytes: &[u8]) -> Result<Array, String> {
        let input = InputSpec { name: "x".into(), dtype: declared, shape: None };
        read_array(&Origin::of(Path::new("f"), "x"), &input, stored, &mut bytes).map_err(|e| e.to_string())
    }

    struct Case {
        stored: Dtype,
        declared: Option<Dtype>,
        big_endian: bool,
        bytes: &'static [u8],
        expected: Result<Data, &'static str>,
    }

    #[test]
    fn numbers_become_what_the_model_declares() {
        use Data::{Float, Int};
        use Dtype::*;
        let case = |stored, declared, big_endian, bytes, expected| Case { stored, declared, big_endian, bytes, expected };
        let cases = [
            case(F32, None, false, &[0, 0, 0x80, 0x3f], Ok(Float(vec![1.0]))),
            case(F32, Some(F32), true, &[0x3f, 0x80, 0, 0], Ok(Float(vec![1.0]))),
            case(F16, Some(F32), true, &[0x3c, 0, 0xc0, 0], Ok(Float(vec![1.0, -2.0]))),
            case(F64, Some(F32), false, &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f], Ok(Float(vec![1.0]))),
            // 1e300 is finite, but not in f32.
            case(F64, Some(F32), true, &[0x7e, 0x37, 0xe4, 0x3c, 0x88, 0, 0x75, 0x9c], Err("range of F32, found inf at index 0")),
            case(F32, Some(F16), false, &[0, 0, 0x80, 0x47], Err("range of F16, found inf at index 0")),
            case(F32, Some(BF16), false, &[1, 0, 0x80, 0x3f], Ok(Float(vec![1.0]))),
            case(F32, Some(F32), false, &[0, 0, 0xc0, 0x7f, 0, 0, 0x80, 0xff], Err("found NaN at index 0 and 1 more")),
            case(BF16, None, false, &[0x80, 0x3f], Ok(Float(vec![1.0]))),
            case(I32, Some(I64), false, &[0xff, 0xff, 0xff, 0xff], Ok(Int(vec![-1]))),
            case(I64, Some(I32), true, &[0, 0, 0, 0, 0x80, 0, 0, 0], Err("range of I32, found 2147483648 at index 0")),
            case(I64, Some(U8), true, &[0, 0, 0, 0, 0, 0, 0, 255], Ok(Int(vec![255]))),
            case(I8, Some(U8), false, &[1, 255], Err("range of U8, found -1 at index 1")),
            case(U16, None, true, &[1, 2], Ok(Int(vec![258]))),
            case(U64, None, false, &[255; 8], Err("expected integers of 64 bits with a sign")),
            case(Bool, Some(Bool), false, &[0, 1, 2], Ok(Int(vec![0, 1, 1]))),
            case(F32, None, false, &[], Ok(Float(vec![]))),
        ];
        for (i, case) in cases.into_iter().enumerate() {
            let shape = vec![case.bytes.len() / case.stored.bytes().unwrap() as usize];
            let stored = Stored { big_endian: case.big_endian, ..Stored::plain(case.stored, shape) };
            match (read(&stored, case.declared, case.bytes), case.expected) {
                (Ok(array), Ok(expected)) => {
                    assert_eq!(array.data, expected, "case {i}");
                    assert_eq!(array.dtype, case.declared.unwrap_or(case.stored), "case {i}");
                }
                (Err(message), Err(part)) => assert!(message.contains(part), "case {i}: {message}"),
                (found, expected) => panic!("case {i}: expected {expected:?}, found {found:?}"),
            }
        }
    }

    #[test]
    fn many_chunks_are_one_array_and_a_short_source_is_an_error() {
        let bytes: Vec<u8> = (0..3 * CHUNK as u32).flat_map(|i| i.to_be_bytes()).collect();
        let stored = Stored { big_endian: true, ..Stored::plain(Dtype::U32, vec![3, CHUNK]) };
        let Data::Int(values) = read(&stored, None, &bytes).unwrap().data else { panic!("integers") };
        assert!(values.iter().copied().eq(0..3 * CHUNK as i64));
        let message = read(&stored, None, &bytes[1..]).unwrap_err();
        assert!(message.starts_with("f: tensor \"x\": data: expected "), "{message}");
    }

    #[test]
    fn arrays_of_fortran_are_turned() {
        // np.arange(24).reshape(2, 3, 4) in column-major order.
        let bytes: Vec<u8> =
            (0..4).flat_map(|k| (0..3).flat_map(move |j| (0..2).map(move |i| (12 * i + 4 * j + k) as u8))).collect::<Vec<_>>();
        let stored = Stored { column_major: true, ..Stored::plain(Dtype::U8, vec![2, 3, 4]) };
        assert_eq!(read(&stored, None, &bytes).unwrap().data, Data::Int((0..24).collect()));
    }
}
