//! Loops over values: compiled for every instruction set of this processor they give the same bits, and those are what plain
//! loops give that are written here by the definition.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};
use qtool::calibration::stats::{ActivationStats, ModelIdentity, Statistics};
use qtool::fuzzing::{kernels, on_each_instruction_set};
use qtool::observers::{Batch, OBSERVERS, ObserverChoice, Target};
use qtool::quant::kernel::{Arithmetic, ColumnParams, dequantize, min_max, quantize, quantize_columns};
use qtool::quant::params::{ParamRule, Params};
use qtool::quant::scheme::{CONVENTIONS, CodeType, Grid};
use qtool::tensor::{Dtype, decode_f32, encode_f32};
use std::fmt::Debug;

/// What a byte can hold.
const CODES: &[CodeType] = &[CodeType::Int8, CodeType::Uint8, CodeType::Int4, CodeType::Uint4];

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut u = Unstructured::new(data);
    if check(&mut u).is_err() { Corpus::Reject } else { Corpus::Keep }
});

/// The result on all instruction sets, which must be one.
fn same<R: PartialEq + Debug>(work: impl FnMut() -> R) -> R {
    let mut results = on_each_instruction_set(work).into_iter();
    let (_, first) = results.next().expect("there is the baseline");
    for (set, other) in results {
        assert!(first == other, "{set:?} gives {other:?}, not {first:?}");
    }
    first
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let kind = u.int_in_range(0..=11)?;
    let values = values(u)?;
    match kind {
        0 => extents(&values),
        1 => codes(u, &values)?,
        2 => columns(u, &values)?,
        3 => floats_of_codes(u)?,
        4 => stored_floats(u, &values)?,
        5 => searches(u, &values)?,
        6 => fixed_point(u, &values)?,
        7 => column_extents(&values),
        8 => sums(u, &values)?,
        9 => products(u, &values)?,
        10 => observers(u, &values)?,
        _ => statistics(&values),
    }
    Ok(())
}

/// Up to some hundred values: any bits, or a pattern with a few of any bits.
fn values(u: &mut Unstructured<'_>) -> Result<Vec<f32>> {
    let len = u.int_in_range(0..=300)?;
    if u.arbitrary()? {
        return (0..len).map(|_| f32::arbitrary(u)).collect();
    }
    let (scale, shift): (f32, f32) = (f32::from(u.arbitrary::<i16>()?) / 256.0, f32::from(u.arbitrary::<i8>()?));
    let mut values: Vec<f32> = (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 * scale + shift).collect();
    for _ in 0..u.int_in_range(0..=4)? {
        let (at, value) = (u.int_in_range(0..=299)?, f32::arbitrary(u)?);
        if let Some(place) = values.get_mut(at) {
            *place = value;
        }
    }
    Ok(values)
}

fn finite(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| if value.is_finite() { *value } else { 1.0 }).collect()
}

fn scale(u: &mut Unstructured<'_>) -> Result<f32> {
    let value = f32::arbitrary(u)?.abs();
    Ok(if value.is_normal() && value > 1e-36 && value < 1e36 { value } else { 0.037 })
}

fn grid(u: &mut Unstructured<'_>) -> Result<(Grid, i32)> {
    let grid = u.choose(CODES)?.grid();
    Ok((grid, u.int_in_range(grid.qmin..=grid.qmax)?))
}

fn extents(values: &[f32]) {
    let found = same(|| {
        let extent = min_max(values);
        (extent.finite, extent.finite.then_some((extent.range.min, extent.range.max)))
    });
    let is_finite = values.iter().all(|value| value.is_finite());
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(found, (is_finite, is_finite.then_some((low, high))));
}

/// The code of a value by the definition.
fn code(value: f32, Params { scale, zero_point }: Params, arithmetic: Arithmetic, grid: Grid) -> u8 {
    let y = if arithmetic == Arithmetic::Reciprocal { value * (1.0 / scale) } else { value / scale };
    (f64::from(y.round_ties_even()) + f64::from(zero_point)).clamp(f64::from(grid.qmin), f64::from(grid.qmax)) as i32 as u8
}

