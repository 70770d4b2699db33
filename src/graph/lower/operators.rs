//! The rule of each quantized operator.

use super::codes;
use super::emit::Emit;
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::UINT8;

/// Writes what computes the same as `node`, and returns the names of codes among its outputs; `None` if the node stays.
pub(super) fn rewrite(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Option<Vec<String>>, String> {
    let is_runtimes = node.domain == "com.microsoft";
    match node.op_type.as_str() {
        "QuantizeLinear" if is_runtimes || node.is_standard() => quantize_linear(node, emit),
        "DequantizeLinear" if is_runtimes || node.is_standard() => dequantize_linear(node, emit),
        "DynamicQuantizeLinear" if node.is_standard() => dynamic_quantize_linear(node, emit),
        "MatMulInteger" if node.is_standard() => product_of_codes(node, emit, "MatMul", (-2, -1)),
        "ConvInteger" if node.is_standard() => product_of_codes(node, emit, "Conv", (1, 0)),
        "QLinearConv" if node.is_standard() => qlinear_conv(node, emit),
        "QLinearMatMul" if node.is_standard() => qlinear_matmul(node, emit),
        "MatMulNBits" if is_runtimes => matmul_nbits(node, emit),
        "DynamicQuantizeLSTM" if is_runtimes => lstm(node, emit),
        _ if is_runtimes => Err("expected operators of ONNX, or quantized ones that are known here, found another of com.microsoft".into()),
        _ => return Ok(None),
    }
    .map(Some)
}

fn input(node: &NodeProto, index: usize) -> Result<&str, String> {
    node.input(index).ok_or_else(|| format!("input {index}: expected a value, found none"))
}

fn output(node: &NodeProto, index: usize) -> Result<&str, String> {
    node.output.get(index).map(String::as_str).ok_or_else(|| format!("output {index}: expected a name, found none"))
}

/// An input that has to be a constant.
fn constant<'a>(node: &NodeProto, emit: &Emit<'a>, index: usize) -> Result<&'a TensorProto, String> {
    emit.known_constant(input(node, index)?).ok_or_else(|| format!("input {index}: expected a constant, found another value"))
}

/// An input that has to be a constant where it is given.
fn optional<'a>(node: &NodeProto, emit: &Emit<'a>, index: usize) -> Result<Option<&'a TensorProto>, String> {
    if node.input(index).is_some() { constant(node, emit, index).map(Some) } else { Ok(None) }
}

/// An axis counted from the front or the back.
fn axis(node: &NodeProto) -> i64 {
    node.int("axis", 1)
}

/// The range of the codes of a node's output, which have the type of its zero point.
fn range(node: &NodeProto, zero_point: Option<&TensorProto>) -> Result<(f32, f32), String> {
    let declared = Some(node.int("output_dtype", 0)).filter(|code| *code != 0);
    let code = zero_point.and_then(|tensor| tensor.data_type).or(declared).unwrap_or(UINT8);
    codes::code_range(code).ok_or_else(|| format!("codes: expected integers of up to 32 bits, found type {code}"))
}

fn quantize_linear(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let (value, out) = (input(node, 0)?, output(node, 0)?);
    let rank = emit.known.ranks.get(value).copied();
    let range = range(node, node.input(2).and_then(|name| emit.known_constant(name)))?;
    let scale = emit.aligned(input(node, 1)?, axis(node), rank)?;
    let zero_point = node.input(2).map(|name| emit.aligned(name, axis(node), rank)).transpose()?;
    let value = emit.as_float(value);
    let scaled = emit.op("Div", &[&value, &scale]);
    emit.codes_to(&scaled, zero_point.as_deref(), range, out);
    Ok(vec![out.to_owned()])
}

fn dequantize_linear(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let (value, out) = (input(node, 0)?, output(node, 0)?);
    let scale = input(node, 1)?;
    let zero_is_known = node.input(2).is_none_or(|name| emit.known_constant(name).is_some());
    if let (Some(tensor), Some(scale), true) = (emit.known_constant(value), emit.known_constant(scale), zero_is_known) {
        let block = usize::try_from(node.int("block_size", 0)).unwrap_or(0);
        let zero_point = optional(node, emit, 2)?;
        let values = codes::dequantize(tensor, Some(scale), zero_point, axis(node), block)?;
        emit.constant_to(out, &tensor.dims, &values);
        return Ok(Vec::new());
    }
    let centred = emit.centred(value, node.input(2), axis(node))?;
    let scale = emit.aligned(scale, axis(node), emit.known.ranks.get(value).copied())?;
    emit.op_to("Mul", &[&centred, &scale], out);
    Ok(Vec::new())
}

