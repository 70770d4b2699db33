//! ONNX Runtime's calibration tables in JSON, as `quant_utils.write_calibration_table` and `calibrate.save_tensors_data` write them:
//!
//! ```text
//! {"x": [-1.5, 2.0], …}                                                                             as plain pairs
//! {"x": {"CLS": "TensorData", "lowest": NUMBER, "highest": NUMBER, …}, …}                           as tensors' data
//! {"CLS": "TensorsData", "data": {"x": {"CLS": "TensorData", …}, …}, "calibration_method": …}       with the method
//! NUMBER = 2.0, or {"CLS": "numpy.array", "dtype": "float32", "data": 2.0}, or the same with data [2.0]
//! ```
//!
//! Histograms and whatever else is kept of a value are passed over without being stored. Ranges of single channels
//! (`per_channel`) are refused: an activation has one scale.

use super::{Entry, TableFormat};
use crate::error::show_name;
use crate::formats::shorten;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use std::fmt;

pub(super) const FORMAT: TableFormat =
    TableFormat { name: "a calibration table of ONNX Runtime", recognizes: |text| text.trim_start().starts_with('{'), read };

/// Numbers that Python writes and JSON does not have.
const NOT_FINITE: &[&str] = &["NaN", "-Infinity", "Infinity"];

fn read(text: &str) -> Result<Vec<Entry>, String> {
    let (mut entries, mut current) = (Vec::new(), None);
    let mut json = serde_json::Deserializer::from_str(text);
    let table = Table { entries: &mut entries, current: &mut current };
    let done = if is_wrapped(text) { Wrapped(table).deserialize(&mut json) } else { table.deserialize(&mut json) };
    match done.and_then(|()| json.end()) {
        Ok(()) => Ok(entries),
        Err(error) => Err(describe(text, &error, current.as_deref())),
    }
}

/// Whether the table is within an object that names the method.
fn is_wrapped(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Head<'t> {
        #[serde(borrow, rename = "CLS")]
        class: Option<&'t RawValue>,
    }
    serde_json::from_str::<Head<'_>>(text).is_ok_and(|head| head.class.is_some_and(|class| class.get() == "\"TensorsData\""))
}

/// The message of an error, with the entry that it is in.
fn describe(text: &str, error: &serde_json::Error, entry: Option<&str>) -> String {
    let place = entry.map(|name| format!("entry {}: ", show_name(name))).unwrap_or_default();
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let near = |number: &&&str| {
        let starts = error.column().saturating_sub(2)..=error.column();
        starts.into_iter().any(|at| line.get(at..).is_some_and(|rest| rest.starts_with(**number)))
    };
    match NOT_FINITE.iter().find(near) {
        Some(number) => format!("{place}expected a finite number, found {number} at line {} column {}", error.line(), error.column()),
        None => format!("{place}{}", shorten(&error.to_string())),
    }
}

/// A map from names to ranges.
struct Table<'a> {
    entries: &'a mut Vec<Entry>,
    /// The entry that is being read.
    current: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of ranges by the names of values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            *self.current = Some(name.clone());
            let Ends([lowest, highest]) = map.next_value()?;
            *self.current = None;
            self.entries.push(Entry { place: format!("entry {}", show_name(&name)), name, lowest, highest, scale: None });
        }
        Ok(())
    }
}

/// The same as the member `data` of an object.
struct Wrapped<'a>(Table<'a>);