fn codes(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values = finite(values);
    let (grid, zero_point) = grid(u)?;
    let params = Params { scale: scale(u)?, zero_point };
    let arithmetic = *u.choose(&[Arithmetic::Reciprocal, Arithmetic::Divide])?;
    let (codes, sums) = same(|| {
        let mut codes = vec![0; values.len()];
        let sums = quantize(&values, params, arithmetic, grid, &mut codes);
        (codes, [sums.error, sums.value, sums.max_error].map(f64::to_bits))
    });
    for (value, found) in values.iter().zip(&codes) {
        assert_eq!(*found, code(*value, params, arithmetic, grid), "{value:e} {params:?} {arithmetic:?} {grid:?}");
    }
    assert!(sums.map(f64::from_bits).iter().all(|sum| *sum >= 0.0), "{sums:?}");
    Ok(())
}

fn columns(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values = finite(values);
    let (grid, _) = grid(u)?;
    let first = u.int_in_range(0..=5)?;
    let params = (0..values.len() + first).map(|_| Ok(Params { scale: scale(u)?, zero_point: u.int_in_range(grid.qmin..=grid.qmax)? }));
    let params = params.collect::<Result<Vec<_>>>()?;
    let arithmetic = *u.choose(&[Arithmetic::Reciprocal, Arithmetic::Divide])?;
    let columns = ColumnParams::new(&params);
    let (codes, _) = same(|| {
        let mut codes = vec![0; values.len()];
        let sums = quantize_columns(&values, &columns, first, arithmetic, grid, &mut codes);
        (codes, [sums.error, sums.value, sums.max_error].map(f64::to_bits))
    });
    for ((value, params), found) in values.iter().zip(&params[first..]).zip(&codes) {
        assert_eq!(*found, code(*value, *params, arithmetic, grid), "{value:e} {params:?} {arithmetic:?} {grid:?}");
    }
    Ok(())
}

fn floats_of_codes(u: &mut Unstructured<'_>) -> Result<()> {
    let (signed, params) = (u.arbitrary()?, Params { scale: scale(u)?, zero_point: u.int_in_range(-128..=255)? });
    let codes = u.bytes(u.len().min(300))?;
    let found = same(|| {
        let mut values = vec![0f32; codes.len()];
        dequantize(codes, signed, params, &mut values);
        values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    });
    for (code, found) in codes.iter().zip(found) {
        let code = if signed { i32::from(*code as i8) } else { i32::from(*code) };
        assert_eq!(found, ((code - params.zero_point) as f32 * params.scale).to_bits());
    }
    Ok(())
}

/// A float of these bits of exponent and mantissa, by the definition.
fn defined(bits: u64, exponent_bits: u32, mantissa_bits: u32, has_infinities: bool) -> f64 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let (mantissa, full) = (bits & ((1 << mantissa_bits) - 1), (1 << exponent_bits) - 1);
    let exponent = (bits >> mantissa_bits) as i32 & full;
    let sign = if bits >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
    let fraction = mantissa as f64 / (1u64 << mantissa_bits) as f64;
    sign * match exponent {
        _ if exponent == full && has_infinities => {
            if mantissa == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if exponent == full && mantissa == (1 << mantissa_bits) - 1 => f64::NAN,
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
    }
}

fn stored_floats(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let (dtype, exponent, mantissa, infinities) = *u.choose(&[
        (Dtype::F32, 8, 23, true),
        (Dtype::F16, 5, 10, true),
        (Dtype::BF16, 8, 7, true),
        (Dtype::F64, 11, 52, true),
        (Dtype::F8E4M3, 4, 3, false),
        (Dtype::F8E5M2, 5, 2, true),
    ])?;
    let width = dtype.bytes().expect("whole bytes") as usize;
    let bytes = u.bytes(u.len().min(300) / width * width)?;
    let found = same(|| {
        let mut out = vec![0f32; bytes.len() / width];
        decode_f32(dtype, bytes, &mut out);
        // Whatever NaN it is.
        out.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect::<Vec<_>>()
    });
    for (stored, found) in bytes.chunks(width).zip(found) {
        let bits = stored.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let expected = defined(bits, exponent, mantissa, infinities) as f32;
        let found = f32::from_bits(found);
        assert!(
            expected.to_bits() == found.to_bits() || expected.is_nan() && found.is_nan(),
            "{dtype} {bits:x}: {found:e}, not {expected:e}"
        );
    }
    // Written, each value is one of the two nearest.
    let values = finite(values);
    let mut stored = vec![0; values.len() * width];
    encode_f32(dtype, &values, &mut stored);
    for (value, stored) in values.iter().zip(stored.chunks(width)) {
        let bits = stored.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let written = defined(bits, exponent, mantissa, infinities);
        let distance = (written - f64::from(*value)).abs();
        for neighbour in [bits.wrapping_add(1), bits.wrapping_sub(1)] {
            let other = defined(neighbour & (u64::MAX >> (64 - 8 * width)), exponent, mantissa, infinities);
            let is_nearer = other.is_finite() && (other - f64::from(*value)).abs() < distance;
            assert!(!is_nearer || !written.is_finite(), "{value:e} was written as {written:e}, {other:e} is nearer");
        }
    }
    Ok(())
}

