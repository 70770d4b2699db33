//! A mutator of JSON documents: values are changed, moved, left out and doubled, and the text stays JSON.

use crate::choose::{Choose, mutate_bytes, store};
use serde_json::{Map, Value, json};

/// As [`mutated`], for the fuzzer; once in a while it changes bytes instead.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut choose = Choose::new(seed);
    if choose.once_in(8) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let made = mutated(&data[..size], &mut choose);
    store(&made, data, max_size)
}

/// A document like `text`; its bytes changed if it is no JSON.
pub fn mutated(text: &[u8], choose: &mut Choose) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(text) else {
        let mut bytes = text.to_vec();
        let most = bytes.len() + 64;
        mutate_bytes(&mut bytes, most);
        return bytes;
    };
    for _ in 0..=choose.below(3) {
        let count = count(&document);
        let donor = nth(&mut document, choose.below(count)).clone();
        let place = choose.below(count);
        change(nth(&mut document, place), donor, choose);
    }
    let mut text = serde_json::to_vec(&document).expect("a value can be written");
    if choose.once_in(12) {
        double_a_key(&mut text, choose);
    }
    text
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// The value at `place`, counted from the outermost.
fn nth(value: &mut Value, place: usize) -> &mut Value {
    if place == 0 {
        return value;
    }
    let mut before = 1;
    let inner: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(members) => Box::new(members.values_mut()),
        _ => unreachable!("a place within"),
    };
    for inner in inner {
        let here = count(inner);
        if place < before + here {
            return nth(inner, place - before);
        }
        before += here;
    }
    unreachable!("a place within")
}

/// Texts that formats know, by which values become others that are valid.
const WORDS: &[&str] = &[
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "U8",
    "I32",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "int8",
    "uint8",
    "int4",
    "uint4",
    "symmetric",
    "asymmetric",
    "per_tensor",
    "per_channel",
    "per_group",
    "per-channel",
    "per-tensor",
    "per-group:4",
    "torch",
    "ort",
    "compressed-tensors",
    "min-max",
    "mse",
    "nearest",
    "sidecar",
    "w",
    "w.weight",
    "a.safetensors",
    "b.safetensors",
    "model.safetensors",
    "../x",
    "",
    "/",
    "Linear",
    "pack-quantized",
    "int-quantized",
    "channel",
    "group",
    "token",
    "tensor",
    "int",
    "float",
    "static",
    "dynamic",
    "weight",
    "re:.*w",
    "keep",
];

fn change(value: &mut Value, donor: Value, choose: &mut Choose) {
    match (choose.below(10), &mut *value) {
        (0, _) => *value = donor,
        (1, _) => *value = [json!(null), json!(true), json!([]), json!({}), json!("")][choose.below(5)].clone(),
        (2, _) => *value = choose_number(choose),
        (3, _) => *value = json!(choose.one_of(WORDS)),
        (_, Value::Array(items)) => {
            let at = choose.below(items.len());
            match choose.below(4) {
                0 if !items.is_empty() => drop(items.remove(at)),
                1 if !items.is_empty() => items.insert(at, items[at].clone()),
                2 => items.push(choose_number(choose)),
                _ => items.push(donor),
            }
        }
        (_, Value::Object(members)) => change_members(members, donor, choose),
        (_, Value::String(text)) if choose.once_in(2) => {
            let mut bytes = std::mem::take(text).into_bytes();
            let most = bytes.len() + 8;
            mutate_bytes(&mut bytes, most);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        (_, Value::String(text)) => *text = (*choose.one_of(WORDS)).to_owned(),
        (_, Value::Bool(value)) => *value = !*value,
        (_, Value::Number(number)) => {
            let by = choose.below(3) as i64 - 1;
            *value = number.as_i64().map_or_else(|| choose_number(choose), |number| json!(number.wrapping_add(by)));
        }
        (_, Value::Null) => *value = donor,
    }
}

fn change_members(members: &mut Map<String, Value>, donor: Value, choose: &mut Choose) {
    let Some(key) = (!members.is_empty()).then(|| members.keys().nth(choose.below(members.len())).expect("a key").clone()) else {
        members.insert((*choose.one_of(WORDS)).to_owned(), donor);
        return;
    };
    match choose.below(5) {
        0 => drop(members.shift_remove(&key)),
        1 => drop(members.insert(format!("{key}{}", choose.below(3)), members[&key].clone())),
        2 => drop(members.insert((*choose.one_of(WORDS)).to_owned(), donor)),
        3 => {
            let value = members.shift_remove(&key).expect("the key is there");
            let mut bytes = key.into_bytes();
            let most = bytes.len() + 8;
            mutate_bytes(&mut bytes, most);
            members.insert(String::from_utf8_lossy(&bytes).into_owned(), value);
        }
        _ => drop(members.insert(key, donor)),
    }
}

fn choose_number(choose: &mut Choose) -> Value {
    match choose.below(6) {
        0 => json!(-(choose.below(300) as i64)),
        1 => json!(choose.below(1000) as f64 / 256.0 - 1.0),
        2 => json!(*choose.one_of(&[1e308, -1e39, 1e-46, 3.4028234663852886e38, 5e-324, 0.1, -0.0])),
        _ => json!(choose.edge()),
    }
}

/// Repeats the first member of an object in front of it.
fn double_a_key(text: &mut Vec<u8>, choose: &mut Choose) {
    let opens: Vec<usize> = text.windows(2).enumerate().filter(|(_, pair)| *pair == b"{\"").map(|(at, _)| at + 1).collect();
    if opens.is_empty() {
        return;
    }
    let start = *choose.one_of(&opens);
    let Some(end) = text[start + 1..].iter().position(|byte| *byte == b'"').map(|len| start + 1 + len) else { return };
    let member = [&text[start..=end], b":0,"].concat();
    text.splice(start..start, member);
}
