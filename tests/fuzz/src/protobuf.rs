//! A mutator of protocol buffers: the fields of a message are changed, moved, left out and doubled at any depth, and every length
//! fits again.

use crate::choose::{Choose, mutate_bytes, store};

/// A field, with the message that its content is, if it can be one.
#[derive(Clone)]
enum Content {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
    Fixed32([u8; 4]),
}

#[derive(Clone)]
struct Field {
    number: u64,
    content: Content,
}

/// Deepest nesting that is taken apart.
const DEEPEST: usize = 12;

/// As [`mutated`], for the fuzzer; once in a while it changes bytes instead.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut choose = Choose::new(seed);
    if choose.once_in(8) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let made = mutated(&data[..size], max_size, &mut choose);
    store(&made, data, max_size)
}

/// A message like `bytes`; bytes changed if it is none.
pub fn mutated(bytes: &[u8], most: usize, choose: &mut Choose) -> Vec<u8> {
    let Some(mut fields) = parse(bytes, 0).filter(|fields| !fields.is_empty()) else {
        let mut bytes = bytes.to_vec();
        mutate_bytes(&mut bytes, most);
        return bytes;
    };
    for _ in 0..=choose.below(3) {
        let count = count(&fields);
        if count == 0 {
            break;
        }
        let mut place = choose.below(count);
        let donor = nth(&mut fields, &mut place).map(|(fields, at)| fields[at].clone()).expect("a place within");
        let mut place = choose.below(count);
        let (fields, at) = nth(&mut fields, &mut place).expect("a place within");
        change(fields, at, donor, most, choose);
    }
    encode(&fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(7 * shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let content = match tag & 7 {
            0 => Content::Varint(varint(&mut bytes)?),
            1 => Content::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, len)?;
                // A text can look like a message by chance; then it is changed like one.
                match parse(inner, depth + 1).filter(|fields| depth < DEEPEST && !fields.is_empty()) {
                    Some(fields) => Content::Message(fields),
                    None => Content::Bytes(inner.to_vec()),
                }
            }
            5 => Content::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        if tag >> 3 == 0 || tag >> 3 > 1 << 20 {
            return None;
        }
        fields.push(Field { number: tag >> 3, content });
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for Field { number, content } in fields {
        let mut put = |wire: u64, bytes: &[u8]| {
            put_varint(number << 3 | wire, &mut out);
            if wire == 2 {
                put_varint(bytes.len() as u64, &mut out);
            }
            out.extend_from_slice(bytes);
        };
        match content {
            Content::Varint(value) => {
                let mut bytes = Vec::new();
                put_varint(*value, &mut bytes);
                put(0, &bytes);
            }
            Content::Fixed64(bytes) => put(1, bytes),
            Content::Bytes(bytes) => put(2, bytes),
            Content::Message(fields) => put(2, &encode(fields)),
            Content::Fixed32(bytes) => put(5, bytes),
        }
    }
    out
}

fn count(fields: &[Field]) -> usize {
    fields.iter().map(|field| 1 + if let Content::Message(inner) = &field.content { count(inner) } else { 0 }).sum()
}

/// The field at `place` and the message that it is in.
fn nth<'f>(fields: &'f mut Vec<Field>, place: &mut usize) -> Option<(&'f mut Vec<Field>, usize)> {
    for at in 0..fields.len() {
        if *place == 0 {
            return Some((fields, at));
        }
        *place -= 1;
        if let Content::Message(inner) = &fields[at].content {
            let here = count(inner);
            if *place < here {
                let Content::Message(inner) = &mut fields[at].content else { unreachable!("it is one") };
                return nth(inner, place);
            }
            *place -= here;
        }
    }
    None
}

/// Operators, types and names by which nodes become others.
const WORDS: &[&str] = &[
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "Gather",
    "LSTM",
    "If",
    "Constant",
    "Identity",
    "Cast",
    "Transpose",
    "QuantizeLinear",
    "DequantizeLinear",
    "BatchNormalization",
    "Relu",
    "Clip",
    "Add",
    "Mul",
    "Loop",
    "Reshape",
    "com.microsoft",
    "x",
    "w",
    "y",
    "",
    "axis",
    "location",
    "offset",
    "length",
    "perm",
    "value",
    "group",
    "transB",
    "../w.bin",
];

fn change(fields: &mut Vec<Field>, at: usize, donor: Field, most: usize, choose: &mut Choose) {
    match choose.below(12) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        2 => fields.insert(at, donor),
        3 => fields[at] = donor,
        4 => fields[at].content = donor.content,
        5 => fields[at].number = 1 + choose.below(25) as u64,
        6 => {
            let other = choose.below(fields.len());
            fields.swap(at, other);
        }
        _ => match &mut fields[at].content {
            Content::Varint(value) => {
                *value = if choose.once_in(2) { choose.edge() } else { value.wrapping_add(choose.bits() % 3).wrapping_sub(1) }
            }
            Content::Fixed64(bytes) => *bytes = choose.edge().to_le_bytes(),
            Content::Fixed32(bytes) => *bytes = (choose.edge() as u32).to_le_bytes(),
            Content::Bytes(bytes) if choose.once_in(3) => *bytes = choose.one_of(WORDS).as_bytes().to_vec(),
            Content::Bytes(bytes) => mutate_bytes(bytes, (bytes.len() + 16).min(most)),
            Content::Message(inner) if choose.once_in(3) => fields[at].content = Content::Bytes(encode(inner)),
            Content::Message(inner) => inner.push(donor),
        },
    }
}

/// The unknown fields of the outermost message of `original` are in `written` too, bit for bit and in their order.
pub fn expect_all_of(original: &[u8], written: &[u8]) {
    /// Fields of ModelProto that are known.
    const KNOWN: &[u64] = &[1, 7, 8, 25];
    let unknown = |mut bytes: &[u8]| {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let start = bytes;
            let tag = varint(&mut bytes).expect("a field");
            match tag & 7 {
                0 => drop(varint(&mut bytes).expect("a varint")),
                1 => drop(take(&mut bytes, 8).expect("eight bytes")),
                2 => {
                    let len = varint(&mut bytes).expect("a length");
                    take(&mut bytes, len as usize).expect("as many bytes");
                }
                _ => drop(take(&mut bytes, 4).expect("four bytes")),
            }
            if !KNOWN.contains(&(tag >> 3)) {
                found.push(start[..start.len() - bytes.len()].to_vec());
            }
        }
        found
    };
    assert_eq!(unknown(original), unknown(written), "unknown fields of the model");
}
