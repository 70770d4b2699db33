//! Which elements of a tensor share parameters: groups, numbered in the order in which their scales are stored.
//!
//! Elements are in row-major order. A contiguous layout cuts them into rows of equal length and each row into
//! groups; a strided one interleaves the channels of an axis that is not the outermost.

use super::scheme::Granularity;
use std::ops::Range;

/// How the elements of one tensor are divided into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupLayout {
    /// Rows of `row` elements, each cut into groups of `size`; the last group of a row may be shorter.
    Contiguous {
        /// Number of rows.
        rows: usize,
        /// Elements of a row.
        row: usize,
        /// Elements of a group.
        size: usize,
    },
    /// Element `(outer, channel, inner)` belongs to group `channel`.
    Strided {
        /// Product of the dimensions before the axis.
        outer: usize,
        /// Length of the axis.
        channels: usize,
        /// Product of the dimensions after the axis.
        inner: usize,
    },
    /// Element `(outer, position, inner)` belongs to group `(outer, position / size, inner)`: blocks along an axis that is
    /// not the last.
    Tiled {
        /// Product of the dimensions before the axis.
        outer: usize,
        /// Length of the axis.
        len: usize,
        /// Elements of a block; the last along the axis may be shorter.
        size: usize,
        /// Product of the dimensions after the axis.
        inner: usize,
    },
}

impl GroupLayout {
    /// The layout of a tensor of `shape` (not empty) with channels along `axis`, which must be a dimension.
    pub fn new(shape: &[usize], granularity: Granularity, axis: usize) -> Self {
        let elements: usize = shape.iter().product();
        match granularity {
            Granularity::PerTensor => GroupLayout::Contiguous { rows: 1, row: elements, size: elements },
            Granularity::PerChannel => {
                let outer = shape[..axis].iter().product();
                let (channels, inner) = (shape[axis], shape[axis + 1..].iter().product());
                match outer {
                    1 => GroupLayout::Contiguous { rows: channels, row: inner, size: inner },
                    _ => GroupLayout::Strided { outer, channels, inner },
                }
            }
            Granularity::PerGroup(size) => {
                let row = shape.last().copied().unwrap_or(1);
                GroupLayout::Contiguous { rows: elements / row, row, size: size.min(row) }
            }
        }
    }

    /// The layout of a tensor of `shape` (not empty) in blocks of `size` elements along `axis`, as ONNX's DequantizeLinear has
    /// them.
    pub fn blocks(shape: &[usize], axis: usize, size: usize) -> Self {
        let (len, inner) = (shape[axis], shape[axis + 1..].iter().product());
        match inner {
            1 => GroupLayout::Contiguous { rows: shape[..axis].iter().product(), row: len, size: size.min(len) },
            _ => GroupLayout::Tiled { outer: shape[..axis].iter().product(), len, size: size.min(len), inner },
        }
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        match *self {
            GroupLayout::Contiguous { rows, row, size } => rows * row.div_ceil(size),
            GroupLayout::Strided { channels, .. } => channels,
            GroupLayout::Tiled { outer, len, size, inner } => outer * len.div_ceil(size) * inner,
        }
    }

    /// Number of elements of each group (of the longest, where the last of a row is shorter).
    pub fn group_len(&self) -> usize {
        match *self {
            GroupLayout::Contiguous { size, .. } | GroupLayout::Tiled { size, .. } => size,
            GroupLayout::Strided { outer, inner, .. } => outer * inner,
        }
    }

    /// Elements of a row: the shortest run that holds whole groups. The whole tensor if channels interleave.
    pub fn row_len(&self) -> usize {
        match *self {
            GroupLayout::Contiguous { row, .. } => row,
            GroupLayout::Strided { outer, channels, inner } => outer * channels * inner,
            GroupLayout::Tiled { outer, len, inner, .. } => outer * len * inner,
        }
    }

