//! Charts as inline SVG. Each colour stands for a role; the page's style sheet replaces them by those of its light or dark theme.

use crate::quant::params::Range;
use crate::report::distribution::Distribution;
use plotters::coord::Shift;
use plotters::prelude::*;

/// Size of a chart in its own units; pages scale it to their columns, so that text is readable on a phone.
const SIZE: (u32, u32) = (400, 200);

const TEXT: u32 = 13;

/// What there was before.
const BEFORE: RGBColor = RGBColor(0x3b, 0x7d, 0xd8);
/// What there is after.
const AFTER: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
/// Ends of a clipping range.
const CLIP: RGBColor = RGBColor(0xc2, 0x18, 0x5b);
/// The grid of codes.
const GRID: RGBColor = RGBColor(0x8a, 0x8f, 0x98);
/// Axes and their labels.
const INK: RGBColor = RGBColor(0x33, 0x38, 0x40);

/// Most lines of a grid of codes that are drawn.
const GRID_LINES: i32 = 32;

/// Most bars of a profile.
const BARS: usize = 210;

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws, and leaves out what the style sheet and the page say already.
fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut text = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area).and_then(|()| Ok(area.present()?))
    };
    // Memory does not fail; should a chart have nothing that can be drawn, the page does without it.
    if drawn.is_err() {
        return String::new();
    }
    text.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "").replace(" \"/>", "\"/>").replace(">\n", ">")
}

/// Sizes before and after, in bytes, with their texts.
pub(super) fn sizes(before: (u64, &str), after: (u64, &str)) -> String {
    let (width, height) = (SIZE.0, 80);
    svg((width, height), |area| {
        let largest = before.0.max(after.0).max(1) as f64;
        for (row, ((bytes, label), color)) in [(before, BEFORE), (after, AFTER)].into_iter().enumerate() {
            let top = 2 + 40 * row as i32;
            let end = ((bytes as f64 / largest * f64::from(width - 1)) as i32).max(2);
            area.draw(&Text::new(label.to_owned(), (0, top), ("sans-serif", TEXT).into_font().color(&INK)))?;
            area.draw(&Rectangle::new([(0, top + 17), (end, top + 31)], color.filled()))?;
        }
        Ok(())
    })
}

/// SQNR in dB of tensors in the model's order, `None` for those that lost nothing. With more tensors than fit, each bar is the
/// worst of neighbours; the second value is how many make up a bar.
pub(super) fn profile(values: &[Option<f64>]) -> (String, usize) {
    let per_bar = values.len().div_ceil(BARS).max(1);
    let worst = |group: &[Option<f64>]| group.iter().flatten().copied().reduce(f64::min);
    let bars: Vec<Option<f64>> = values.chunks(per_bar).map(worst).collect();
    let known = || bars.iter().flatten().copied();
    let top = known().fold(10.0, f64::max) * 1.05;
    let bottom = known().fold(0.0, f64::min);
    let chart = svg(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(4)
            .x_label_area_size(16)
            .y_label_area_size(34)
            .build_cartesian_2d(0.0..bars.len().max(1) as f64, bottom..top)?;
        let style = ("sans-serif", TEXT).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.mix(0.35))
            .axis_style(GRID)
            .y_labels(5)
            .y_label_formatter(&|db| format!("{db:.0}"))
            .label_style(style)
            .draw()?;
        let gap = if bars.len() > 100 { 0.0 } else { 0.1 };
        chart.draw_series(bars.iter().enumerate().filter_map(|(i, db)| {
            let db = (*db)?;
            Some(Rectangle::new([(i as f64 + gap, 0.0), ((i + 1) as f64 - gap, db)], BEFORE.filled()))
        }))?;
        Ok(())
    });
    (chart, per_bar)
}

