//! Statistics as a safetensors file, version 1, or 2 with inputs of layers; `docs/statistics.md` describes it for other readers.
//!
//! ```text
//! __metadata__     {"qtool": JSON}: model, versions and the seal
//! samples          U8 [n, 32]: hashes of samples, ascending
//! NAME.SECTION     of each activation; see SECTIONS
//! ```
//!
//! The *seal* is a BLAKE3 hash of the whole file with zeros in the seal's place, so that damage is noticed: most bytes of a
//! histogram could be others without a contradiction. What it seals is checked all the same, as files may come from
//! elsewhere: an unknown section, a sum that does not fit its count and an extent that is not that of the bins are errors.

use super::activation::{ActivationStats, Parts};
use super::histogram::{MANTISSA_BITS, Tally};
use super::{ModelIdentity, Statistics};
use crate::calibration::inputs::stats::{InputParts, InputStats};
use crate::calibration::inputs::sums::FixedSums;
use crate::error::{Error, Result, show_name};
use crate::formats::mmap::MappedFile;
use crate::formats::{parse_object, read_safetensors, shorten};
use crate::model::SourceFile;
use crate::observers::summary::Smoothed;
use crate::outputs::container::{Container, Entry, Order, lay_out};
use crate::outputs::staging::{Durability, write_file};
use crate::quant::params::Range;
use crate::tensor::{Dtype, TensorInfo};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the metadata calls the format.
const FORMAT: &str = "qtool-statistics";

/// Bytes at the start of a file that have its format.
const START: usize = 4096;

/// Versions that are read: without statistics of layers' inputs, and with them. The lowest that has what there is is written.
const VERSIONS: [u64; 2] = [1, 2];

/// The key of the metadata.
const KEY: &str = "qtool";

/// The name of the tensor of sample hashes. Names of other tensors have a full stop.
const SAMPLES: &str = "samples";

/// Bytes of a sample's hash.
const HASH: usize = 32;

/// What is in the place of the seal while the seal is computed.
const UNSEALED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Sections of an activation, with the types that their numbers may have.
const SECTIONS: &[(&str, &[Dtype])] = &[
    // Values, batches.
    ("totals", &[Dtype::U64]),
    // Minimum, maximum.
    ("extent", &[Dtype::F32]),
    // Rows of an exponent, the sum of mantissas of batches' minima, that of their maxima.
    ("extents", &[Dtype::I64]),
    // Numbers of bins that have values.
    ("bins", &[Dtype::I32]),
    // Values in each of these; the narrowest type that holds them.
    ("counts", &[Dtype::U16, Dtype::U32, Dtype::U64]),
    // The sum of their remainders; likewise.
    ("remainders", &[Dtype::U16, Dtype::U32, Dtype::U64]),
    // Weight, minimum, maximum; only where asked for.
    ("moving_average", &[Dtype::F32]),
    // Of inputs of layers, in version 2: number of rows.
    ("rows", &[Dtype::U64]),
    // The largest magnitude of each feature.
    ("abs_max", &[Dtype::F32]),
    // The sums of features in fixed point, of their squares, and of products of features, row by row of the lower triangle.
    ("sum_high", &[Dtype::I64]),
    ("sum_low", &[Dtype::I64]),
    ("square_high", &[Dtype::I64]),
    ("square_low", &[Dtype::I64]),
    ("gram_high", &[Dtype::I64]),
    ("gram_low", &[Dtype::I64]),
];

/// The text of the metadata; fields in alphabetical order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    bin_mantissa_bits: u32,
    blake3: String,
    format: String,
    model: ModelRecord,
    qtool_version: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelRecord {
    blake3: String,
    bytes: u64,
    name: String,
}

impl Statistics {
    /// Whether the file at `path` begins as statistics do, of whatever version.
    pub(crate) fn recognizes(path: &Path) -> bool {
        let Ok(file) = MappedFile::open(path) else { return false };
        let start = &file.bytes()[..file.bytes().len().min(START)];
        let begin = format!("{{\"__metadata__\":{{\"{KEY}\":");
        start.get(8..).is_some_and(|header| header.starts_with(begin.as_bytes()))
            && start.windows(FORMAT.len()).any(|window| window == FORMAT.as_bytes())
    }