fn searches(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    // Within the range that searches give these loops: codes of at most eight bits, and values not far beyond.
    let values: Vec<f32> = finite(values).iter().map(|value| value.clamp(-1e3, 1e3)).collect();
    let mut trials = [(0.0, 0.0, 0.0); 4];
    for trial in &mut trials {
        let (low, high) = (f32::from(u.int_in_range::<i16>(-255..=0)?), f32::from(u.int_in_range::<i16>(0..=255)?));
        *trial = (f32::from(u.arbitrary::<u16>()?) / 1000.0 + 0.001, low, high);
    }
    let weights: Option<Vec<f32>> = if u.arbitrary()? { Some(values.iter().map(|value| value.abs().min(9.0)).collect()) } else { None };
    let found = same(|| kernels::errors(&values, weights.as_deref(), trials).map(f64::to_bits)).map(f64::from_bits);
    for ((reciprocal, low, high), found) in trials.into_iter().zip(found) {
        let plain: f64 = values
            .iter()
            .enumerate()
            .map(|(i, value)| {
                let y = value * reciprocal;
                let lost = y - y.clamp(low, high).round_ties_even();
                f64::from(lost * lost) * f64::from(weights.as_ref().map_or(1.0, |weights| weights[i]))
            })
            .sum();
        assert!((found - plain).abs() <= 1e-4 * plain + 1e-6, "{found} {plain}");
    }
    Ok(())
}

fn fixed_point(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values = finite(values);
    let end = scale(u)?.clamp(1e-20, 1e20);
    let (low, high, factor) = (-end, end, 32000.0 / end);
    let (fixed, flags, squares) = same(|| {
        let (fixed, flags, squares) = kernels::to_fixed(&values, factor, low, high);
        (fixed, flags, squares.to_bits())
    });
    let mut plain = 0.0;
    for (i, (value, fixed)) in values.iter().zip(&fixed).enumerate() {
        let outside = !(low..=high).contains(value);
        let y = if outside { 0.0 } else { value * factor };
        assert_eq!(*fixed, y.round_ties_even() as i16, "{value:e} * {factor:e}");
        plain += f64::from(y) * f64::from(y);
        assert!(!outside || flags[i / 64] != 0, "no flag at {i}");
    }
    let squares = f64::from_bits(squares);
    // Squares below the normal numbers of f32 are lost.
    let lost = f64::from(f32::MIN_POSITIVE) * values.len() as f64;
    assert!((squares - plain).abs() <= 1e-4 * plain + lost, "{squares} {plain}");
    let padded: Vec<i16> = fixed.iter().copied().chain([0; 256]).take((fixed.len() / 256 + 1) * 256).collect();
    let (whole, part) = (<[i16; 4]>::arbitrary(u)?, <[i16; 4]>::arbitrary(u)?);
    let found = same(|| kernels::rounding_errors(&padded, whole, part));
    for t in 0..4 {
        let square = |fixed: &i16| {
            let fine = ((i64::from(*fixed) * i64::from(part[t])) >> 16) as i16;
            let lost = i64::from(fixed.wrapping_mul(whole[t]).wrapping_add(fine));
            ((lost * lost) >> 16) as u64
        };
        // Four squares at a distance of 64 are added with saturation, which 4 * 2^14 does not reach but once.
        let plain: u64 = (0..padded.len() / 256)
            .flat_map(|block| (0..64).map(move |lane| (block, lane)))
            .map(|(block, lane)| (0..4).map(|step| square(&padded[block * 256 + step * 64 + lane])).sum::<u64>().min(65535))
            .sum();
        assert_eq!(found[t], plain);
    }
    Ok(())
}

