//! Results as one page for a browser: a single file without links to others, which shows the same without scripts.
//!
//! A [`Page`] is plain data, sections of charts, tables and text; `report.html` lays it out with every text escaped, `style.css`
//! has its light, dark and printed looks, and `script.js` sorts and filters its tables. The same results give the same bytes.

mod chart;
mod compare;
mod inspect;
mod quantize;

pub use compare::{comparison, output_comparison};
pub use inspect::inspection;
pub use quantize::quantization;

use crate::error::{Result, escape_lines, show_text};
use crate::outputs::staging::{self, Durability};
use crate::quant::metrics::Metrics;
use crate::report::distribution::Distribution;
use crate::report::terminal;
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// How a page that this program made begins, but for the version.
const GENERATOR: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"generator\" content=\"qtool ";

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What the page's Content-Security-Policy calls its only script: the SHA-256 of `script.js`, in base64. Nothing else runs.
const SCRIPT_HASH: &str = "sha256-PYBgamygbGDdn9oC+jae/hWC4UTh2F0e/zt19hCbyHs=";

/// One page.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    version: &'static str,
    title: String,
    /// What was done, in a word or two.
    verb: &'static str,
    facts: Vec<Fact>,
    notes: Vec<String>,
    sections: Vec<Section>,
}

/// A figure of the summary.
#[derive(Clone, Debug, Serialize)]
struct Fact {
    label: &'static str,
    value: String,
    note: String,
}

/// A part of a page, with what it has of these, in this order.
#[derive(Clone, Debug, Default, Serialize)]
struct Section {
    id: &'static str,
    title: String,
    lead: String,
    charts: Vec<Chart>,
    table: Option<Table>,
    text: Option<String>,
}

/// A drawing, with what it shows.
#[derive(Clone, Debug, Serialize)]
struct Chart {
    title: String,
    svg: String,
    note: String,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
    /// What the rows are, in the plural.
    what: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct Column {
    title: &'static str,
    is_number: bool,
    /// Whether the rows are in the order of this column.
    is_order: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    is_failing: bool,
    cells: Vec<Cell>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, Serialize)]
struct Cell {
    text: String,
    /// What rows are sorted by, where the text does not begin with it.
    key: Option<String>,
    /// Length of a bar, in percent.
    bar: Option<String>,
    /// A range within another.
    track: Option<Track>,
}

/// Where a range is and how wide, and where 0 is, in percent of what is shown.
#[derive(Clone, Debug, Serialize)]
struct Track {
    observed: [String; 2],
    chosen: [String; 2],
    zero: String,
}

impl Page {
    fn new(verb: &'static str, title: String) -> Self {
        Page { version: env!("CARGO_PKG_VERSION"), verb, title, facts: Vec::new(), notes: Vec::new(), sections: Vec::new() }
    }

    fn fact(&mut self, label: &'static str, value: impl Into<String>, note: impl Into<String>) {
        self.facts.push(Fact { label, value: value.into(), note: note.into() });
    }

    /// Adds a section, unless there is nothing in it.
    fn push(&mut self, section: Section) {
        let is_empty = section.charts.is_empty() && section.text.is_none() && section.table.iter().all(|table| table.rows.is_empty());
        if !is_empty {
            self.sections.push(section);
        }
    }

    /// Sizes before and after, as figures and as a chart.
    fn sizes(&mut self, before: u64, after: u64) {
        let (shown_before, shown_after) = (terminal::bytes(before), terminal::bytes(after));
        let note = match before as f64 / after.max(1) as f64 {
            ratio if ratio >= 1.0 => format!("{ratio:.2} times smaller"),
            ratio => format!("{:.2} times larger", 1.0 / ratio),
        };
        self.fact("Size", format!("{shown_before} → {shown_after}"), note);
        let svg = chart::sizes((before, &format!("before: {shown_before}")), (after, &format!("after: {shown_after}")));
        let chart = Chart { title: String::new(), svg, note: String::new() };
        self.push(Section { id: "size", title: "Size of the weights".into(), charts: vec![chart], ..Section::default() });
    }

    /// The recipe, and the command that does the same again.
    fn ending(&mut self, recipe: Option<&str>, command: &str) {
        let text = recipe.map(|recipe| escape_lines(recipe.trim_end()));
        let lead = "Saved as a file, --recipe takes it; the sidecar records the same.".into();
        self.push(Section { id: "recipe", title: "Recipe".into(), lead, text, ..Section::default() });
        let text = Some(escape_lines(command)).filter(|command| !command.is_empty());
        self.push(Section { id: "command", title: "To do this again".into(), text, ..Section::default() });
    }

    /// The page as text.
    pub fn to_html(&self) -> String {
        let mut environment = minijinja::Environment::new();
        // The name's extension turns escaping on.
        let name = "report.html";
        let made = environment.add_template(name, TEMPLATE).and_then(|()| {
            let context =
                minijinja::context! { page => minijinja::value::Serde(self), style => STYLE, script => SCRIPT, script_hash => SCRIPT_HASH };
            environment.get_template(name)?.render(context)
        });
        made.expect("the template, which is part of the program, fits the data")
    }

    /// Writes the page to a file that appears whole, or not at all.
    ///
    /// # Errors
    ///
    /// As [`check_free`]; [`crate::Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path, replace: bool, durability: Durability) -> Result<()> {
        check_free(path, replace)?;
        staging::write_file(path, self.to_html().as_bytes(), replace, durability)
    }
}