    /// The content of a file of these statistics. Equal statistics have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut entries = vec![entry(SAMPLES.to_owned(), Dtype::U8, vec![self.samples.len(), HASH])];
        let mut contents: Vec<Vec<u8>> = vec![self.samples.iter().flatten().copied().collect()];
        for (name, stats) in &self.activations {
            for (section, dtype, shape, bytes) in encode(&stats.parts()) {
                entries.push(entry(format!("{name}.{section}"), dtype, shape));
                contents.push(bytes);
            }
        }
        for (name, inputs) in &self.inputs {
            for (section, dtype, shape, bytes) in encode_inputs(&inputs.parts()) {
                entries.push(entry(format!("{name}.{section}"), dtype, shape));
                contents.push(bytes);
            }
        }
        let document = Document {
            bin_mantissa_bits: MANTISSA_BITS,
            blake3: UNSEALED.to_owned(),
            format: FORMAT.to_owned(),
            model: ModelRecord { blake3: self.model.blake3.to_hex().to_string(), bytes: self.model.bytes, name: self.model.name.clone() },
            qtool_version: env!("CARGO_PKG_VERSION").to_owned(),
            version: VERSIONS[usize::from(!self.inputs.is_empty())],
        };
        let text = serde_json::to_string(&document).expect("texts and numbers have a JSON form");
        let Container { header, places, len } = lay_out(&entries, &[(KEY.to_owned(), text)], Order::Aligned);
        let mut bytes = header;
        bytes.resize(len as usize, 0);
        for (content, place) in contents.iter().zip(places) {
            bytes[place.start as usize..place.end as usize].copy_from_slice(content);
        }
        let seal = blake3::hash(&bytes).to_hex();
        let place = find(&bytes, UNSEALED.as_bytes()).expect("the metadata come before anything else that could hold as many zeros");
        bytes[place..place + UNSEALED.len()].copy_from_slice(seal.as_bytes());
        bytes
    }

    /// Writes them to a file, which appears complete or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is a file already and not `replace`, [`Error::Io`].
    pub fn write(&self, path: &Path, replace: bool, durability: Durability) -> Result<()> {
        write_file(path, &self.to_bytes(), replace, durability)
    }

    /// Reads a file of statistics and checks that everything in it agrees.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] or [`Error::Tensor`] if it is no such file, is damaged or contradicts itself, or is of a
    /// version that this one does not know; [`Error::Limit`] if it exceeds the limits of safetensors headers;
    /// [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let (source, tensors) = read_safetensors(MappedFile::open(path)?)?;
        let document = read_document(path, &source)?;
        check_seal(path, &source, &document.blake3)?;
        if document.bin_mantissa_bits != MANTISSA_BITS {
            let found = document.bin_mantissa_bits;
            return Err(Error::malformed(path, format!("bins: expected {MANTISSA_BITS} bits of mantissas, found {found}")));
        }
        let hash = |text: &str| {
            blake3::Hash::from_hex(text).map_err(|e| Error::malformed(path, format!("model: expected a BLAKE3 hash, found {text:?}: {e}")))
        };
        let ModelRecord { blake3, bytes, name } = document.model;
        let model = ModelIdentity { name, bytes, blake3: hash(&blake3)? };
        let reader = Reader { path, bytes: source.bytes() };
        let mut samples = BTreeSet::new();
        let mut sections: BTreeMap<&str, BTreeMap<&str, &TensorInfo>> = BTreeMap::new();
        for info in &tensors {
            match info.name.rsplit_once('.') {
                Some((name, section)) => {
                    sections.entry(name).or_default().insert(section, info);
                }
                None if info.name == SAMPLES => samples = reader.samples(info)?,
                None => return Err(Error::tensor(path, &info.name, "name: expected samples or NAME.SECTION, found neither")),
            }
        }
        if !tensors.iter().any(|info| info.name == SAMPLES) {
            return Err(Error::malformed(path, "samples: expected a tensor of this name, found none"));
        }
        let (mut activations, mut inputs) = (BTreeMap::new(), BTreeMap::new());
        for (name, sections) in sections {
            activations.insert(name.to_owned(), reader.activation(name, &sections)?);
            if document.version == VERSIONS[1] && sections.contains_key("rows") {
                inputs.insert(name.to_owned(), reader.inputs(name, &sections)?);
            }
        }
        Ok(Statistics { model, activations, inputs, samples, file: Some(path.to_owned()) })
    }
}