impl<'de> DeserializeSeed<'de> for Wrapped<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wrapped<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with data")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut table = Some(self.0);
        while let Some(key) = map.next_key::<String>()? {
            match (key.as_str(), table.take()) {
                ("data", Some(table)) => map.next_value_seed(table)?,
                ("data", None) => return Err(A::Error::custom("expected one member \"data\", found a second")),
                (_, kept) => {
                    table = kept;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match table {
            None => Ok(()),
            Some(_) => Err(A::Error::custom("expected a member \"data\", found none")),
        }
    }
}

/// Smallest and largest value.
struct Ends([f64; 2]);

impl<'de> Deserialize<'de> for Ends {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndsVisitor;
        impl<'de> Visitor<'de> for EndsVisitor {
            type Value = Ends;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[smallest, largest], or an object with lowest and highest")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ends, A::Error> {
                let mut ends = [0.0; 2];
                for (i, end) in ends.iter_mut().enumerate() {
                    *end = list.next_element::<Numbers>()?.ok_or_else(|| A::Error::invalid_length(i, &self))?.only()?;
                }
                // A histogram and its edges may follow.
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Ends(ends))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ends, A::Error> {
                const NAMES: [&str; 2] = ["lowest", "highest"];
                let mut ends = [None; 2];
                while let Some(key) = map.next_key::<String>()? {
                    match NAMES.iter().position(|name| *name == key) {
                        Some(end) if ends[end].is_some() => return Err(A::Error::custom(format!("expected one {key}, found a second"))),
                        Some(end) => ends[end] = Some(map.next_value::<Numbers>()?.only()?),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                match ends {
                    [Some(lowest), Some(highest)] => Ok(Ends([lowest, highest])),
                    [None, _] => Err(A::Error::missing_field(NAMES[0])),
                    [_, None] => Err(A::Error::missing_field(NAMES[1])),
                }
            }
        }
        deserializer.deserialize_any(EndsVisitor)
    }
}

/// A number, or a list of numbers, or a NumPy array: the first, and how many there are.
#[derive(Default)]
struct Numbers {
    first: f64,
    count: usize,
}

impl Numbers {
    fn only<E: de::Error>(&self) -> Result<f64, E> {
        match self.count {
            1 => Ok(self.first),
            count => Err(E::custom(format!("expected one number, found {count}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumbersVisitor;
        impl<'de> Visitor<'de> for NumbersVisitor {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a NumPy array")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Numbers, E> {
                Ok(Numbers { first: number, count: 1 })
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Numbers, E> {
                self.visit_f64(number as f64)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Numbers, E> {
                self.visit_f64(number as f64)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut all = Numbers::default();
                while let Some(more) = list.next_element::<Numbers>()? {
                    all.first = if all.count == 0 { more.first } else { all.first };
                    all.count += more.count;
                }
                Ok(all)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Numbers, A::Error> {
                let mut data = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "data" if data.is_some() => return Err(A::Error::custom("expected one data, found a second")),
                        "data" => data = Some(map.next_value::<Numbers>()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                data.ok_or_else(|| A::Error::missing_field("data"))
            }
        }
        deserializer.deserialize_any(NumbersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_a_range_is_read() {
        let array = |data: &str| format!(r#"{{"data": {data}, "dtype": "float32", "CLS": "numpy.array"}}"#);
        let tensor = format!(
            r#"{{"lowest": {}, "hist": {}, "highest": {}, "CLS": "TensorData"}}"#,
            array("-1.5"),
            array("[[1, 2], [3]]"),
            array("[2]")
        );
        let wrapped = format!(r#"{{"data": {{"x": {tensor}}}, "calibration_method": {{"value": "MinMax"}}, "CLS": "TensorsData"}}"#);
        for text in [r#"{"x": [-1.5, 2]}"#, r#"{"x": [-1.5, [2.0], [1, 2], 8]}"#, &format!(r#" {{"x": {tensor}}}"#), &wrapped] {
            let found: Vec<(String, f64, f64)> = read(text).unwrap().into_iter().map(|e| (e.name, e.lowest, e.highest)).collect();
            assert_eq!(found, [("x".to_owned(), -1.5, 2.0)], "{text}");
        }
        // A value may have the name of a member.
        assert_eq!(read(r#"{"CLS": [0, 1], "data": [0, 2]}"#).unwrap().len(), 2);
    }
}