/// Whether a page can be written to `path`: to know before the work rather than after it.
///
/// # Errors
///
/// [`crate::Error::Usage`] if there is a file already, unless `replace` and it is such a page; [`crate::Error::Io`] if its directory does not
/// exist.
pub fn check_free(path: &Path, replace: bool) -> Result<()> {
    staging::check_free(path, replace)?;
    if path.symlink_metadata().is_ok() && !is_page(path) {
        let hint = "--report writes elsewhere with another name; if the file can go, remove it first";
        return Err(staging::not_replaceable(path, "report", "a report of qtool", hint));
    }
    Ok(())
}

/// Whether a file begins as pages of this program do.
fn is_page(path: &Path) -> bool {
    // A FIFO would be waited for.
    if !path.is_file() {
        return false;
    }
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(GENERATOR.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == GENERATOR.as_bytes()
}

impl Table {
    /// With these columns: titles, and whether they are numbers. Rows are in the order of column `order`.
    fn new(what: &'static str, columns: &[(&'static str, bool)], order: Option<usize>) -> Self {
        let column =
            |(i, (title, is_number)): (usize, &(&'static str, bool))| Column { title, is_number: *is_number, is_order: order == Some(i) };
        Table { columns: columns.iter().enumerate().map(column).collect(), rows: Vec::new(), what }
    }

    fn push(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row { is_failing: false, cells });
    }
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Cell { text: text.into(), ..Cell::default() }
    }

    /// A name from a file of a stranger.
    fn name(name: &str) -> Self {
        Cell::text(show_text(name).to_string())
    }

    fn number(value: f64) -> Self {
        Cell { key: Some(format!("{value:e}")), ..Cell::text(number(value)) }
    }

    fn shape(dims: &[usize]) -> Self {
        let elements = dims.iter().map(|dim| *dim as f64).product::<f64>();
        Cell { key: Some(format!("{elements}")), ..Cell::text(terminal::shape(dims)) }
    }

    /// SQNR with a bar of which `full` dB are the whole.
    fn sqnr(metrics: &Metrics, full: f64) -> Self {
        let db = metrics.sqnr_db.unwrap_or(if metrics.mse == 0.0 { f64::INFINITY } else { f64::NEG_INFINITY });
        let share = (100.0 * db / full).clamp(0.0, 100.0);
        Cell { key: Some(sort_key(db)), bar: Some(format!("{share:.1}")), ..Cell::text(terminal::sqnr(metrics)) }
    }
}

/// A number as scripts read it; the infinities are beyond all others.
fn sort_key(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { format!("{}", value.signum() * 1e300) }
}

/// The largest SQNR of all, at least that of int8 weights: the whole of bars.
fn full_bar(values: impl Iterator<Item = Option<f64>>) -> f64 {
    values.flatten().fold(48.0, f64::max)
}

/// Four digits, in scientific notation where they would not show the size.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        magnitude @ 1e-3..1e6 => {
            let decimals = (3 - magnitude.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.decimals$}");
            if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
        }
        _ => format!("{value:.3e}"),
    }
}

/// The section of histograms; `lead` says which tensors or values they are of.
fn distributions(id: &'static str, title: &str, lead: String, found: &[Distribution]) -> Section {
    let of = |found: &Distribution| {
        let clip = found.grid.map(|grid| {
            let ends = |range: crate::quant::params::Range| format!("{} to {}", number(range.min.into()), number(range.max.into()));
            match grid.groups {
                0 | 1 => format!("range {}, scale {}", ends(grid.widest), number(grid.params.scale.into())),
                groups => format!(
                    "ranges of {groups} groups: widest {}, narrowest {}, median scale {}",
                    ends(grid.widest),
                    ends(grid.narrowest),
                    number(grid.params.scale.into())
                ),
            }
        });
        Chart { title: show_text(&found.name).to_string(), svg: chart::distribution(found), note: clip.unwrap_or_default() }
    };
    Section { id, title: title.into(), lead, charts: found.iter().map(of).collect(), ..Section::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = |chunk: &[u8]| {
            let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            let digit = |i: usize| DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char;
            (0..4).map(|i| if i <= chunk.len() { digit(i) } else { '=' }).collect::<String>()
        };
        bytes.chunks(3).map(digits).collect()
    }

    #[test]
    fn only_the_script_of_the_page_may_run() {
        assert_eq!(SCRIPT_HASH, format!("sha256-{}", base64(&Sha256::digest(SCRIPT))), "SCRIPT_HASH is that of script.js");
        assert!(!SCRIPT.contains("</") && !STYLE.contains("</"), "they end where the template ends them");
    }

    #[test]
    fn what_a_page_shows_is_text() {
        let hostile = "<script>alert(1)</script>\"'\u{0}\u{202e}&amp;";
        let mut page = Page::new("test", show_text(hostile).to_string());
        page.fact("fact", hostile, hostile);
        page.notes.push(hostile.into());
        let mut table = Table::new("names", &[("name", false)], Some(0));
        table.push(vec![Cell { key: Some(hostile.into()), ..Cell::name(hostile) }]);
        page.push(Section { id: "s", title: hostile.into(), lead: hostile.into(), table: Some(table), ..Section::default() });
        page.ending(Some(hostile), hostile);
        let html = page.to_html();
        assert!(html.starts_with(GENERATOR), "{}", &html[..200]);
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;&#x2f;script&gt;"), "{html}");
    }

    #[test]
    fn numbers_have_four_digits() {
        let cases = [(0.0, "0"), (1.0, "1"), (-0.0123456, "-0.01235"), (123456.0, "123456"), (1e-9, "1.000e-9"), (2.5e7, "2.500e7")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