fn entry(name: String, dtype: Dtype, shape: Vec<usize>) -> Entry {
    Entry { name, dtype, shape, codes: None }
}

/// The sections of an activation: name, type, shape, content.
fn encode(parts: &Parts) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bins = parts.tallies.len();
    let (counts_type, counts) = narrowest(parts.tallies.iter().map(|(_, tally)| tally.count).collect());
    let (remainders_type, remainders) = narrowest(parts.tallies.iter().map(|(_, tally)| tally.remainders).collect());
    let mut sections = vec![
        ("totals", Dtype::U64, vec![2], [parts.values, parts.batches].iter().flat_map(|n| n.to_le_bytes()).collect()),
        ("extent", Dtype::F32, vec![2], floats(&[parts.extent.min, parts.extent.max])),
        ("extents", Dtype::I64, vec![parts.extents.len(), 3], parts.extents.iter().flatten().flat_map(|n| n.to_le_bytes()).collect()),
        ("bins", Dtype::I32, vec![bins], parts.tallies.iter().flat_map(|(number, _)| number.to_le_bytes()).collect()),
        ("counts", counts_type, vec![bins], counts),
        ("remainders", remainders_type, vec![bins], remainders),
    ];
    if let Some(Smoothed { weight, range }) = parts.smoothed {
        sections.push(("moving_average", Dtype::F32, vec![3], floats(&[weight, range.min, range.max])));
    }
    sections
}

/// The sections of a layer's inputs.
fn encode_inputs(parts: &InputParts) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    let integers = |numbers: &[i64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let features = parts.abs_max.len();
    let mut sections = vec![
        ("rows", Dtype::U64, vec![1], parts.rows.to_le_bytes().to_vec()),
        ("abs_max", Dtype::F32, vec![features], parts.abs_max.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ("sum_high", Dtype::I64, vec![features], integers(&parts.sums.high)),
        ("sum_low", Dtype::I64, vec![features], integers(&parts.sums.low)),
        ("square_high", Dtype::I64, vec![features], integers(&parts.squares.high)),
        ("square_low", Dtype::I64, vec![features], integers(&parts.squares.low)),
    ];
    if let Some(gram) = &parts.gram {
        sections.push(("gram_high", Dtype::I64, vec![gram.high.len()], integers(&gram.high)));
        sections.push(("gram_low", Dtype::I64, vec![gram.low.len()], integers(&gram.low)));
    }
    sections
}

/// Numbers in the narrowest type that holds all of them.
fn narrowest(numbers: Vec<u64>) -> (Dtype, Vec<u8>) {
    let (dtype, width) = match numbers.iter().max().copied().unwrap_or(0) {
        0..=0xffff => (Dtype::U16, 2),
        0x1_0000..=0xffff_ffff => (Dtype::U32, 4),
        _ => (Dtype::U64, 8),
    };
    (dtype, numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(width)).collect())
}