fn column_extents(values: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let width = 1 + values.len() / 3;
    let found = same(|| {
        let (mut low, mut high, mut magnitude) = (vec![f32::INFINITY; width], vec![f32::NEG_INFINITY; width], vec![0i32; width]);
        values.chunks_exact(width).for_each(|row| kernels::widen_columns(row, &mut low, &mut high, &mut magnitude));
        (bits(&low), bits(&high), magnitude)
    });
    for column in 0..width {
        let of_column = || values.chunks_exact(width).map(|row| row[column]).filter(|value| !value.is_nan());
        let (low, high) = (of_column().fold(f32::INFINITY, f32::min), of_column().fold(f32::NEG_INFINITY, f32::max));
        assert_eq!((f32::from_bits(found.0[column]), f32::from_bits(found.1[column])), (low, high));
        let is_finite = values.chunks_exact(width).all(|row| row[column].is_finite());
        assert_eq!(found.2[column] < f32::INFINITY.to_bits() as i32, is_finite);
    }
}

fn sums(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values = finite(values);
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let found = same(|| {
        let (mut sums, mut squares, mut largest) = (vec![0.5; values.len()], vec![0.25; values.len()], vec![0f32; values.len()]);
        kernels::add_row(&values, &mut sums, &mut squares, &mut largest);
        (bits(&sums), bits(&squares), largest)
    });
    for (i, value) in values.iter().enumerate() {
        let exact = f64::from(*value);
        assert_eq!((found.0[i], found.1[i], found.2[i]), ((0.5 + exact).to_bits(), (0.25 + exact * exact).to_bits(), value.abs()));
    }
    // In fixed point: 4 in the high part, 2^-36 or so in the low one; numbers that are multiples of it are exact.
    let numbers: Vec<f64> = (0..u.int_in_range(0..=40)?).map(|_| Ok(f64::from(u.arbitrary::<i32>()?) / 1024.0)).collect::<Result<_>>()?;
    let (high, low) = same(|| {
        let (mut high, mut low) = (vec![0i64; 1], vec![0i64; 1]);
        numbers.iter().for_each(|number| kernels::add_to_sums(&mut high, &mut low, &[*number]));
        (high[0], low[0])
    });
    let (unit, _) = {
        let (mut high, mut low) = (vec![0i64; 1], vec![0i64; 1]);
        kernels::add_to_sums(&mut high, &mut low, &[1.0]);
        (low[0], high[0])
    };
    let total: i128 = numbers.iter().map(|number| (*number * 1024.0) as i128).sum();
    assert_eq!((i128::from(high) * 4 * i128::from(unit) + i128::from(low)) * 1024, total * i128::from(unit));
    Ok(())
}

