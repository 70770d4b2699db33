//! A mutator of `.npz` archives: members are read from the local headers, changed, and packed again.

use crate::choose::{Choose, store};
use crate::framing::mutated_npy;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use std::io::{Read, Write};

struct Member {
    name: Vec<u8>,
    deflated: bool,
    content: Vec<u8>,
}

/// Most members that are kept, and most bytes of one.
const MOST_MEMBERS: usize = 6;
const MOST_CONTENT: usize = 1 << 12;

pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut choose = Choose::new(seed);
    let mut members = members(&data[..size]);
    if members.is_empty() || choose.once_in(8) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let at = choose.below(members.len());
    match choose.below(8) {
        0 => drop(members.remove(at)),
        1 => {
            let Member { name, deflated, content } = &members[at];
            members.push(Member { name: name.clone(), deflated: !deflated, content: content.clone() });
        }
        2 => {
            members[at].name = choose.one_of(&["x.npy", "y.npy", "x", "", "z.npy", "../x.npy", "x.npy.npy", "data.pkl"]).as_bytes().to_vec()
        }
        3 => members[at].deflated = !members[at].deflated,
        _ => members[at].content = mutated_npy(&members[at].content, MOST_CONTENT, &mut choose),
    }
    let mut made = pack(&members);
    // And here and there a field of the frame itself.
    if choose.once_in(3) {
        let at = made.len() - 1 - choose.below(made.len().min(120));
        made[at] = choose.edge() as u8;
    }
    store(&made, data, max_size)
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    Some(bytes.get(at..at + len)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// The members whose local headers say their sizes, as far as they go.
fn members(bytes: &[u8]) -> Vec<Member> {
    let (mut found, mut at) = (Vec::new(), 0);
    while bytes.get(at..at + 4) == Some(b"PK\x03\x04") && found.len() < MOST_MEMBERS {
        let fields = [(8, 2), (18, 4), (26, 2), (28, 2)].map(|(place, len)| number(bytes, at + place, len).unwrap_or(0));
        let [method, packed, name_len, extra_len] = fields;
        let name_at = at + 30;
        let data_at = name_at + name_len + extra_len;
        let (Some(name), Some(data)) = (bytes.get(name_at..name_at + name_len), bytes.get(data_at..data_at.saturating_add(packed))) else {
            break;
        };
        let mut content = Vec::new();
        match method {
            8 => drop(DeflateDecoder::new(data).take(MOST_CONTENT as u64).read_to_end(&mut content)),
            _ => content = data[..data.len().min(MOST_CONTENT)].to_vec(),
        }
        found.push(Member { name: name.to_vec(), deflated: method == 8, content });
        at = data_at + packed;
    }
    found
}

fn pack(members: &[Member]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for Member { name, deflated, content } in members {
        let mut crc = Crc::new();
        crc.update(content);
        let data = if *deflated {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory can be written")
        } else {
            content.clone()
        };
        let start = out.len() as u32;
        let mut common = vec![20, 0, 0, 0, if *deflated { 8 } else { 0 }, 0, 0, 0, 0, 0];
        [crc.sum(), data.len() as u32, content.len() as u32].iter().for_each(|field| common.extend(field.to_le_bytes()));
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name);
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name);
    }
    let (start, size, count) = (out.len() as u32, directory.len() as u32, members.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    [count, count].iter().for_each(|field| out.extend(field.to_le_bytes()));
    [size, start].iter().for_each(|field| out.extend(field.to_le_bytes()));
    out.extend([0, 0]);
    out
}