fn read_document(path: &Path, source: &SourceFile) -> Result<Document> {
    let malformed = |message: String| Error::malformed(path, format!("metadata: {message}"));
    let [(key, text)] = source.metadata() else {
        let found = source.metadata().len();
        return Err(malformed(format!("expected the one key {KEY:?} of a file of statistics, found {found} keys")));
    };
    if key != KEY {
        return Err(malformed(format!("expected the key {KEY:?} of a file of statistics, found {}", show_name(key))));
    }
    let members = parse_object(text).map_err(|e| malformed(format!("expected a JSON object, found {e}")))?;
    let member = |name: &str| members.iter().find(|(key, _)| key == name).map_or("none", |(_, value)| value.get());
    let versions = VERSIONS.map(|version| version.to_string());
    for (name, expected) in [("format", &[format!("{FORMAT:?}")][..]), ("version", &versions)] {
        if !expected.iter().any(|expected| expected == member(name)) {
            let found = crate::error::escape(&shorten(member(name)));
            return Err(malformed(format!("{name}: expected {}, found {found}", expected.join(" or "))));
        }
    }
    let version = member("version");
    serde_json::from_str(text)
        .map_err(|e| malformed(format!("expected the fields of version {version}, found {}", shorten(&e.to_string()))))
}

/// Compares the seal with the hash of everything but itself.
fn check_seal(path: &Path, source: &SourceFile, seal: &str) -> Result<()> {
    let bytes = source.bytes();
    let place = find(source.header(), seal.as_bytes()).filter(|_| seal.len() == UNSEALED.len());
    let computed = place.map(|place| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes[..place]).update(UNSEALED.as_bytes()).update(&bytes[place + seal.len()..]);
        hasher.finalize().to_hex()
    });
    match computed {
        Some(computed) if computed.as_str() == seal => Ok(()),
        Some(computed) => {
            Err(Error::malformed(path, format!("content: expected the BLAKE3 hash {seal} of its metadata, found {computed}"))
                .with_hint("the file is damaged: calibrate again, or copy it again"))
        }
        None => Err(Error::malformed(path, format!("blake3: expected a hash in hexadecimal, found {}", show_name(seal)))),
    }
}

/// Where `text` occurs first.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    if text.is_empty() { None } else { bytes.windows(text.len()).position(|window| window == text) }
}

