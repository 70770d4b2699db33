//! TensorRT's calibration cache, as `IInt8Calibrator::writeCalibrationCache` is given it: a line that names the calibrator, then
//! one line a value with the bits of its scale, an f32, in hexadecimal, the highest first:
//!
//! ```text
//! TRT-8501-EntropyCalibration2
//! input: 3c010a14
//! ```
//!
//! Codes are symmetric, from -127 to 127, so the value goes from -127 * scale to 127 * scale.

use super::{Entry, TableFormat};
use crate::formats::shorten;

pub(super) const FORMAT: TableFormat =
    TableFormat { name: "a calibration cache of TensorRT", recognizes: |text| text.starts_with(MAGIC), read };

/// What the line that names the calibrator begins with.
const MAGIC: &str = "TRT-";

/// The largest code.
const LARGEST: f64 = 127.0;

fn read(text: &str) -> Result<Vec<Entry>, String> {
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| entry(line).map_err(|message| format!("line {}: {message}", number + 1)).map(|entry| at(entry, number)))
        .collect()
}

fn at(entry: Entry, number: usize) -> Entry {
    Entry { place: format!("line {}", number + 1), ..entry }
}

fn entry(line: &str) -> Result<Entry, String> {
    let wrong = || format!("expected NAME: and up to eight hexadecimal digits, found {:?}", shorten(line));
    // Names may have colons too.
    let (name, digits) = line.rsplit_once(':').ok_or_else(wrong)?;
    let digits = digits.trim();
    if name.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) || !(1..=8).contains(&digits.len()) {
        return Err(wrong());
    }
    let scale = f32::from_bits(u32::from_str_radix(digits, 16).map_err(|_| wrong())?);
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(format!("expected a finite scale of at least 0, found {digits}, which is {scale}"));
    }
    let end = LARGEST * f64::from(scale);
    Ok(Entry { place: String::new(), name: name.to_owned(), lowest: -end, highest: end, scale: Some(scale) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_bits_and_names_may_have_colons_and_spaces() {
        let text = "TRT-8501-EntropyCalibration2\r\ninput:0: 3f800000\r\n(Unnamed Layer* 1) [Convolution]_output: 3c010a14\nzero: 0\n\n";
        let entries = read(text).unwrap();
        let found: Vec<(&str, f64)> = entries.iter().map(|entry| (entry.name.as_str(), entry.highest)).collect();
        let scale = f64::from(f32::from_bits(0x3c01_0a14));
        assert_eq!(found, [("input:0", 127.0), ("(Unnamed Layer* 1) [Convolution]_output", 127.0 * scale), ("zero", 0.0)]);
        assert_eq!(entries[1].place, "line 3");
    }
}