    /// Number of groups in the rows before `element`, which must begin a row or be the tensor's end.
    pub fn groups_before(&self, element: usize) -> usize {
        match *self {
            GroupLayout::Contiguous { row, size, .. } => element / row * row.div_ceil(size),
            GroupLayout::Strided { .. } | GroupLayout::Tiled { .. } => 0,
        }
    }

    /// Cuts `elements` into runs of one group each and calls `each(group, run)` in order.
    pub fn for_each_run(&self, elements: Range<usize>, mut each: impl FnMut(usize, Range<usize>)) {
        let mut start = elements.start;
        while start < elements.end {
            let (group, end) = self.run_at(start);
            let end = end.min(elements.end);
            each(group, start..end);
            start = end;
        }
    }

    /// If neighbouring elements belong to neighbouring groups: the group of `element`, and how many elements from there on
    /// belong to the groups that follow it one by one.
    pub(crate) fn column_groups(&self, element: usize) -> Option<(usize, usize)> {
        let columns = match *self {
            GroupLayout::Strided { channels, inner: 1, .. } => channels,
            GroupLayout::Tiled { inner, .. } => inner,
            _ => return None,
        };
        Some((self.run_at(element).0, columns - element % columns))
    }

    /// The group of an element.
    pub(crate) fn group_of(&self, element: usize) -> usize {
        self.run_at(element).0
    }

    /// The group of an element and where its run ends.
    fn run_at(&self, element: usize) -> (usize, usize) {
        match *self {
            GroupLayout::Contiguous { row, size, .. } => {
                let (index, within) = (element / row, element % row);
                let group = within / size;
                (index * row.div_ceil(size) + group, index * row + ((group + 1) * size).min(row))
            }
            GroupLayout::Strided { channels, inner, .. } => (element / inner % channels, (element / inner + 1) * inner),
            GroupLayout::Tiled { len, size, inner, .. } => {
                let (row, column) = (element / inner, element % inner);
                ((row / len * len.div_ceil(size) + row % len / size) * inner + column, element + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(layout: GroupLayout, elements: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut runs = Vec::new();
        layout.for_each_run(elements, |group, run| runs.push((group, run)));
        runs
    }

    #[test]
    fn a_row_ends_with_a_shorter_group() {
        let layout = GroupLayout::new(&[2, 5], Granularity::PerGroup(2), 0);
        assert_eq!(layout.groups(), 6);
        assert_eq!(runs(layout, 3..8), [(1, 3..4), (2, 4..5), (3, 5..7), (4, 7..8)]);
    }

    #[test]
    fn channels_of_an_inner_axis_interleave() {
        let layout = GroupLayout::new(&[2, 3, 2], Granularity::PerChannel, 1);
        assert_eq!((layout.groups(), layout.group_len()), (3, 4));
        assert_eq!(runs(layout, 2..9), [(1, 2..4), (2, 4..6), (0, 6..8), (1, 8..9)]);
    }

    #[test]
    fn blocks_along_an_outer_axis_are_numbered_by_block_and_then_by_column() {
        let layout = GroupLayout::blocks(&[3, 2], 0, 2);
        assert_eq!((layout.groups(), layout.group_len()), (4, 2));
        assert_eq!(runs(layout, 0..6), [(0, 0..1), (1, 1..2), (0, 2..3), (1, 3..4), (2, 4..5), (3, 5..6)]);
        assert_eq!(GroupLayout::blocks(&[2, 4], 1, 2), GroupLayout::Contiguous { rows: 2, row: 4, size: 2 });
    }

    #[test]
    fn the_outermost_axis_and_the_whole_tensor_are_contiguous() {
        assert_eq!(runs(GroupLayout::new(&[1, 3, 2], Granularity::PerChannel, 1), 0..6), [(0, 0..2), (1, 2..4), (2, 4..6)]);
        assert_eq!(runs(GroupLayout::new(&[4, 2], Granularity::PerTensor, 0), 0..8), [(0, 0..8)]);
    }
}
