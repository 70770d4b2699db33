//! Codes of four bits, two to a byte: the first in the low nibble, as ONNX stores INT4 and UINT4.
//!
//! Packing runs over the whole tensor in row-major order; an odd last code leaves the high nibble 0.

use super::scheme::CodeType;

/// Bytes that `elements` codes take.
pub fn packed_len(codes: CodeType, elements: usize) -> usize {
    if codes.bits() == 4 { elements.div_ceil(2) } else { elements }
}

/// The shape of the stored tensor: the logical one for byte codes; for nibbles the last dimension halved, or one
/// dimension in all if the last is odd.
pub fn packed_shape(codes: CodeType, shape: &[usize]) -> Vec<usize> {
    match shape {
        _ if codes.bits() == 8 => shape.to_vec(),
        [outer @ .., last] if last % 2 == 0 => [outer, &[last / 2]].concat(),
        _ => vec![shape.iter().product::<usize>().div_ceil(2)],
    }
}

/// Packs codes of one byte each in place; the result is the first [`packed_len`] bytes.
pub fn pack_nibbles(codes: &mut Vec<u8>) {
    let packed = codes.len().div_ceil(2);
    for i in 0..packed {
        let high = codes.get(2 * i + 1).map_or(0, |code| code << 4);
        codes[i] = codes[2 * i] & 0xf | high;
    }
    codes.truncate(packed);
}

/// The codes in `packed`, one byte each, sign-extended if `signed`.
pub fn unpack_nibbles(packed: &[u8], signed: bool, codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        let nibble = packed[i / 2] >> (4 * (i % 2)) & 0xf;
        *code = if signed && nibble >= 8 { nibble | 0xf0 } else { nibble };
    }
}

/// Packs rows of `columns` values of `bits` bits each, `32 / bits` rows to a row of words: value of row `r` and column `c` in
/// word `[r * bits / 32, c]`, the first row in the lowest bits. Values must be below `2^bits`.
pub fn pack_rows_to_words(values: &[u32], columns: usize, bits: u32) -> Vec<u32> {
    let rows_to_a_word = (32 / bits) as usize;
    let word_rows = values.len().div_ceil(columns.max(1)).div_ceil(rows_to_a_word);
    let mut words = vec![0; word_rows * columns];
    for (i, value) in values.iter().enumerate() {
        let (row, column) = (i / columns, i % columns);
        words[row / rows_to_a_word * columns + column] |= value << ((row % rows_to_a_word) as u32 * bits);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_nibble_comes_first_and_signs_survive() {
        let codes: Vec<u8> = [-8i8, 7, -1, 0, 3].iter().map(|c| *c as u8).collect();
        let mut packed = codes.clone();
        pack_nibbles(&mut packed);
        assert_eq!(packed, [0x78, 0x0f, 0x03]);
        let mut back = vec![0; 5];
        unpack_nibbles(&packed, true, &mut back);
        assert_eq!(back, codes);
    }

    #[test]
    fn shapes_tell_where_the_nibbles_are() {
        assert_eq!(packed_shape(CodeType::Int4, &[3, 8]), [3, 4]);
        assert_eq!(packed_shape(CodeType::Int4, &[3, 3]), [5]);
        assert_eq!(packed_shape(CodeType::Int8, &[3, 3]), [3, 3]);
    }
}