/// A file whose header has been read.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn error(&self, info: &TensorInfo, message: impl Into<String>) -> Error {
        Error::tensor(self.path, &info.name, message)
    }

    fn samples(&self, info: &TensorInfo) -> Result<BTreeSet<[u8; HASH]>> {
        if (info.dtype, info.shape.get(1..)) != (Dtype::U8, Some([HASH].as_slice())) {
            return Err(self.error(info, format!("type: expected U8 [n, {HASH}], found {} {:?}", info.dtype, info.shape)));
        }
        let (hashes, _) = self.bytes[info.bytes.clone()].as_chunks::<HASH>();
        if !hashes.is_sorted_by(|a, b| a < b) {
            return Err(self.error(info, "hashes: expected them ascending, each of them once, found another order"));
        }
        Ok(hashes.iter().copied().collect())
    }

    fn activation(&self, name: &str, sections: &BTreeMap<&str, &TensorInfo>) -> Result<ActivationStats> {
        if let Some((section, info)) = sections.iter().find(|(section, _)| !SECTIONS.iter().any(|(known, _)| known == *section)) {
            let known: Vec<&str> = SECTIONS.iter().map(|(known, _)| *known).collect();
            return Err(self.error(info, format!("section: expected one of {}, found {}", known.join(", "), show_name(section))));
        }
        let section = |section: &str| {
            let missing = || Error::tensor(self.path, name, format!("sections: expected {section}, found none"));
            sections.get(section).copied().ok_or_else(missing)
        };
        let [values, batches] = self.few(section("totals")?, u64::from_le_bytes)?;
        let [min, max] = self.few(section("extent")?, f32::from_le_bytes)?;
        let smoothed = match sections.get("moving_average") {
            None => None,
            Some(info) => {
                let [weight, min, max] = self.few(info, f32::from_le_bytes)?;
                Some(Smoothed { weight, range: Range { min, max } })
            }
        };
        let parts = Parts {
            values,
            batches,
            extent: Range { min, max },
            extents: self.rows(section("extents")?)?,
            tallies: self.tallies(section("bins")?, section("counts")?, section("remainders")?)?,
            smoothed,
        };
        ActivationStats::from_parts(parts)
            .map_err(|(section, message)| Error::tensor(self.path, &format!("{name}.{section}"), format!("values: {message}")))
    }

    fn inputs(&self, name: &str, sections: &BTreeMap<&str, &TensorInfo>) -> Result<InputStats> {
        let section = |section: &str| {
            let missing = || Error::tensor(self.path, name, format!("sections: expected {section}, found none"));
            sections.get(section).copied().ok_or_else(missing)
        };
        let [rows] = self.few(section("rows")?, u64::from_le_bytes)?;
        let abs_max = self.list(section("abs_max")?, f32::from_le_bytes)?;
        let fixed = |high: &str, low: &str| -> Result<FixedSums> {
            Ok(FixedSums { high: self.list(section(high)?, i64::from_le_bytes)?, low: self.list(section(low)?, i64::from_le_bytes)? })
        };
        let (sums, squares) = (fixed("sum_high", "sum_low")?, fixed("square_high", "square_low")?);
        let gram = sections.contains_key("gram_high").then(|| fixed("gram_high", "gram_low")).transpose()?;
        InputStats::from_parts(InputParts { rows, abs_max, sums, squares, gram })
            .map_err(|(section, message)| Error::tensor(self.path, &format!("{name}.{section}"), format!("values: {message}")))
    }

    /// All numbers of a section that is a list.
    fn list<T, const W: usize>(&self, info: &TensorInfo, decode: fn([u8; W]) -> T) -> Result<Vec<T>> {
        self.check(info, &[info.shape.first().copied().unwrap_or(0)])?;
        Ok(self.bytes[info.bytes.clone()].as_chunks::<W>().0.iter().map(|bytes| decode(*bytes)).collect())
    }

    /// As many numbers as the section has, no more and no less.
    fn few<T: Copy, const N: usize, const W: usize>(&self, info: &TensorInfo, decode: fn([u8; W]) -> T) -> Result<[T; N]> {
        self.check(info, &[N])?;
        let numbers: Vec<T> = self.bytes[info.bytes.clone()].as_chunks::<W>().0.iter().map(|bytes| decode(*bytes)).collect();
        Ok(numbers.try_into().unwrap_or_else(|_| unreachable!("the shape was checked")))
    }

    fn rows(&self, info: &TensorInfo) -> Result<Vec<[i64; 3]>> {
        self.check(info, &[info.shape.first().copied().unwrap_or(0), 3])?;
        let numbers: Vec<i64> = self.bytes[info.bytes.clone()].as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        Ok(numbers.as_chunks::<3>().0.to_vec())
    }

    fn tallies(&self, bins: &TensorInfo, counts: &TensorInfo, remainders: &TensorInfo) -> Result<Vec<(i32, Tally)>> {
        let length = [bins.shape.first().copied().unwrap_or(0)];
        for info in [bins, counts, remainders] {
            self.check(info, &length)?;
        }
        let numbers = self.bytes[bins.bytes.clone()].as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
        let tallies = self.unsigned(counts).zip(self.unsigned(remainders)).map(|(count, remainders)| Tally { count, remainders });
        Ok(numbers.zip(tallies).collect())
    }

    /// Unsigned integers of whatever width.
    fn unsigned(&self, info: &TensorInfo) -> impl Iterator<Item = u64> + use<'_> {
        let width = info.dtype.bytes().unwrap_or(1) as usize;
        self.bytes[info.bytes.clone()].chunks_exact(width).map(|bytes| bytes.iter().rfold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Whether a section has this shape and a type that it may have.
    fn check(&self, info: &TensorInfo, shape: &[usize]) -> Result<()> {
        let section = info.name.rsplit_once('.').map_or("", |(_, section)| section);
        let dtypes = SECTIONS.iter().find(|(known, _)| *known == section).map_or(&[][..], |(_, dtypes)| dtypes);
        if !dtypes.contains(&info.dtype) || info.shape != shape {
            let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
            let expected = format!("{} {shape:?}", names.join(" or "));
            return Err(self.error(info, format!("type: expected {expected}, found {} {:?}", info.dtype, info.shape)));
        }
        Ok(())
    }
}
