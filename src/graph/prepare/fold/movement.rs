//! Constants whose elements are those of others in other places.

use super::super::SMALL;
use super::value::Constant;
use crate::formats::onnx::proto::NodeProto;
use crate::formats::onnx::tensor::FLOAT;
use bytes::Bytes;

/// `axis`, counted from the end where negative, of `rank` axes.
fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    usize::try_from(if axis < 0 { axis.checked_add(rank)? } else { axis }).ok().filter(|axis| (*axis as i64) < rank)
}

/// Integers of an input, or of the attribute that it was before version 13 (10 for Slice).
fn ints_of(node: &NodeProto, inputs: &[Option<Constant>], index: usize, attribute: &str) -> Option<Vec<i64>> {
    match inputs.get(index) {
        Some(Some(constant)) => constant.to_ints(),
        _ => node.attribute(attribute).map(|attribute| attribute.ints.clone()),
    }
}

pub(super) fn reshape(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x), Some(shape)] = inputs else { return None };
    let (wanted, zero_is_zero) = (shape.to_ints()?, node.int("allowzero", 0) != 0);
    let mut dims = Vec::with_capacity(wanted.len());
    for (i, dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            0 if !zero_is_zero => *x.shape.get(i)?,
            // The one that follows from the others.
            -1 => 1,
            dim => usize::try_from(*dim).ok()?,
        });
    }
    if let Some(inferred) = wanted.iter().position(|dim| *dim == -1) {
        let others = dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)).filter(|others| *others > 0)?;
        dims[inferred] = x.elements() / others;
    }
    x.view(dims)
}

pub(super) fn flatten(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x)] = inputs else { return None };
    let rank = x.shape.len();
    let axis = node.int("axis", 1);
    let axis = if usize::try_from(axis).is_ok_and(|axis| axis == rank) { rank } else { axis_of(axis, rank)? };
    x.view(vec![x.shape[..axis].iter().product(), x.shape[axis..].iter().product()])
}

pub(super) fn squeeze(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let x = inputs.first()?.as_ref()?;
    let rank = x.shape.len();
    let axes: Vec<usize> = match ints_of(node, inputs, 1, "axes") {
        Some(axes) => axes.into_iter().map(|axis| axis_of(axis, rank).filter(|axis| x.shape[*axis] == 1)).collect::<Option<_>>()?,
        None => (0..rank).filter(|axis| x.shape[*axis] == 1).collect(),
    };
    x.view((0..rank).filter(|axis| !axes.contains(axis)).map(|axis| x.shape[axis]).collect())
}

pub(super) fn unsqueeze(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let x = inputs.first()?.as_ref()?;
    let axes = ints_of(node, inputs, 1, "axes")?;
    let rank = x.shape.len().checked_add(axes.len())?;
    let axes: Vec<usize> = axes.into_iter().map(|axis| axis_of(axis, rank)).collect::<Option<_>>()?;
    let mut rest = x.shape.iter();
    let shape = (0..rank).map(|axis| if axes.contains(&axis) { Some(1) } else { rest.next().copied() }).collect::<Option<_>>()?;
    // An axis that is named twice leaves dimensions over.
    if rest.next().is_some() { None } else { x.view(shape) }
}

pub(super) fn shape_of(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x)] = inputs else { return None };
    let rank = x.shape.len() as i64;
    let place = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (place(node.int("start", 0)), place(node.int("end", rank)));
    let dims: Vec<i64> = x.shape[start..end.max(start)].iter().map(|dim| *dim as i64).collect();
    Some(Constant::ints(vec![dims.len()], &dims))
}

pub(super) fn constant_of_shape(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(shape)] = inputs else { return None };
    let value = match node.attribute("value") {
        Some(attribute) => Constant::of(attribute.t.as_deref()?)?,
        None => Constant { code: FLOAT, shape: vec![1], bytes: Bytes::from_static(&[0; 4]) },
    };
    let shape: Vec<usize> = shape.to_ints()?.into_iter().map(|dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    (value.elements() == 1).then_some(())?;
    moved(&value, shape.clone(), vec![0; small(&shape)?])
}

pub(super) fn expand(_node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x), Some(shape)] = inputs else { return None };
    let wanted: Vec<usize> = shape.to_ints()?.into_iter().map(|dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    let rank = wanted.len().max(x.shape.len());
    let padded = |shape: &[usize]| [vec![1; rank - shape.len()], shape.to_vec()].concat();
    let (own, wanted) = (padded(&x.shape), padded(&wanted));
    let pairs = own.iter().zip(&wanted);
    let shape: Vec<usize> =
        pairs.map(|(x, y)| if x == y || *y == 1 { Some(*x) } else { Some(*y).filter(|_| *x == 1) }).collect::<Option<_>>()?;
    small(&shape)?;
    let strides: Vec<usize> = strides(&own).into_iter().zip(&own).map(|(stride, dim)| if *dim == 1 { 0 } else { stride }).collect();
    moved(x, shape.clone(), places(&shape, &strides, 0))
}

