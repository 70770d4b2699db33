//! Constant codes and what they stand for.

use crate::formats::onnx::proto::TensorProto;
use crate::formats::onnx::tensor::{BFLOAT16, FLOAT16, INT4, INT8, INT16, INT32, UINT4, UINT8, UINT16};
use crate::tensor::{decode_f32, encode_f32};

/// The smallest and the largest code of a type.
pub(super) fn code_range(data_type: i64) -> Option<(f32, f32)> {
    match data_type {
        UINT8 => Some((0.0, 255.0)),
        INT8 => Some((-128.0, 127.0)),
        UINT4 => Some((0.0, 15.0)),
        INT4 => Some((-8.0, 7.0)),
        UINT16 => Some((0.0, 65535.0)),
        INT16 => Some((-32768.0, 32767.0)),
        INT32 => Some((-2_147_483_648.0, 2_147_483_647.0)),
        _ => None,
    }
}

/// The codes of a constant, those of four bits too.
pub(super) fn ints(tensor: &TensorProto) -> Result<Vec<i64>, String> {
    let signed = match tensor.data_type {
        Some(INT4) => true,
        Some(UINT4) => false,
        _ => return tensor.to_ints().ok_or_else(|| format!("{}: expected constant codes, found other values", tensor.name)),
    };
    let bytes = tensor.contents()?;
    let code = |i: usize| {
        let nibble = i64::from(bytes[i / 2] >> (4 * (i % 2)) & 15);
        if signed && nibble > 7 { nibble - 16 } else { nibble }
    };
    Ok((0..tensor.elements()?).map(code).collect())
}

/// The values of a constant as floats, whether they are floats or codes.
pub(super) fn floats(tensor: &TensorProto) -> Result<Vec<f32>, String> {
    match tensor.to_floats() {
        Some(values) => Ok(values),
        None => Ok(ints(tensor)?.into_iter().map(|code| code as f32).collect()),
    }
}

/// `(code - zero point) * scale` of each code; parameters are one for all, one for each index of `axis`, or one for each
/// `block` of them.
pub(super) fn dequantize(
    codes: &TensorProto,
    scale: Option<&TensorProto>,
    zero_point: Option<&TensorProto>,
    axis: i64,
    block: usize,
) -> Result<Vec<f32>, String> {
    let shape = codes.shape()?;
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let axis = usize::try_from(axis).ok().filter(|axis| *axis < shape.len());
    let (size, inner) = axis.map_or((1, 1), |axis| (shape[axis], shape[axis + 1..].iter().product::<usize>().max(1)));
    let codes = ints(codes)?;
    let blocks = if block > 0 { size.div_ceil(block) } else { 0 };
    let outer = codes.len() / (size * inner).max(1);
    let place = |parameters: &TensorProto| -> Result<Box<dyn Fn(usize) -> usize>, String> {
        let len = parameters.elements()?;
        match parameters.dims.len() {
            _ if len == 1 => Ok(Box::new(|_| 0)),
            _ if block > 0 && len == outer * blocks * inner => {
                Ok(Box::new(move |i| (i / (inner * size) * blocks + i / inner % size / block) * inner + i % inner))
            }
            1 if block == 0 && len == size => Ok(Box::new(move |i| i / inner % size)),
            _ => Err(format!("{}: expected one or as many as the axis has, found {:?}", parameters.name, parameters.dims)),
        }
    };
    let mut values: Vec<f32> = match zero_point {
        None => codes.iter().map(|code| *code as f32).collect(),
        Some(zero_point) => {
            let (place, zero_points) = (place(zero_point)?, floats(zero_point)?);
            codes.iter().enumerate().map(|(i, code)| (*code - zero_points[place(i)] as i64) as f32).collect()
        }
    };
    if let Some(scale) = scale {
        let (place, scales) = (place(scale)?, floats(scale)?);
        values.iter_mut().enumerate().for_each(|(i, value)| *value *= scales[place(i)]);
        if let (Some(FLOAT16 | BFLOAT16), Some(dtype)) = (scale.data_type, scale.dtype()) {
            // The product is of the scale's type.
            let mut bytes = vec![0; 2 * values.len()];
            encode_f32(dtype, &values, &mut bytes);
            decode_f32(dtype, &bytes, &mut values);
        }
    }
    Ok(values)
}

/// Swaps the last two axes of `[outer, rows, columns]`.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let of_matrix = |matrix: &[f32]| (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect::<Vec<_>>();
    values.chunks((rows * columns).max(1)).flat_map(of_matrix).collect()
}