/// Histograms before and after over the grid of codes, with the clipping range; logarithms of counts, so that tails show.
pub(super) fn distribution(found: &Distribution) -> String {
    let (min, max) = (f64::from(found.range.min), f64::from(found.range.max));
    // Coordinates near 1: the library's search for round labels does not go to the ends of f32.
    let magnitude = 10f64.powf((max - min).max(min.abs()).max(max.abs()).log10().floor());
    let unit = if magnitude.is_finite() && magnitude > 0.0 { magnitude } else { 1.0 };
    let (low, high) = (min / unit, max / unit);
    let margin = ((high - low) * 0.03).max(1e-6);
    // What lies beyond is left out: the library computes pixels of any coordinate, in `i32`.
    let is_inside = |x: &f64| (low - margin..=high + margin).contains(x);
    let height = |count: u64| (count as f64).ln_1p();
    let top = found.before.iter().chain(&found.after).copied().map(height).fold(1.0, f64::max) * 1.08;
    svg(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(4)
            .margin_right(10)
            .x_label_area_size(22)
            .build_cartesian_2d(low - margin..high + margin, 0.0..top)?;
        let style = ("sans-serif", TEXT).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(GRID)
            .disable_y_axis()
            .x_labels(5)
            .x_label_formatter(&|x| if x.abs() < 1e-9 { "0".into() } else { super::number(x * unit) })
            .label_style(style)
            .draw()?;
        if let Some(grid) = &found.grid {
            let codes = grid.codes.qmax - grid.codes.qmin;
            let step = (codes / GRID_LINES).max(1);
            let lines = (grid.codes.qmin..=grid.codes.qmax).filter(|code| (code - grid.params.zero_point) % step == 0);
            let values = lines.map(|code| grid.value(code) / unit).filter(is_inside);
            chart.draw_series(values.map(|x| PathElement::new([(x, 0.0), (x, top * 0.06)], GRID.stroke_width(1))))?;
        }
        let bins = found.before.len();
        let edge = |bin: usize| low + (high - low) * bin as f64 / bins.max(1) as f64;
        let outline = |counts: &[u64]| -> Vec<(f64, f64)> {
            let steps = counts.iter().enumerate().flat_map(|(bin, count)| [(edge(bin), height(*count)), (edge(bin + 1), height(*count))]);
            std::iter::once((edge(0), 0.0)).chain(steps).chain(std::iter::once((edge(counts.len()), 0.0))).collect()
        };
        chart.draw_series(std::iter::once(Polygon::new(outline(&found.before), BEFORE.mix(0.55))))?;
        if !found.after.is_empty() {
            chart.draw_series(std::iter::once(PathElement::new(outline(&found.after), AFTER.stroke_width(1))))?;
        }
        if let Some(grid) = &found.grid {
            let ends = |range: Range| [range.min, range.max].map(|end| f64::from(end) / unit);
            let line = |x: f64, width: u32| PathElement::new([(x, 0.0), (x, top)], CLIP.stroke_width(width));
            chart.draw_series(ends(grid.widest).into_iter().filter(is_inside).map(|x| line(x, 2)))?;
            if grid.narrowest != grid.widest {
                chart.draw_series(ends(grid.narrowest).into_iter().filter(is_inside).map(|x| line(x, 1)))?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::params::Params;
    use crate::quant::scheme::Grid;
    use crate::report::distribution::CodeGrid;

    #[test]
    fn charts_of_any_values_are_drawn_and_small() {
        let params = |scale| [Params { scale, zero_point: 0 }];
        for values in [vec![0.0], vec![1e-45, -1e-45], vec![f32::MAX, -f32::MAX], vec![1e30, 1.0000001e30], vec![-0.5; 9]] {
            for scale in [1e-45, 1.0, 3e38] {
                let grid = CodeGrid::new(&params(scale), Grid { qmin: -128, qmax: 127 });
                let found = Distribution::of("w", values.len(), grid, |elements, before, after| {
                    before.extend_from_slice(&values[elements.clone()]);
                    after.extend_from_slice(&values[elements]);
                });
                let chart = distribution(&found);
                assert!(chart.starts_with("<svg") && chart.ends_with("</svg>") && chart.len() < 12_000, "{values:?} {scale}: {chart}");
                assert!(!chart.contains("NaN"), "{values:?} {scale}: {chart}");
            }
        }
        for count in [0, 1, 5000] {
            let (chart, per_bar) = profile(&(0..count).map(|i| (i % 7 != 0).then_some(f64::from(i) - 3.0)).collect::<Vec<_>>());
            assert!(chart.ends_with("</svg>") && chart.len() < 40_000, "{count}: {} bytes", chart.len());
            assert_eq!(per_bar, (count as usize).div_ceil(BARS).max(1));
        }
        assert!(sizes((0, "nothing"), (0, "<b>")).contains("&lt;b&gt;"));
    }
}
