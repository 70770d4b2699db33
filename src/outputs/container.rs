//! The safetensors container as it is written: header and places.
//!
//! The header is padded with spaces so that tensors are aligned, and its members are in the order given. The order of
//! bytes is another: see [`Order`].

use crate::tensor::Dtype;
use serde_json::json;
use std::ops::Range;

/// A tensor to be written.
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The entry of the codes that this one holds parameters of. Its bytes come later than theirs, as they are known
    /// later.
    pub codes: Option<usize>,
}

impl Entry {
    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        (self.shape.iter().product::<usize>() as u64 * self.dtype.bits()).div_ceil(8)
    }
}

/// A header with its length prefix, and the place of each entry in the file, in bytes.
pub(crate) struct Container {
    pub header: Vec<u8>,
    pub places: Vec<Range<u64>>,
    pub len: u64,
}

/// The order of tensor bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Every tensor aligned to its element size, although codes may have any length: PyTorch's loader needs that. Wide
    /// types come first, parameters soon after their codes, so that they need not be remembered for long.
    Aligned,
    /// As given.
    AsGiven,
}

/// Alignment of the widest types, in bytes; also of the data section, as the reference writer's.
const ALIGNMENT: u64 = 8;

/// Alignment of scales, in bytes.
const SCALE_ALIGNMENT: u64 = 4;

/// Where in the file an entry goes, if bytes are to be aligned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    /// Codes that have scales, but a length that would misalign them: scales follow in `Bytes4`.
    OddCodes,
    Bytes8,
    Bytes4,
    /// Codes and their parameters in turn.
    CodesWithParams,
    Bytes2,
    Bytes1,
}

pub(crate) fn lay_out(entries: &[Entry], metadata: &[(String, String)], order: Order) -> Container {
    let sections: Vec<Section> = (0..entries.len()).map(|i| section(entries, i)).collect();
    let mut sorted: Vec<usize> = (0..entries.len()).collect();
    if order == Order::Aligned {
        sorted.sort_by_key(|i| sections[*i]);
    }
    let mut places = vec![0..0; entries.len()];
    let (mut end, mut odd) = (0, 0);
    for i in sorted {
        places[i] = end..end + entries[i].len();
        end = places[i].end;
        if sections[i] == Section::OddCodes {
            odd = end;
        }
    }
    let mut members = Vec::with_capacity(entries.len() + 1);
    if !metadata.is_empty() {
        // One line, keys in the order of the source: a map type would shuffle or sort them.
        let pairs: Vec<String> = metadata.iter().map(|(key, text)| format!("{}:{}", json!(key), json!(text))).collect();
        members.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    for (entry, place) in entries.iter().zip(&places) {
        let (name, shape) = (json!(entry.name), json!(entry.shape));
        members.push(format!(r#"{name}:{{"dtype":"{}","shape":{shape},"data_offsets":[{},{}]}}"#, entry.dtype, place.start, place.end));
    }
    let mut text = format!("{{{}}}", members.join(","));
    // What comes after odd codes is aligned; the prefix has the length of an alignment itself.
    let misaligned = if order == Order::Aligned { odd } else { 0 };
    while !(text.len() as u64 + misaligned).is_multiple_of(ALIGNMENT) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    let start = header.len() as u64;
    for place in &mut places {
        *place = place.start + start..place.end + start;
    }
    Container { header, places, len: start + end }
}

fn section(entries: &[Entry], i: usize) -> Section {
    let entry = &entries[i];
    let fits = |i: usize| entries[i].len().is_multiple_of(SCALE_ALIGNMENT);
    match entry.codes {
        Some(codes) if fits(codes) && fits(i) => return Section::CodesWithParams,
        None if entries.get(i + 1).is_some_and(|next| next.codes == Some(i)) => {
            return if fits(i) { Section::CodesWithParams } else { Section::OddCodes };
        }
        _ => {}
    }
    match entry.dtype.bits() {
        64.. => Section::Bytes8,
        32.. => Section::Bytes4,
        16.. => Section::Bytes2,
        _ => Section::Bytes1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dtype: Dtype, len: usize, codes: Option<usize>) -> Entry {
        Entry { name: format!("{dtype} {len}"), dtype, shape: vec![len], codes }
    }

    #[test]
    fn everything_is_aligned_and_parameters_come_after_their_codes() {
        for odd in [3, 4, 7, 8] {
            for groups in [1, 2, 4, 5] {
                let entries = [
                    entry(Dtype::BF16, 3, None),
                    entry(Dtype::U8, odd, None),
                    entry(Dtype::F32, groups, Some(1)),
                    entry(Dtype::U8, groups, Some(1)),
                    entry(Dtype::I64, 1, None),
                    entry(Dtype::I8, 16, None),
                    entry(Dtype::F32, 3, Some(5)),
                    entry(Dtype::I8, 5, None),
                    entry(Dtype::F32, 1, None),
                ];
                let Container { header, places, len } = lay_out(&entries, &[], Order::Aligned);
                let mut sorted: Vec<&Range<u64>> = places.iter().collect();
                sorted.sort_by_key(|place| place.start);
                assert_eq!(sorted[0].start, header.len() as u64);
                assert!(sorted.windows(2).all(|pair| pair[0].end == pair[1].start) && sorted[8].end == len);
                for (entry, place) in entries.iter().zip(&places) {
                    assert!(place.start.is_multiple_of(entry.dtype.bytes().unwrap()), "{} at {place:?}, {odd} codes", entry.name);
                    assert!(entry.codes.is_none_or(|codes| places[codes].end <= place.start), "{} before its codes", entry.name);
                }
            }
        }
    }
}
