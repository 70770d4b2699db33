//! What a command reads: a header, then values, f32 in little-endian order.
//!
//! [NumPy's format](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), version 1.0, or
//! [safetensors](https://github.com/huggingface/safetensors#format).

use super::ValueFormat;

/// The first bytes of an array of f32 of this shape.
pub(super) fn header(format: ValueFormat, shape: &[usize]) -> Vec<u8> {
    match format {
        ValueFormat::Npy => npy(shape),
        ValueFormat::Safetensors => safetensors(shape),
    }
}

/// Headers end at a multiple of this.
const NPY_ALIGNMENT: usize = 64;

/// Magic, version and the length of the description.
const NPY_PREFIX: usize = 10;

fn npy(shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut description = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    let end = NPY_PREFIX + description.len() + 1;
    description.extend(std::iter::repeat_n(' ', end.next_multiple_of(NPY_ALIGNMENT) - end));
    description.push('\n');
    let length = u16::try_from(description.len()).expect("a tensor has few dimensions");
    [b"\x93NUMPY\x01\x00".as_slice(), &length.to_le_bytes(), description.as_bytes()].concat()
}

/// Headers end at a multiple of this.
const SAFETENSORS_ALIGNMENT: usize = 8;

fn safetensors(shape: &[usize]) -> Vec<u8> {
    let bytes = shape.iter().product::<usize>() * size_of::<f32>();
    let mut header = format!("{{\"tensor\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[0,{bytes}]}}}}");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(SAFETENSORS_ALIGNMENT) - header.len()));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_that_the_formats_have() {
        for (shape, dims) in [(&[][..], "()"), (&[3], "(3,)"), (&[2, 5], "(2, 5)"), (&[1, 2, 3, 4], "(1, 2, 3, 4)")] {
            let header = npy(shape);
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"), "{shape:?}");
            assert!(String::from_utf8_lossy(&header).contains(&format!("'shape': {dims}, }}")), "{shape:?}");
            let mut file = safetensors(shape);
            file.extend(vec![0; shape.iter().product::<usize>() * 4]);
            let read = ::safetensors::SafeTensors::deserialize(&file).unwrap();
            assert_eq!(read.tensor("tensor").unwrap().shape(), shape);
        }
    }
}
