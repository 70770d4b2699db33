//! Mutators that take a container apart, change what is within, and put a valid frame around it again.

use crate::choose::{Choose, mutate_bytes, store};
use crate::json;

/// Bytes of the length of a safetensors header.
const PREFIX: usize = 8;

/// Most bytes of data that a mutator makes to fit a header.
const MOST_DATA: u64 = 1 << 16;

/// Header and data of a safetensors file; the whole as header if the length leads nowhere.
pub fn split_safetensors(file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let Some((prefix, rest)) = file.split_first_chunk::<PREFIX>() else { return (file.to_vec(), Vec::new()) };
    let length = usize::try_from(u64::from_le_bytes(*prefix)).unwrap_or(usize::MAX).min(rest.len());
    (rest[..length].to_vec(), rest[length..].to_vec())
}

pub fn join_safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Changes the header as text or as JSON, or the data; the length fits, and mostly the data too.
pub fn mutate_safetensors(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut choose = Choose::new(seed);
    if choose.once_in(10) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let made = mutated_safetensors(&data[..size], max_size, &mut choose);
    store(&made, data, max_size)
}

/// The file that [`mutate_safetensors`] makes.
pub fn mutated_safetensors(file: &[u8], most: usize, choose: &mut Choose) -> Vec<u8> {
    let (mut header, mut values) = split_safetensors(file);
    match choose.below(8) {
        0 => mutate_bytes(&mut values, most / 2),
        1 => mutate_bytes(&mut header, most / 2),
        2 | 3 => lay_out_again(&mut header),
        _ => header = json::mutated(&header, choose),
    }
    if let Some(end) = last_offset(&header).filter(|end| *end <= MOST_DATA && !choose.once_in(8)) {
        values.resize(end as usize, 0x3c);
    }
    join_safetensors(&header, &values)
}

/// The largest second offset of a header, however it is spelled.
fn last_offset(header: &[u8]) -> Option<u64> {
    let header: serde_json::Value = serde_json::from_slice(header).ok()?;
    header.as_object()?.values().filter_map(|entry| entry["data_offsets"][1].as_u64()).max()
}

/// Gives every entry the offsets that its shape and type need.
fn lay_out_again(header: &mut Vec<u8>) {
    let Ok(serde_json::Value::Object(mut entries)) = serde_json::from_slice(header) else { return };
    let mut end = 0u64;
    for (_, entry) in entries.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let bits: u64 = match entry["dtype"].as_str() {
            Some("F64" | "I64" | "U64" | "C64") => 64,
            Some("F32" | "I32" | "U32") => 32,
            Some("F16" | "BF16" | "I16" | "U16") => 16,
            Some("F4") => 4,
            _ => 8,
        };
        let dims = entry["shape"].as_array().into_iter().flatten().map(|dim| dim.as_u64().unwrap_or(1));
        let Some(elements) = dims.into_iter().try_fold(1u64, u64::checked_mul) else { return };
        let Some(next) = elements.checked_mul(bits).and_then(|bits| end.checked_add(bits / 8)) else { return };
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("data_offsets".into(), serde_json::json!([end, next]));
        }
        end = next;
    }
    *header = serde_json::to_vec(&entries).expect("JSON that was read can be written");
}

/// What stands for the seal of statistics while it is computed.
const UNSEALED: &[u8; 64] = &[b'0'; 64];

/// Seals a file of statistics again: the hash of the file with 64 zeros in its place.
pub fn seal(file: &mut [u8]) {
    let (key, from) = (b"\\\"blake3\\\":\\\"", 8.min(file.len()));
    let Some(place) = file[from..].windows(key.len()).position(|window| window == key).map(|at| from + at + key.len()) else { return };
    let Some(room) = file.get_mut(place..place + UNSEALED.len()) else { return };
    room.copy_from_slice(UNSEALED);
    let hash = blake3::hash(file).to_hex();
    file[place..place + UNSEALED.len()].copy_from_slice(hash.as_bytes());
}

const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// Changes the header or the data of a `.npy` file and sets the header's length again.
pub fn mutated_npy(file: &[u8], most: usize, choose: &mut Choose) -> Vec<u8> {
    let wide = file.get(6).is_some_and(|version| *version >= 2);
    let start = if wide { 12 } else { 10 };
    let Some((frame, rest)) = file.split_at_checked(start).filter(|(frame, _)| frame.starts_with(NPY_MAGIC)) else {
        let mut bytes = file.to_vec();
        mutate_bytes(&mut bytes, most);
        return bytes;
    };
    let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len().min(128), |end| end + 1);
    let (mut header, mut data) = (rest[..length].to_vec(), rest[length..].to_vec());
    let mut version = frame[6..8].to_vec();
    match choose.below(8) {
        0 => mutate_bytes(&mut data, most / 2),
        1 => version[0] = choose.below(5) as u8,
        2 => data.resize(choose.below(300), 0x3c),
        3 | 4 => replace_word(&mut header, choose),
        _ => mutate_bytes(&mut header, most / 2),
    }
    let length = if version[0] >= 2 { (header.len() as u32).to_le_bytes().to_vec() } else { (header.len() as u16).to_le_bytes().to_vec() };
    [NPY_MAGIC, &version, &length, &header, &data].concat()
}

/// Puts another word of the format in the place of a number or a quoted text.
fn replace_word(header: &mut Vec<u8>, choose: &mut Choose) {
    const WORDS: &[&str] = &[
        "'<f4'",
        "'>f8'",
        "'<i8'",
        "'|b1'",
        "'<f2'",
        "'|u1'",
        "'=i4'",
        "'|O'",
        "True",
        "False",
        "'shape'",
        "()",
        "(2,)",
        "(1, 2, 3)",
        "(0, 4)",
        "-1",
        "1L",
    ];
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"'<>|=-".contains(byte);
    let mut words = Vec::new();
    let mut at = 0;
    while at < header.len() {
        let len = header[at..].iter().take_while(|byte| is_word(byte)).count();
        if len > 0 {
            words.push(at..at + len);
        }
        at += len + 1;
    }
    if words.is_empty() {
        return;
    }
    let word = if choose.once_in(3) { choose.edge().to_string() } else { (*choose.one_of(WORDS)).to_owned() };
    header.splice(choose.one_of(&words).clone(), word.into_bytes());
}

pub fn mutate_npy(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut choose = Choose::new(seed);
    if choose.once_in(10) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let made = mutated_npy(&data[..size], max_size, &mut choose);
    store(&made, data, max_size)
}