pub(super) fn transpose(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x)] = inputs else { return None };
    let rank = x.shape.len();
    let order: Vec<usize> = match node.attribute("perm") {
        Some(attribute) => attribute.ints.iter().map(|axis| axis_of(*axis, rank)).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return None;
    }
    let own = strides(&x.shape);
    let shape: Vec<usize> = order.iter().map(|axis| x.shape[*axis]).collect();
    let strides: Vec<usize> = order.iter().map(|axis| own[*axis]).collect();
    moved(x, shape.clone(), places(&shape, &strides, 0))
}

pub(super) fn concat(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let parts: Vec<&Constant> = inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let first = *parts.first()?;
    let axis = axis_of(node.attribute("axis")?.i?, first.shape.len())?;
    let same = |part: &&Constant| {
        let shape = &part.shape;
        part.code == first.code && shape.len() == first.shape.len() && (0..shape.len()).all(|i| i == axis || shape[i] == first.shape[i])
    };
    if !parts.iter().all(same) {
        return None;
    }
    let mut shape = first.shape.clone();
    shape[axis] = parts.iter().map(|part| part.shape[axis]).try_fold(0usize, usize::checked_add)?;
    small(&shape)?;
    let outer: usize = shape[..axis].iter().product();
    let block = |part: &Constant| part.bytes.len() / outer.max(1);
    let mut bytes = Vec::new();
    for i in 0..outer {
        parts.iter().for_each(|part| bytes.extend_from_slice(&part.bytes[i * block(part)..(i + 1) * block(part)]));
    }
    Some(Constant { code: first.code, shape, bytes: bytes.into() })
}

pub(super) fn gather(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let [Some(x), Some(indices)] = inputs else { return None };
    let axis = axis_of(node.int("axis", 0), x.shape.len())?;
    let at: Vec<usize> = indices.to_ints()?.into_iter().map(|i| axis_of(i, x.shape[axis])).collect::<Option<_>>()?;
    let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
    small(&shape)?;
    let inner: usize = x.shape[axis + 1..].iter().product();
    let outer: usize = x.shape[..axis].iter().product();
    let mut from = Vec::new();
    for o in 0..outer {
        at.iter().for_each(|i| from.extend((0..inner).map(|j| (o * x.shape[axis] + i) * inner + j)));
    }
    moved(x, shape, from)
}

pub(super) fn slice(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<Constant> {
    let x = inputs.first()?.as_ref()?;
    let rank = x.shape.len();
    let (starts, ends) = (ints_of(node, inputs, 1, "starts")?, ints_of(node, inputs, 2, "ends")?);
    let axes = ints_of(node, inputs, 3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = ints_of(node, inputs, 4, "steps").unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return None;
    }
    let (mut shape, mut strides, mut origin) = (x.shape.clone(), strides(&x.shape), 0);
    let mut seen = Vec::new();
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = axis_of(*axis, rank).filter(|axis| !seen.contains(axis))?;
        seen.push(axis);
        // Backwards is rare, and not worth the risk.
        let step = usize::try_from(*step).ok().filter(|step| *step > 0)?;
        let size = i64::try_from(x.shape[axis]).ok()?;
        let place = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).clamp(0, size) as usize;
        let (start, end) = (place(*start), place(*end));
        shape[axis] = end.saturating_sub(start).div_ceil(step);
        origin += start * strides[axis];
        strides[axis] = strides[axis].checked_mul(step)?;
    }
    moved(x, shape.clone(), places(&shape, &strides, origin))
}

/// Elements of a shape, if they are few.
fn small(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim).filter(|elements| *elements <= SMALL))
}

/// Elements between neighbours along each axis, row-major.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Where each element of `shape`, row-major, comes from.
fn places(shape: &[usize], strides: &[usize], origin: usize) -> Vec<usize> {
    let mut places = vec![origin];
    for (size, stride) in shape.iter().zip(strides) {
        places = places.iter().flat_map(|place| (0..*size).map(move |i| place + i * stride)).collect();
    }
    places
}

/// A constant of this shape whose elements are those of `x` at `places`.
fn moved(x: &Constant, shape: Vec<usize>, places: Vec<usize>) -> Option<Constant> {
    let width = x.width()?;
    let mut bytes = Vec::with_capacity(places.len() * width);
    for place in places {
        bytes.extend_from_slice(x.bytes.get(place * width..)?.get(..width)?);
    }
    Some(Constant { code: x.code, shape, bytes: bytes.into() })
}