fn products(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values: Vec<f32> = finite(values).iter().map(|value| value.clamp(-1e6, 1e6)).collect();
    let (left, right) = values.split_at(values.len() / 2);
    let right = &right[..left.len()];
    let near = |found: f64, plain: f64, size: f64| assert!((found - plain).abs() <= 1e-4 * size + 1e-9, "{found} {plain} of {size}");
    let wide = |a: &f32, b: &f32| f64::from(*a) * f64::from(*b);
    let pairs = || left.iter().zip(right);
    let found = same(|| kernels::dot(left, right).to_bits());
    near(f32::from_bits(found).into(), pairs().map(|(a, b)| wide(a, b)).sum(), pairs().map(|(a, b)| wide(a, b).abs()).sum());

    let params = Params { scale: scale(u)?.clamp(1e-3, 1e3), zero_point: u.int_in_range(-8..=7)? };
    let clip = Grid { qmin: -8, qmax: 7 };
    let weights: Vec<f32> = right.iter().map(|value| value.abs()).collect();
    let found = f32::from_bits(same(|| kernels::weighted_error(left, &weights, params, clip).to_bits()));
    let plain: f64 = left
        .iter()
        .zip(&weights)
        .map(|(value, weight)| {
            let code = ((value / params.scale).round_ties_even() + params.zero_point as f32).clamp(-8.0, 7.0);
            let error = value - (code - params.zero_point as f32) * params.scale;
            f64::from(*weight) * f64::from(error) * f64::from(error)
        })
        .sum();
    near(found.into(), plain, plain);

    let factor = scale(u)?.clamp(1e-3, 1e3);
    let found = same(|| {
        let mut target = left.to_vec();
        kernels::add_multiple(&mut target, factor, right);
        target.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    });
    let plain = pairs().map(|(target, source)| (target + factor * source).to_bits());
    assert!(found.iter().copied().eq(plain), "add_multiple");
    let found = same(|| {
        let mut target: Vec<f64> = left.iter().map(|value| f64::from(*value)).collect();
        let source: Vec<f64> = right.iter().map(|value| f64::from(*value)).collect();
        kernels::subtract_multiple(&mut target, factor.into(), &source);
        target.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    });
    let plain = pairs().map(|(target, source)| (f64::from(*target) - f64::from(factor) * f64::from(*source)).to_bits());
    assert!(found.iter().copied().eq(plain), "subtract_multiple");

    let at = |i: usize| if left.is_empty() { 0.5 } else { left[i % left.len()].clamp(-100.0, 100.0) };
    let rows = u.int_in_range(0..=9)?;
    let panel: Vec<[f32; 8]> = (0..rows).map(|a| std::array::from_fn(|k| at(a * 8 + k))).collect();
    let errors: Vec<[f32; 16]> = (0..rows).map(|a| std::array::from_fn(|r| at(a * 16 + r + 3))).collect();
    let found = same(|| {
        let mut sums = [[0.5f32; 16]; 8];
        kernels::add_errors(&panel, &errors, &mut sums);
        sums.map(|lane| lane.map(f32::to_bits))
    });
    for k in 0..8 {
        for r in 0..16 {
            let plain = panel.iter().zip(&errors).fold(0.5f32, |sum, (panel, errors)| panel[k].mul_add(errors[r], sum));
            assert_eq!(found[k][r], plain.to_bits(), "add_errors");
        }
    }
    let x: Vec<f32> = (0..64 * rows).map(at).collect();
    let found = same(|| {
        let mut block = vec![0.25f64; 64 * 64];
        kernels::add_short_products(&x, &mut block);
        block.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    });
    for (place, found) in found.iter().enumerate() {
        let sum = x.chunks(64).fold(0f32, |sum, row| row[place / 64].mul_add(row[place % 64], sum));
        assert_eq!(*found, (0.25 + f64::from(sum)).to_bits(), "add_short_products");
    }
    Ok(())
}

fn observers(u: &mut Unstructured<'_>, values: &[f32]) -> Result<()> {
    let values = finite(values);
    if values.is_empty() {
        return Ok(());
    }
    let (convention, codes) = (u.choose(CONVENTIONS)?.0, *u.choose(CODES)?);
    let rule = ParamRule::new(convention, codes, u.arbitrary()?, Dtype::F32);
    let extent = min_max(&values).range();
    // One at a time, as some take milliseconds.
    let observer = u.choose(OBSERVERS)?;
    let choice = ObserverChoice::new(&observer.name.parse().expect("a name of the table")).expect("an observer of the table");
    if choice.looks_at_inputs() {
        return Ok(());
    }
    let (low, high) = same(|| {
        let range = choice.observe_once(Batch { extent, values: &values.as_slice() }, &Target { rule, single_batch: true });
        (range.min.to_bits(), range.max.to_bits())
    });
    let (low, high) = (f32::from_bits(low), f32::from_bits(high));
    assert!(low.is_finite() && high.is_finite() && low <= high, "{}: {low:e} to {high:e}", observer.name);
    let params = rule.choose_params(qtool::Range { min: low, max: high });
    assert!(params.scale.is_finite() && params.scale > 0.0, "{}: {params:?}", observer.name);
    assert!((rule.grid.qmin..=rule.grid.qmax).contains(&params.zero_point), "{}: {params:?}", observer.name);
    Ok(())
}

fn statistics(values: &[f32]) {
    let name = || ModelIdentity { name: "m".into(), bytes: 1, blake3: blake3::hash(b"") };
    let bytes = same(|| {
        let mut stats = ActivationStats::new();
        let done = stats.observe(values).is_ok();
        (done, done.then(|| Statistics::new(name(), [("x".to_owned(), stats)].into()).to_bytes()))
    });
    assert_eq!(bytes.0, values.iter().all(|value| value.is_finite()), "what is not finite is refused");
}
