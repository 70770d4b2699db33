//! Inputs of convolutions as rows: the patches that each output is a product with (im2col).
//!
//! Of the input `[N, C, H, W]` (or `[N, C, L]`) a group of channels gives rows `[C / groups * kernel]`, in the order of the
//! weight's own dimensions, one for each output position; of many positions some, evenly spread, are taken.

use crate::calibration::array::Array;
use crate::formats::onnx::proto::NodeProto;

/// Most rows that one sample gives: more say little that is new, and cost as much as the model itself.
const MOST_ROWS: usize = 4096;

/// How a convolution goes over its input. One spatial dimension is two, of which the first is 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Geometry {
    pub(crate) groups: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Before and after, of each dimension.
    pads: [[usize; 2]; 2],
}

impl Geometry {
    /// That of `node`, a Conv with weights of this shape; `None` for three spatial dimensions and for padding that depends on
    /// the input.
    pub(crate) fn new(node: &NodeProto, weight: &[usize]) -> Option<Self> {
        let spatial = weight.get(2..)?;
        let auto = node.attribute("auto_pad").and_then(|attribute| attribute.s.as_deref()).unwrap_or(b"NOTSET");
        if ![1, 2].contains(&spatial.len()) || !matches!(auto, b"NOTSET" | b"" | b"VALID") {
            return None;
        }
        let numbers = |name: &str| -> Option<Vec<usize>> {
            let numbers: Vec<i64> = node.attribute(name).map(|attribute| attribute.ints.clone()).unwrap_or_default();
            numbers.into_iter().map(|number| usize::try_from(number).ok()).collect()
        };
        let pair = |numbers: &[usize], default: usize| match *numbers {
            [width] => Some([default, width]),
            [height, width] => Some([height, width]),
            [] => Some([default; 2]),
            _ => None,
        };
        let pads = match (numbers("pads")?.as_slice(), auto) {
            ([], _) | (_, b"VALID") => [[0; 2]; 2],
            ([before, after], _) => [[0; 2], [*before, *after]],
            ([top, left, bottom, right], _) => [[*top, *bottom], [*left, *right]],
            _ => return None,
        };
        let geometry = Geometry {
            groups: usize::try_from(node.int("group", 1)).ok().filter(|groups| *groups > 0)?,
            kernel: pair(spatial, 1)?,
            strides: pair(&numbers("strides")?, 1)?,
            dilations: pair(&numbers("dilations")?, 1)?,
            pads,
        };
        (!geometry.strides.contains(&0)).then_some(geometry)
    }

    /// Rows for each group of channels; `None` if the input has other dimensions.
    pub(crate) fn rows(&self, input: &Array) -> Option<Vec<Vec<f32>>> {
        let values = input.floats()?;
        let (batch, channels, size) = match input.shape[..] {
            [batch, channels, width] => (batch, channels, [1, width]),
            [batch, channels, height, width] => (batch, channels, [height, width]),
            _ => return None,
        };
        let each = channels / self.groups;
        let outputs = |d: usize| {
            let reach = self.dilations[d] * self.kernel[d].checked_sub(1)? + 1;
            Some((size[d] + self.pads[d][0] + self.pads[d][1]).checked_sub(reach)? / self.strides[d] + 1)
        };
        let (height, width) = (outputs(0)?, outputs(1)?);
        let positions = batch * height * width;
        let step = positions.div_ceil(MOST_ROWS).max(1);
        let features = each * self.kernel[0] * self.kernel[1];
        let mut rows = vec![Vec::with_capacity(positions.div_ceil(step) * features); self.groups];
        for position in (0..positions).step_by(step) {
            let (sample, y, x) = (position / (height * width), position / width % height, position % width);
            for (group, rows) in rows.iter_mut().enumerate() {
                for channel in group * each..(group + 1) * each {
                    let plane = &values[(sample * channels + channel) * size[0] * size[1]..][..size[0] * size[1]];
                    for i in 0..self.kernel[0] {
                        let row = (y * self.strides[0] + i * self.dilations[0]).checked_sub(self.pads[0][0]).filter(|row| *row < size[0]);
                        for j in 0..self.kernel[1] {
                            let column = (x * self.strides[1] + j * self.dilations[1])
                                .checked_sub(self.pads[1][0])
                                .filter(|column| *column < size[1]);
                            rows.push(row.zip(column).map_or(0.0, |(row, column)| plane[row * size[1] + column]));
                        }
                    }
                }
            }
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::array::Data;
    use crate::formats::onnx::proto::AttributeProto;
    use crate::tensor::Dtype;

    #[test]
    fn rows_times_weights_are_the_convolution() {
        let mut node = NodeProto::new("Conv", "c".into(), vec![], vec![]);
        node.attribute.push(AttributeProto::ints("pads", &[1, 0, 0, 2]));
        node.attribute.push(AttributeProto::ints("strides", &[2, 1]));
        node.attribute.push(AttributeProto::ints("dilations", &[1, 2]));
        node.attribute.push(AttributeProto::int("group", 2));
        let shape = [2, 2, 3, 2];
        let geometry = Geometry::new(&node, &shape).unwrap();
        let (batch, channels, height, width) = (2, 4, 5, 6);
        let value = |b: usize, c: usize, y: i64, x: i64| {
            let inside = (0..height as i64).contains(&y) && (0..width as i64).contains(&x);
            if inside { (b * 97 + c * 31 + y as usize * 7 + x as usize) as f32 } else { 0.0 }
        };
        let mut values = Vec::new();
        for (b, c) in (0..batch).flat_map(|b| (0..channels).map(move |c| (b, c))) {
            values.extend((0..height * width).map(|i| value(b, c, (i / width) as i64, (i % width) as i64)));
        }
        let input = Array { dtype: Dtype::F32, shape: vec![batch, channels, height, width], data: Data::Float(values) };
        let rows = geometry.rows(&input).unwrap();
        let (out_height, out_width) = ((5 + 1 - 3) / 2 + 1, 6 + 2 - 3 + 1);
        for (group, rows) in rows.iter().enumerate() {
            assert_eq!(rows.len(), batch * out_height * out_width * 12);
            for (position, row) in rows.chunks(12).enumerate() {
                let (b, y, x) = (position / (out_height * out_width), position / out_width % out_height, position % out_width);
                for (i, found) in row.iter().enumerate() {
                    let (c, ky, kx) = (i / 6, i / 2 % 3, i % 2);
                    assert_eq!(*found, value(b, group * 2 + c, (y * 2 + ky) as i64 - 1, (x + 2 * kx) as i64), "{group} {position} {i}");
                }
            }
        }
    }
}