fn dynamic_quantize_linear(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let names: Vec<String> = (0..3)
        .map(|i| match node.output.get(i).filter(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => emit.fresh("unused"),
        })
        .collect();
    emit.dynamic(input(node, 0)?, [&names[0], &names[1], &names[2]]);
    Ok(vec![names[0].clone(), names[2].clone()])
}

/// MatMulInteger and ConvInteger: the product of `code - zero point` of both.
fn product_of_codes(node: &NodeProto, emit: &mut Emit<'_>, op_type: &str, axes: (i64, i64)) -> Result<Vec<String>, String> {
    let out = output(node, 0)?;
    let a = emit.centred(input(node, 0)?, node.input(2), axes.0)?;
    let b = emit.centred(input(node, 1)?, node.input(3), axes.1)?;
    emit.op_to(op_type, &[&a, &b], out);
    emit.with(node.attribute.iter().cloned());
    Ok(vec![out.to_owned()])
}

/// `input scale * weight scale / output scale`.
fn multipliers(node: &NodeProto, emit: &Emit<'_>, scales: [usize; 3]) -> Result<Vec<f32>, String> {
    let [a, b, y] = scales.map(|index| constant(node, emit, index).and_then(codes::floats));
    let (a, b, y) = (a?, b?, y?);
    let ([a], [y]) = (&a[..], &y[..]) else {
        return Err(format!("scales: expected one of the input and one of the output, found {} and {}", a.len(), y.len()));
    };
    Ok(b.iter().map(|b| a * b / y).collect())
}

/// Codes of the sums `product`, in the scale and zero point of the output.
fn requantize(node: &NodeProto, emit: &mut Emit<'_>, product: &str, multiplier: &str) -> Result<Vec<String>, String> {
    let out = output(node, 0)?;
    let zero_point = optional(node, emit, 7)?;
    let range = range(node, zero_point)?;
    let zero_point = node.input(7).map(|name| emit.aligned(name, -1, None)).transpose()?;
    let scaled = emit.op("Mul", &[product, multiplier]);
    emit.codes_to(&scaled, zero_point.as_deref(), range, out);
    Ok(vec![out.to_owned()])
}

fn qlinear_conv(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let weight = constant(node, emit, 3)?;
    let values = codes::dequantize(weight, None, optional(node, emit, 5)?, 0, 0)?;
    let multipliers = multipliers(node, emit, [1, 4, 6])?;
    let bias = optional(node, emit, 8)?.map(|bias| codes::floats(bias).map(|values| (bias, values))).transpose()?;
    let x = emit.centred(input(node, 0)?, node.input(2), 1)?;
    let w = emit.constant(&weight.dims, &values);
    let bias = bias.map(|(bias, values)| emit.constant(&bias.dims, &values));
    let inputs: Vec<&str> = [x.as_str(), &w].into_iter().chain(bias.as_deref()).collect();
    let product = emit.op("Conv", &inputs);
    emit.with(node.attribute.iter().cloned());
    let dims: Vec<i64> = match multipliers.len() {
        1 => Vec::new(),
        channels => std::iter::once(channels as i64).chain((2..weight.dims.len()).map(|_| 1)).collect(),
    };
    let multiplier = emit.constant(&dims, &multipliers);
    requantize(node, emit, &product, &multiplier)
}

fn qlinear_matmul(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let multipliers = multipliers(node, emit, [1, 4, 6])?;
    let a = emit.centred(input(node, 0)?, node.input(2), -2)?;
    let b = emit.centred(input(node, 3)?, node.input(5), -1)?;
    let product = emit.op("MatMul", &[&a, &b]);
    let dims: Vec<i64> = if multipliers.len() == 1 { Vec::new() } else { vec![multipliers.len() as i64] };
    let multiplier = emit.constant(&dims, &multipliers);
    requantize(node, emit, &product, &multiplier)
}

