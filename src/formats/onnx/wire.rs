//! The protocol buffers wire format, read without copying and written in segments.
//!
//! A message is a sequence of fields: a varint `number << 3 | type`, then a varint (type 0), eight bytes (1), a varint
//! length and as many bytes (2), or four bytes (5); see <https://protobuf.dev/programming-guides/encoding/>. Groups (3
//! and 4) are long out of use and refused. Long values stay in the file's map: a [`Bytes`] is a part of it.
//!
//! A library is not used here because none does what this needs: keep unknown fields, leave gigabytes of weights in the
//! map, bound what a hostile file can make grow, and write a file whose largest parts are computed while it is written.

use bytes::{Buf, Bytes};

/// What is wrong with a message, in words that follow `protobuf: `.
pub(crate) type WireResult<T> = Result<T, String>;

/// Default of the deepest nesting of messages, as in the reference implementation.
pub(crate) const MAX_DEPTH: u64 = 100;

/// The value of one field.
#[derive(Debug)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Bytes),
    Fixed32([u8; 4]),
}

impl Value {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Varint(_) => "a varint",
            Value::Fixed64(_) => "eight bytes",
            Value::Bytes(_) => "a length",
            Value::Fixed32(_) => "four bytes",
        }
    }
}

/// One field as it was read.
pub(crate) struct RawField {
    pub number: u32,
    pub value: Value,
    /// The whole field, tag included, as it stands in the message.
    pub raw: Bytes,
}

/// Reads the next field off the front of `message`, or `None` at its end.
pub(crate) fn next_field(message: &mut Bytes) -> WireResult<Option<RawField>> {
    if message.is_empty() {
        return Ok(None);
    }
    let whole = message.clone();
    let tag = take_varint(message)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
    let number = number.ok_or_else(|| format!("expected a field number from 1 to 536870911, found {}", tag >> 3))?;
    let value = match tag & 7 {
        0 => Value::Varint(take_varint(message)?),
        1 => Value::Fixed64(take_array(message)?),
        2 => {
            let len = take_varint(message)?;
            let available = message.len();
            let len = usize::try_from(len).ok().filter(|len| *len <= available);
            Value::Bytes(
                message.split_to(len.ok_or_else(|| format!("field {number}: expected a length of at most {available}, found more"))?),
            )
        }
        5 => Value::Fixed32(take_array(message)?),
        other => return Err(format!("field {number}: expected wire type 0, 1, 2 or 5, found {other}")),
    };
    let raw = whole.slice(..whole.len() - message.len());
    Ok(Some(RawField { number, value, raw }))
}

/// Longest varint, in bytes.
const VARINT_BYTES: usize = 10;

pub(crate) fn take_varint(bytes: &mut Bytes) -> WireResult<u64> {
    let (value, len) = read_varint(bytes)?;
    bytes.advance(len);
    Ok(value)
}

/// The varint that `bytes` begin with, and its length.
pub(crate) fn read_varint(bytes: &[u8]) -> WireResult<(u64, usize)> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(VARINT_BYTES).enumerate() {
        if i == VARINT_BYTES - 1 && *byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok((value, i + 1));
        }
    }
    Err("expected a varint of at most 10 bytes, found none".into())
}

fn take_array<const N: usize>(bytes: &mut Bytes) -> WireResult<[u8; N]> {
    let array = bytes.first_chunk::<N>().copied().ok_or_else(|| format!("expected {N} bytes, found the end of the message"))?;
    bytes.advance(N);
    Ok(array)
}

/// One part of an encoded message.
#[derive(Debug)]
pub(crate) enum Segment {
    Owned(Vec<u8>),
    Shared(Bytes),
    /// `len` bytes that are known later; `id` says which.
    Deferred {
        id: usize,
        len: u64,
    },
}

impl Segment {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Segment::Owned(bytes) => bytes.len() as u64,
            Segment::Shared(bytes) => bytes.len() as u64,
            Segment::Deferred { len, .. } => *len,
        }
    }
}

/// Parts shorter than this are copied rather than kept as segments of their own, in bytes.
const SHORT: usize = 1024;

/// An encoded message in segments.
#[derive(Default)]
pub(crate) struct Out {
    pub segments: Vec<Segment>,
    pub len: u64,
}

impl Out {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        match self.segments.last_mut() {
            Some(Segment::Owned(owned)) => owned.extend_from_slice(bytes),
            _ => self.segments.push(Segment::Owned(bytes.to_vec())),
        }
    }

    pub(crate) fn shared(&mut self, bytes: &Bytes) {
        if bytes.len() < SHORT {
            return self.bytes(bytes);
        }
        self.len += bytes.len() as u64;
        self.segments.push(Segment::Shared(bytes.clone()));
    }

    pub(crate) fn deferred(&mut self, id: usize, len: u64) {
        self.len += len;
        self.segments.push(Segment::Deferred { id, len });
    }

    pub(crate) fn varint(&mut self, mut value: u64) {
        let (mut bytes, mut len) = ([0; VARINT_BYTES], 0);
        loop {
            bytes[len] = value as u8 & 0x7f | if value > 0x7f { 0x80 } else { 0 };
            len += 1;
            value >>= 7;
            if value == 0 {
                break;
            }
        }
        self.bytes(&bytes[..len]);
    }

    pub(crate) fn tag(&mut self, number: u32, wire_type: u64) {
        self.varint(u64::from(number) << 3 | wire_type);
    }

    /// A field of bytes: tag, length, content.
    pub(crate) fn field_bytes(&mut self, number: u32, bytes: &[u8]) {
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.bytes(bytes);
    }

    pub(crate) fn field_shared(&mut self, number: u32, bytes: &Bytes) {
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.shared(bytes);
    }

    /// A field whose content is what `write` writes.
    pub(crate) fn field_message(&mut self, number: u32, write: impl FnOnce(&mut Out)) {
        let mut inner = Out::default();
        write(&mut inner);
        self.tag(number, 2);
        self.varint(inner.len);
        for segment in inner.segments {
            match segment {
                Segment::Owned(bytes) => self.bytes(&bytes),
                other => {
                    self.len += other.len();
                    self.segments.push(other);
                }
            }
        }
    }

    /// All bytes in one piece, if none are deferred.
    pub(crate) fn into_vec(self) -> Option<Vec<u8>> {
        let mut all = Vec::with_capacity(self.len as usize);
        for segment in &self.segments {
            match segment {
                Segment::Owned(bytes) => all.extend_from_slice(bytes),
                Segment::Shared(bytes) => all.extend_from_slice(bytes),
                Segment::Deferred { .. } => return None,
            }
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
            let mut out = Out::default();
            out.varint(value);
            let bytes = out.into_vec().unwrap();
            assert_eq!(read_varint(&bytes), Ok((value, bytes.len())));
            assert!(read_varint(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!(read_varint(&[0xff; 11]).is_err());
        assert!(read_varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).is_err(), "more than 64 bits");
    }

    #[test]
    fn fields_end_where_their_message_ends() {
        let cases: [(&[u8], &str); 6] = [
            (&[0x00, 0x00], "field number"),
            (&[0x0a, 0x05, 1], "length"),
            (&[0x0b], "wire type"),
            (&[0x0d, 1, 2, 3], "4 bytes"),
            (&[0x09, 1], "8 bytes"),
            (&[0x08], "varint"),
        ];
        for (bytes, expected) in cases {
            let error = next_field(&mut Bytes::copy_from_slice(bytes)).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }
}
