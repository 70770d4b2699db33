//! NumPy's `.npy`: one array, written by `numpy.save`.
//!
//! The [format](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) is `\x93NUMPY`, two bytes of
//! version, the header's length as `u16` (version 1) or `u32` (2 and 3) little-endian, the header, which is a Python
//! dictionary `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }` in Latin-1 (UTF-8 in version 3), the elements.
//!
//! The header is parsed for just that dictionary; nothing is evaluated. Objects (which are pickles), texts, dates, complex
//! numbers, structures and raw bytes are refused. Stricter than NumPy: bytes after the array are an error, because a
//! second `numpy.save` to the same file would be lost in silence.

use super::decode::{Stored, read_array};
use super::signature::{InputSpec, check_array, fits, show_inputs};
use super::{Context, Origin, SampleFile, SampleLimits, check_sample};
use crate::calibration::array::Array;
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::shorten;
use crate::limits::raised_by;
use crate::tensor::Dtype;
use std::io::Read;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Whether a file begins as the format says.
pub(super) fn recognizes(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The header of an array.
pub(super) struct Header {
    pub stored: Stored,
    /// Bytes before the elements.
    pub len: usize,
}

/// Reads the header of an array of `size` bytes, header included, and leaves `source` at the first element.
///
/// # Errors
///
/// If it is malformed or of an unsupported type, if the array is not `size` bytes long, or a limit is exceeded.
pub(super) fn read_header(origin: &Origin<'_>, source: &mut dyn Read, size: u64, limits: &SampleLimits) -> Result<Header> {
    let malformed = |message: String| origin.error(format!("npy header: {message}"));
    let mut read = |bytes: &mut [u8]| source.read_exact(bytes).map_err(|e| malformed(format!("expected {} bytes, found {e}", bytes.len())));
    let mut start = [0; 8];
    if size < start.len() as u64 {
        return Err(malformed(format!("expected at least 8 bytes, found {size}")));
    }
    read(&mut start)?;
    if !recognizes(&start) {
        return Err(malformed(format!("expected \\x93NUMPY, found \"{}\"", start[..MAGIC.len()].escape_ascii())));
    }
    let length_bytes = match start[6..] {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        [major, minor] => return Err(malformed(format!("version: expected 1.0, 2.0 or 3.0, found {major}.{minor}"))),
        _ => unreachable!("two bytes are left of eight"),
    };
    let prefix = start.len() as u64 + length_bytes as u64;
    let available = size.checked_sub(prefix).ok_or_else(|| malformed(format!("expected at least {prefix} bytes, found {size}")))?;
    let mut length = [0; 4];
    read(&mut length[..length_bytes])?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > available {
        return Err(malformed(format!("expected {length} bytes as its length says, found {available}")));
    }
    if length > limits.max_header_bytes {
        return Err(raised_by(origin.limit("npy header: limit of bytes", limits.max_header_bytes, length), "npy-header-bytes"));
    }
    let mut text = vec![0; length as usize];
    read(&mut text)?;
    let text = match start[6] {
        3 => String::from_utf8(text).map_err(|e| malformed(format!("expected UTF-8, found {e}")))?,
        _ => text.into_iter().map(char::from).collect(),
    };
    let stored = parse(&text, limits).map_err(|problem| match problem {
        Problem::Malformed(message) => malformed(message),
        Problem::Unsupported(message, hint) => origin.error(message).with_hint(hint),
        Problem::Rank(found) => raised_by(origin.limit("shape: limit of dimensions", limits.max_rank, found), "sample-rank"),
    })?;
    check_size(origin, &stored, available - length)?;
    Ok(Header { stored, len: (prefix + length) as usize })
}

/// The elements must be all that follows the header.
fn check_size(origin: &Origin<'_>, stored: &Stored, found: u64) -> Result<()> {
    let Some((_, expected)) = stored.size() else {
        return Err(origin.error(format!("shape: expected a size in 64 bits, found an overflow of {:?}", stored.shape)));
    };
    if expected as u64 == found {
        return Ok(());
    }
    let why = if found > expected as u64 { "trailing bytes after the array" } else { "the array is cut off" };
    Err(origin.error(format!("data: expected {expected} bytes for {} {:?}, found {found}: {why}", stored.dtype, stored.shape)))
}

/// What is wrong with the text of a header.
enum Problem {
    Malformed(String),
    /// A type that samples cannot have, and what to do.
    Unsupported(String, &'static str),
    /// More dimensions than the limit.
    Rank(u64),
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Problem::Malformed(message)
    }
}

fn parse(text: &str, limits: &SampleLimits) -> Result<Stored, Problem> {
    let mut cursor = Cursor { rest: text };
    let (mut descr, mut column_major, mut shape) = (None, None, None);
    cursor.expect('{')?;
    while !cursor.eat('}') {
        let key = cursor.text()?;
        cursor.expect(':')?;
        let is_new = match key {
            "descr" => descr.replace(cursor.element_type()?).is_none(),
            "fortran_order" => column_major.replace(cursor.boolean()?).is_none(),
            "shape" => shape.replace(cursor.shape(limits.max_rank)?).is_none(),
            other => return Err(format!("expected the keys descr, fortran_order and shape, found {}", quote(other)).into()),
        };
        if !is_new {
            return Err(format!("expected every key once, found {} twice", quote(key)).into());
        }
        if !cursor.eat(',') {
            cursor.expect('}')?;
            break;
        }
    }
    if !cursor.peek().is_empty() {
        return Err(cursor.wrong("nothing after the dictionary").into());
    }
    let missing = |key: &str| Problem::Malformed(format!("expected the key {key}, found none"));
    let (dtype, big_endian) = descr.ok_or_else(|| missing("descr"))?;
    let column_major = column_major.ok_or_else(|| missing("fortran_order"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    Ok(Stored { dtype, shape, big_endian, column_major })
}

fn quote(text: &str) -> String {
    shorten(&format!("{text:?}"))
}

/// Reads the few Python literals that headers are made of.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// What is left after white space.
    fn peek(&mut self) -> &'a str {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\t', '\r']);
        self.rest
    }

    fn wrong(&mut self, expected: &str) -> String {
        let rest: String = self.peek().chars().take(24).collect();
        format!("expected {expected}, found {}", if rest.is_empty() { "its end".to_owned() } else { quote(&rest) })
    }

    fn eat(&mut self, wanted: char) -> bool {
        let rest = self.peek().strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.eat(wanted) { Ok(()) } else { Err(self.wrong(&format!("`{wanted}`"))) }
    }

    /// A text in single or double quotes, without escapes, which no key or type needs.
    fn text(&mut self) -> Result<&'a str, String> {
        let rest = self.peek();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        match quote.and_then(|quote| rest[1..].split_once(quote)) {
            Some((text, rest)) if !text.contains('\\') => {
                self.rest = rest;
                Ok(text)
            }
            _ => Err(self.wrong("a text in quotes")),
        }
    }

    fn boolean(&mut self) -> Result<bool, String> {
        let rest = self.peek();
        for (name, value) in [("True", true), ("False", false)] {
            if let Some(rest) = rest.strip_prefix(name) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.wrong("True or False"))
    }

    /// A tuple of dimensions: `()`, `(4,)`, `(1, 4)`.
    fn shape(&mut self, max_rank: u64) -> Result<Vec<usize>, Problem> {
        let mut shape = Vec::new();
        if !self.eat('(') {
            return Err(self.wrong("a tuple of dimensions").into());
        }
        while !self.eat(')') {
            shape.push(self.dimension()?);
            if shape.len() as u64 > max_rank {
                // What is left has about as many dimensions as commas; the number is for a message.
                let more = self.rest.split(')').next().unwrap_or_default().matches(',').count();
                return Err(Problem::Rank(shape.len() as u64 + more.saturating_sub(1) as u64));
            }
            // `(4)` is a number in Python, not a tuple.
            if !self.eat(',') {
                if shape.len() == 1 {
                    return Err(self.wrong("`,` after the only dimension").into());
                }
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn dimension(&mut self) -> Result<usize, String> {
        let rest = self.peek();
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..end].parse().map_err(|_| self.wrong("a dimension in 64 bits"))?;
        // Python 2 wrote long integers with a suffix.
        self.rest = rest[end..].strip_prefix('L').unwrap_or(&rest[end..]);
        Ok(number)
    }

    /// The type of elements and whether they are big-endian.
    fn element_type(&mut self) -> Result<(Dtype, bool), Problem> {
        if self.peek().starts_with('[') {
            return Err(unsupported("a structure of several fields", "save each field as an array of its own"));
        }
        let descr = self.text()?;
        element_type(descr)
    }
}

fn unsupported(found: &str, hint: &'static str) -> Problem {
    Problem::Unsupported(format!("dtype: expected integers, floats or booleans, found {found}"), hint)
}

/// A type as `numpy.dtype(…).str` spells it: byte order, kind, bytes. Without an order it is that of the machine, which
/// is little-endian wherever NumPy is used in earnest.
fn element_type(descr: &str) -> Result<(Dtype, bool), Problem> {
    let (order, name) = descr.split_at_checked(1).unwrap_or_default();
    let (big_endian, name) = match order {
        ">" => (true, name),
        "<" | "=" | "|" => (false, name),
        _ => (false, descr),
    };
    let dtype = match name {
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "i1" => Dtype::I8,
        "i2" => Dtype::I16,
        "i4" => Dtype::I32,
        "i8" => Dtype::I64,
        "u1" => Dtype::U8,
        "u2" => Dtype::U16,
        "u4" => Dtype::U32,
        "u8" => Dtype::U64,
        "b1" => Dtype::Bool,
        _ => {
            let shown = quote(descr);
            let as_numbers = "convert it when saving, such as with array.astype(numpy.float32)";
            return Err(match name.as_bytes().first() {
                Some(b'O') => unsupported(&format!("Python objects ({shown}), a pickle, which is never loaded"), as_numbers),
                Some(b'U' | b'S' | b'a') => unsupported(&format!("texts ({shown})"), as_numbers),
                Some(b'c') => unsupported(&format!("complex numbers ({shown})"), "save real and imaginary parts as the model takes them"),
                Some(b'M' | b'm') => unsupported(&format!("dates or times ({shown})"), as_numbers),
                // ml_dtypes' bfloat16 and FP8 are saved as bytes without a meaning.
                Some(b'V') => unsupported(&format!("raw bytes ({shown})"), as_numbers),
                _ => unsupported(&shown, as_numbers),
            });
        }
    };
    Ok((dtype, big_endian))
}

/// A `.npy` file of one sample, or of as many as its first axis counts.
struct NpyFile {
    file: MappedFile,
    header: Header,
    /// How each sample is stored. Column-major arrays of several samples are gathered.
    sample: Stored,
    /// `None` if the whole array is one sample.
    count: Option<usize>,
}

/// Opens a `.npy` file, which has no names: the model must have one input.
pub(super) fn open(file: MappedFile, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    let path = file.path().to_owned();
    let [input] = context.inputs else {
        let message = format!("inputs: expected {}, found one array without a name", show_inputs(context.inputs));
        return Err(Error::malformed(&path, message).with_hint("save all inputs by name: numpy.savez(FILE, NAME=array, …)"));
    };
    let nameless = Origin { key: None, ..Origin::of(&path, "") };
    let header = read_header(&nameless, &mut file.bytes(), file.bytes().len() as u64, context.limits)?;
    let mut sample = header.stored.clone();
    let rank = input.shape.as_ref().map(Vec::len);
    let count = rank.is_some_and(|rank| sample.shape.len() == rank + 1).then(|| sample.shape.remove(0));
    let origin = Origin::of(&path, &input.name);
    if count == Some(0) {
        return Err(origin.error(format!("shape: expected at least one sample, found no samples in {:?}", header.stored.shape)));
    }
    if count.is_some() && !fits(input.shape.as_deref().unwrap_or_default(), &sample.shape) {
        // The axis that counts samples is part of what was found.
        check_array(&origin, input, sample.dtype, &header.stored.shape)?;
    }
    check_sample(&path, None, context, &[&sample])?;
    Ok(Box::new(NpyFile { file, header, sample, count }))
}

impl SampleFile for NpyFile {
    fn len(&self) -> usize {
        self.count.unwrap_or(1)
    }

    fn read(&self, index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>> {
        let origin = Origin { sample: self.count.map(|_| index as u64), ..Origin::of(self.file.path(), &inputs[0].name) };
        let data = &self.file.bytes()[self.header.len..];
        let (size, elements) = (self.sample.element_bytes(), self.sample.elements());
        let array = match self.count {
            // The first axis is the fastest: the elements of a sample lie apart.
            Some(count) if self.sample.column_major => {
                let gathered: Vec<u8> = data.chunks_exact(size).skip(index).step_by(count).flatten().copied().collect();
                read_array(&origin, &inputs[0], &self.sample, &mut &gathered[..])
            }
            _ => read_array(&origin, &inputs[0], &self.sample, &mut &data[index * elements * size..]),
        };
        Ok(vec![array?])
    }

    fn files(&self) -> Vec<&MappedFile> {
        vec![&self.file]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const DATA: &str = "'descr': '<f4', 'fortran_order': False, ";

    fn read(version: u8, text: &str, data: usize) -> Result<Stored, String> {
        let mut bytes = [&MAGIC[..], &[version, 0]].concat();
        match version {
            1 => bytes.extend((text.len() as u16).to_le_bytes()),
            _ => bytes.extend((text.len() as u32).to_le_bytes()),
        }
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        let origin = Origin { key: None, ..Origin::of(Path::new("f"), "") };
        let mut source = &bytes[..];
        let header = read_header(&origin, &mut source, bytes.len() as u64, &SampleLimits::default());
        header.map(|header| header.stored).map_err(|e| e.to_string())
    }

    #[test]
    fn headers_are_read_in_any_layout_that_numpy_accepts() {
        for (version, text, shape) in [
            (1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }      \n", &[1, 2][..]),
            (2, "{'shape': (1, 2), 'descr': '<f4', 'fortran_order': False}", &[1, 2]),
            (3, "{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"<f4\"}", &[2]),
            (1, "{'descr': '=f4', 'fortran_order': False, 'shape': (2L, 1L), }", &[2, 1]),
            (1, " { 'descr' : 'f4' , 'fortran_order' : False , 'shape' : ( 2 , ) } ", &[2]),
        ] {
            assert_eq!(read(version, text, 8), Ok(Stored::plain(Dtype::F32, shape.to_vec())), "{text}");
        }
        let scalar = "{'descr': '>i2', 'fortran_order': True, 'shape': ()}";
        let expected = Stored { dtype: Dtype::I16, shape: vec![], big_endian: true, column_major: true };
        assert_eq!(read(1, scalar, 2), Ok(expected));
        assert_eq!(read(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 7)}", 0), Ok(Stored::plain(Dtype::U8, vec![0, 7])));
    }

    #[test]
    fn headers_that_are_anything_else_are_refused() {
        let with_shape = |shape: &str| format!("{{{DATA}'shape': {shape}}}");
        let overflow = "(4611686018427387904, 4)";
        let cases: [(String, &str); 21] = [
            (String::new(), "npy header: expected `{`, found its end"),
            ("{".into(), "expected a text in quotes, found its end"),
            ("{'descr': __import__('os')}".into(), "expected a text in quotes, found \"__import__('os')}\""),
            ("{'descr': '<f4', 'descr': '<f4'}".into(), "expected every key once, found \"descr\" twice"),
            ("{'descr': 4}".into(), "expected a text in quotes, found \"4}\""),
            ("{'descr': '\\x3cf4'}".into(), "expected a text in quotes"),
            ("{'fortran_order': 0}".into(), "expected True or False, found \"0}\""),
            ("{'other': 1}".into(), "expected the keys descr, fortran_order and shape, found \"other\""),
            (format!("{{{DATA}}}"), "expected the key shape, found none"),
            ("{'shape': (2,)}".into(), "expected the key descr, found none"),
            (with_shape("[2]"), "expected a tuple of dimensions, found \"[2]}\""),
            (with_shape("(2)"), "expected `,` after the only dimension"),
            (with_shape("(2.0,)"), "found \".0,)}\""),
            (with_shape("(-1,)"), "expected a dimension in 64 bits, found \"-1,)}\""),
            (with_shape("(99999999999999999999,)"), "expected a dimension in 64 bits"),
            (with_shape("((2,),)"), "expected a dimension in 64 bits"),
            (with_shape("(2,)") + "x", "expected nothing after the dictionary, found \"x\""),
            (with_shape(overflow), "shape: expected a size in 64 bits, found an overflow of [4611686018427387904, 4]"),
            (with_shape("(3,)"), "data: expected 12 bytes for F32 [3], found 8: the array is cut off"),
            (with_shape("(1,)"), "data: expected 4 bytes for F32 [1], found 8: trailing bytes after the array"),
            (with_shape(&format!("({})", "1,".repeat(65))), "shape: limit of dimensions: expected at most 64, found 65"),
        ];
        for (text, part) in cases {
            match read(1, &text, 8) {
                Err(message) => assert!(message.contains(part), "{part}: {message}"),
                Ok(stored) => panic!("{part}: {stored:?}"),
            }
        }
        assert_eq!(read(4, "", 8).unwrap_err(), "f: npy header: version: expected 1.0, 2.0 or 3.0, found 4.0");
    }
}