/// A weight of `[N, blocks, bytes]`, one scale for each block along K.
fn matmul_nbits(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let size = |name: &str| usize::try_from(node.int(name, 0)).ok().filter(|size| *size > 0 && *size < 1 << 31);
    let (Some(k), Some(n), Some(block)) = (size("K"), size("N"), size("block_size")) else {
        return Err("K, N, block_size: expected sizes, found none".into());
    };
    let bits = node.int("bits", 4);
    if !matches!(bits, 2 | 4 | 8) || node.input(4).is_some() {
        return Err(format!("expected codes of 2, 4 or 8 bits in order, found {bits} bits or g_idx"));
    }
    let per_byte = 8 / bits as usize;
    let blocks = k.div_ceil(block);
    let row = blocks * block.div_ceil(per_byte);
    let zero_row = blocks.div_ceil(per_byte);
    let bytes = constant(node, emit, 1)?.contents()?;
    let scales = codes::floats(constant(node, emit, 2)?)?;
    let code = |bytes: &[u8], i: usize| bytes[i / per_byte] >> (bits as usize * (i % per_byte)) & (0xff >> (8 - bits));
    let zero_points: Vec<f32> = match optional(node, emit, 3)? {
        None => vec![(1 << (bits - 1)) as f32; n * blocks],
        Some(zero) if zero.data_type == Some(UINT8) => {
            let packed = zero.contents()?;
            if packed.len() != n * zero_row {
                return Err(format!("zero_points: expected {} bytes, found {}", n * zero_row, packed.len()));
            }
            (0..n * blocks).map(|i| f32::from(code(&packed[i / blocks * zero_row..], i % blocks))).collect()
        }
        Some(zero) => codes::floats(zero)?,
    };
    if bytes.len() != n * row || scales.len() != n * blocks || zero_points.len() != n * blocks {
        return Err(format!("weight: expected {} bytes and {} scales, found {} and {}", n * row, n * blocks, bytes.len(), scales.len()));
    }
    let mut values = vec![0.0; n * k];
    for (i, value) in values.iter_mut().enumerate() {
        let (column, place) = (i / k, i % k);
        let group = column * blocks + place / block;
        let of_block = &bytes[column * row + place / block * block.div_ceil(per_byte)..];
        *value = (f32::from(code(of_block, place % block)) - zero_points[group]) * scales[group];
    }
    let weight = emit.constant(&[k as i64, n as i64], &codes::transpose(&values, n, k));
    match node.input(5) {
        None => emit.op_to("MatMul", &[input(node, 0)?, &weight], output(node, 0)?),
        Some(bias) => {
            let product = emit.op("MatMul", &[input(node, 0)?, &weight]);
            emit.op_to("Add", &[&product, bias], output(node, 0)?);
        }
    }
    Ok(Vec::new())
}

/// Weights `[directions, in, gates]` with scales `[directions]` or `[directions, gates]`. The input is quantized as the
/// operator does; that it quantizes the hidden state at every step too is left out.
fn lstm(node: &NodeProto, emit: &mut Emit<'_>) -> Result<Vec<String>, String> {
    let weight = |emit: &mut Emit<'_>, weight: usize, scale: usize, zero: usize| -> Result<String, String> {
        let tensor = constant(node, emit, weight)?;
        let &[directions, rows, gates] = &tensor.shape()?[..] else {
            return Err(format!("input {weight}: expected three dimensions, found {:?}", tensor.dims));
        };
        // Of each direction, one for all gates or one for each: as blocks along the rows, of all of them.
        let spread = |tensor: &TensorProto| -> Result<Vec<f32>, String> {
            let values = codes::floats(tensor)?;
            match values.len() {
                len if len == directions => Ok(values.iter().flat_map(|value| std::iter::repeat_n(*value, gates)).collect()),
                len if len == directions * gates => Ok(values),
                len => Err(format!("{}: expected {directions} or {}, found {len}", tensor.name, directions * gates)),
            }
        };
        let scales = spread(constant(node, emit, scale)?)?;
        let zero_points = optional(node, emit, zero)?.map(spread).transpose()?;
        let mut values = codes::floats(tensor)?;
        for (i, value) in values.iter_mut().enumerate() {
            let group = i / (rows * gates) * gates + i % gates;
            *value = (*value - zero_points.as_ref().map_or(0.0, |zero_points| zero_points[group])) * scales[group];
        }
        let dims = [directions, gates, rows].map(|dim| dim as i64);
        Ok(emit.constant(&dims, &codes::transpose(&values, rows, gates)))
    };
    let w = weight(emit, 1, 8, 9)?;
    let r = weight(emit, 2, 10, 11)?;
    let [quantized, scale, zero] = ["codes", "scale", "zero_point"].map(|what| emit.fresh(what));
    emit.dynamic(input(node, 0)?, [&quantized, &scale, &zero]);
    let centred = emit.op("Sub", &[&quantized, &zero]);
    let x = emit.op("Mul", &[&centred, &scale]);
    let mut float = node.clone();
    float.op_type = "LSTM".into();
    float.domain.clear();
    float.input.truncate(8);
    float.input[..3].clone_from_slice(&[x, w, r]);
    while float.input.last().is_some_and(String::is_empty) {
        float.input.pop();
    }
    emit.node(float);
    Ok(Vec::new())
}
