//! Bounds on what a file may ask for, by name: what `--limit NAME=VALUE` sets.
//!
//! They are there so that a few bytes of a stranger's file cannot take gigabytes of memory or hours, not to judge models: each default is
//! far above what published models need. A new bound is a field of [`ReadOptions`] or [`SampleLimits`] and its entry in [`LIMITS`].

use crate::calibration::samples::SampleLimits;
use crate::error::{Error, Result};
use crate::formats::ReadOptions;

/// All bounds, of models and of samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Of models.
    pub read: ReadOptions,
    /// Of samples.
    pub samples: SampleLimits,
}

/// One row of [`LIMITS`].
pub struct LimitEntry {
    /// Name in options and messages.
    pub name: &'static str,
    /// What it bounds, as help says it.
    pub help: &'static str,
    /// Whether it counts bytes, so that values may have units such as `MiB`.
    pub is_bytes: bool,
    /// Largest value that it can be set to.
    pub most: u64,
    place: fn(&mut Limits) -> &mut u64,
}

impl LimitEntry {
    const fn new(name: &'static str, help: &'static str, is_bytes: bool, place: fn(&mut Limits) -> &mut u64) -> Self {
        LimitEntry { name, help, is_bytes, most: u64::MAX, place }
    }

    /// The value in force.
    pub fn get(&self, limits: &Limits) -> u64 {
        *(self.place)(&mut limits.clone())
    }

    /// Sets the value.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it is larger than [`LimitEntry::most`].
    pub fn set(&self, limits: &mut Limits, value: u64) -> Result<()> {
        if value > self.most {
            return Err(Error::Usage(format!("limit {}: expected at most {}, found {value}", self.name, self.most)));
        }
        *(self.place)(limits) = value;
        Ok(())
    }
}

/// Deepest nesting that can be asked for: as deep as a thread's stack of 2 MiB carries with room to spare.
pub(crate) const DEEPEST: u64 = 500;

/// Every bound that can be set.
pub const LIMITS: &[LimitEntry] = &[
    LimitEntry::new("header-bytes", "longest header of a safetensors file, and longest index of shards", true, |l| {
        &mut l.read.max_header_bytes
    }),
    LimitEntry::new("rank", "most dimensions of a tensor of a model", false, |l| &mut l.read.max_rank),
    LimitEntry::new("name-bytes", "longest name of a tensor or node", true, |l| &mut l.read.max_name_bytes),
    LimitEntry::new("elements", "most elements of a tensor", false, |l| &mut l.read.max_elements),
    LimitEntry::new("shards", "most files of weights of a model", false, |l| &mut l.read.max_shards),
    LimitEntry::new("nodes", "most nodes, and most initializers, of an ONNX model", false, |l| &mut l.read.max_nodes),
    LimitEntry {
        most: DEEPEST,
        ..LimitEntry::new("nesting", "deepest nesting of messages in ONNX files", false, |l| &mut l.read.max_nesting)
    },
    LimitEntry::new("graph-bytes", "memory for an ONNX graph, weights aside", true, |l| &mut l.read.max_graph_bytes),
    LimitEntry::new("sample-bytes", "largest sample in memory; .npz members are inflated no further", true, |l| {
        &mut l.samples.max_sample_bytes
    }),
    LimitEntry::new("sample-rank", "most dimensions of an array of a sample", false, |l| &mut l.samples.max_rank),
    LimitEntry::new("npy-header-bytes", "longest header of a .npy file or member", true, |l| &mut l.samples.max_header_bytes),
    LimitEntry::new("npz-members", "most members of a .npz file", false, |l| &mut l.samples.max_members),
];

/// The bound of that name.
///
/// # Errors
///
/// [`Error::Usage`] with the names that there are if it is none of them.
pub fn find(name: &str) -> Result<&'static LimitEntry> {
    crate::method::look_up("limit", LIMITS, |entry| entry.name, name)
}

/// `error`, which says that the bound `name` was exceeded, with what can be done about it.
pub(crate) fn raised_by(error: Error, name: &'static str) -> Error {
    debug_assert!(find(name).is_ok(), "a name of the table");
    error.with_hint(format!("--limit {name}=VALUE raises it, for files that you trust"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_a_place_of_its_own() {
        let mut limits = Limits::default();
        for (number, entry) in LIMITS.iter().enumerate() {
            assert!((1..=entry.most).contains(&entry.get(&limits)), "{}", entry.name);
            entry.set(&mut limits, number as u64 + 100).unwrap();
        }
        for (number, entry) in LIMITS.iter().enumerate() {
            assert_eq!(entry.get(&limits), number as u64 + 100, "{}", entry.name);
        }
        let nesting = find("nesting").unwrap();
        assert_eq!(nesting.set(&mut limits, DEEPEST + 1).unwrap_err().exit_code(), 2);
    }
}
