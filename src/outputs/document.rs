//! The JSON sidecar: what every tensor became, with parameters and errors, and the hashes of every file.
//!
//! `docs/sidecar.schema.json` describes it. Keys are sorted; numbers are the shortest text that reads back to the same
//! f32 or f64; the same run writes the same bytes on any machine.

use crate::error::{Error, Result, show_name, show_path};
use crate::formats::mmap::MappedFile;
use crate::formats::{ReadOptions, contained};
use crate::method::Method;
use crate::quant::metrics::Metrics;
use crate::quant::saturation::Saturation;
use crate::quant::scheme::{CodeType, Convention};
use crate::recipe::Recipe;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{CompactFormatter, Formatter};
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

/// Value of the key `format`.
pub const FORMAT: &str = "qtool-sidecar";

/// Longest sidecar that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Version of the document's layout. A reader refuses others.
pub const VERSION: u32 = 1;

/// The whole sidecar.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Parameters of activations, by the name of the value; weights alone have none.
    #[serde(deserialize_with = "by_unique_name")]
    pub activations: BTreeMap<String, ActivationRecord>,
    /// BLAKE3 of the sidecar's text, in hexadecimal, with [`NO_HASH`] in this place: [`Self::to_json`] fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// What ranges of activations come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// [`FORMAT`].
    pub format: String,
    /// Why each tensor that was not quantized was not.
    #[serde(deserialize_with = "by_unique_name")]
    pub kept: BTreeMap<String, String>,
    /// What was written.
    pub output: OutputRecord,
    /// Version of the program that wrote it.
    pub qtool_version: String,
    /// The recipe in force.
    pub recipe: Recipe,
    /// What was asked for, of runs with `--if-changed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestRecord>,
    /// Seed of methods that draw random numbers.
    pub seed: u64,
    /// What was read.
    pub source: SourceRecord,
    /// What each quantized tensor became.
    #[serde(deserialize_with = "by_unique_name")]
    pub tensors: BTreeMap<String, TensorRecord>,
    /// [`VERSION`].
    pub version: u32,
}

/// How one activation is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationRecord {
    /// The type of codes.
    pub dtype: CodeType,
    /// Largest value that is not clipped.
    #[serde(deserialize_with = "finite")]
    pub max: f32,
    /// Smallest value that is not clipped.
    #[serde(deserialize_with = "finite")]
    pub min: f32,
    /// How the range was chosen.
    pub observer: Method,
    /// The distance between neighbouring codes.
    #[serde(deserialize_with = "finite")]
    pub scale: f32,
    /// The code of 0.
    pub zero_point: i32,
}

/// What ranges come from: samples, a file that has ranges, or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// BLAKE3 of the samples' content, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// The file of ranges, by its name without directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<FileRecord>,
    /// How many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Whether the samples were random.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub synthetic: bool,
}

/// What a run was asked for and read besides the model, as BLAKE3 hashes in hexadecimal: to tell a later run from it. They mean
/// nothing to other versions of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRecord {
    /// Files that were carried over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companions: Option<String>,
    /// The recipe before anything was measured, and all other options that bear on the output.
    pub options: String,
    /// The file of ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<String>,
    /// Files of samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<String>,
    /// Files of statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<String>,
}

/// The files that were written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputRecord {
    /// Every file but the sidecar itself; names are relative to it.
    pub files: Vec<FileRecord>,
    /// Name of the [`Output`](super::Output).
    pub form: String,
}

/// The files that were read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Files of weights.
    pub files: Vec<FileRecord>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// BLAKE3 of the content, in hexadecimal; absent where only the header was hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 of the header alone: names, types, shapes and places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_blake3: Option<String>,
    /// Name, relative to the sidecar for outputs, without directories for sources.
    pub name: String,
}

/// One quantized tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// The channel axis, or the grouped one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// Whose arithmetic.
    pub convention: Convention,
    /// The type of codes.
    pub dtype: CodeType,
    /// What was lost.
    pub error: Metrics,
    /// `per_tensor`, `per_channel` or `per_group`.
    pub granularity: String,
    /// Elements of a group along the last axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// How the range was chosen.
    pub observer: Method,
    /// Largest code in use.
    pub qmax: i32,
    /// Smallest code in use.
    pub qmin: i32,
    /// How values were rounded to codes.
    pub rounding: String,
    /// Of pairs of int8 weights that are multiplied with uint8 activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saturation: Option<SaturationRecord>,
    /// Scales, one a group in order, or the tensor that holds them.
    #[serde(deserialize_with = "finite_values")]
    pub scale: Values<f32>,
    /// `symmetric` or `asymmetric`.
    pub scheme: String,
    /// Dimensions of the tensor, outermost first.
    pub shape: Vec<usize>,
    /// The type it had.
    pub source_dtype: String,
    /// Zero points, one a group in order, or the tensor that holds them; a single 0 stands for all.
    pub zero_point: Values<i32>,
}

/// What was found of pairs of weights whose products are added in 16 bits by processors without VNNI, and what was done about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaturationRecord {
    /// Codes that were changed.
    pub changed: u64,
    /// What that added to the sum of squared errors, in squared real units.
    pub extra_squared_error: f64,
    /// Smallest and largest activation code on the samples, as unsigned bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_codes: Option<[i32; 2]>,
    /// Pairs in all.
    pub pairs: u64,
    /// Of these, pairs that could saturate with some activation codes, before codes were changed.
    pub possible: u64,
    /// What was counted on samples, before codes were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SaturatedSums>,
    /// Signal to noise in dB before codes were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db_before: Option<f64>,
    /// What was asked for.
    pub treatment: Saturation,
    /// Pairs that could saturate with activation codes from `observed_codes`, before codes were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_observed: Option<u64>,
}

/// Sums of pairs of products on samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaturatedSums {
    /// Those that saturate.
    pub saturated: u64,
    /// Those that were looked at.
    pub sums: u64,
}

/// Numbers in the document, or the name of the tensor that holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Values<T> {
    /// In the document.
    Inline(Vec<T>),
    /// In a tensor of the output.
    Tensor {
        /// Its name.
        tensor: String,
    },
}

/// A map whose names are there once: of two with one name, readers would take one or the other.
fn by_unique_name<'de, D: Deserializer<'de>, V: Deserialize<'de>>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error> {
    struct Unique<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = members.next_entry::<String, V>()? {
                if map.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("expected each name once, found {} twice", show_name(&name))));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(PhantomData))
}

/// A number that f32 holds: larger ones would become infinite, which JSON cannot say again.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    check_finite(f32::deserialize(deserializer)?)
}

/// As [`finite`], each of them.
fn finite_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Values<f32>, D::Error> {
    let values = Values::deserialize(deserializer)?;
    if let Values::Inline(numbers) = &values {
        numbers.iter().copied().try_for_each(|number| check_finite(number).map(drop))?;
    }
    Ok(values)
}

fn check_finite<E: serde::de::Error>(number: f32) -> Result<f32, E> {
    if number.is_finite() { Ok(number) } else { Err(E::custom("a number too large for f32")) }
}

impl Document {
    /// The document as text: one line for each tensor's scales, indented otherwise, ending in a newline. It holds its own hash if there
    /// is a place for one.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, IndentedObjects { depth: 0 });
        self.serialize(&mut serializer).expect("maps with text keys can be written to memory");
        text.push(b'\n');
        let place = self.blake3.as_deref().and_then(|hash| place_of_hash(&text, hash));
        // What was read may have any text there.
        if let Some(place) = place.filter(|place| place.len() == NO_HASH.len()) {
            text[place.clone()].copy_from_slice(NO_HASH.as_bytes());
            let hash = blake3::hash(&text).to_hex();
            text[place].copy_from_slice(hash.as_bytes());
        }
        text
    }

    /// Whether `text`, which this document was read from, is as it was written; `true` if it was written without a hash.
    pub fn is_unchanged(&self, text: &[u8]) -> bool {
        let Some(expected) = &self.blake3 else { return true };
        let Some(place) = place_of_hash(text, expected) else { return false };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&text[..place.start]).update(NO_HASH.as_bytes()).update(&text[place.end..]);
        hasher.finalize().to_hex().as_str() == expected
    }

    /// Reads the sidecar at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is not a sidecar of [`VERSION`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with_text(path).map(|(document, _)| document)
    }

    /// Reads the sidecar at `path`, and says whether its text [is as it was written](Self::is_unchanged).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_checked(path: &Path) -> Result<(Self, bool)> {
        Self::read_with_text(path).map(|(document, file)| {
            let is_unchanged = document.is_unchanged(file.bytes());
            (document, is_unchanged)
        })
    }

    fn read_with_text(path: &Path) -> Result<(Self, MappedFile)> {
        let file = MappedFile::open(path)?;
        let found = file.bytes().len() as u64;
        if found > MAX_BYTES {
            return Err(Error::Limit { file: path.to_owned(), what: "bytes of the sidecar".into(), limit: MAX_BYTES, found });
        }
        Ok((Self::parse(path, file.bytes())?, file))
    }

    /// Whether the file at `path` says that it is a sidecar, of whatever version. One that cannot be opened does not.
    pub fn recognizes(path: &Path) -> bool {
        Self::try_recognize(path).unwrap_or(false)
    }

    /// As [`Document::recognizes`], for who would take a file for another that cannot be opened just now.
    ///
    /// # Errors
    ///
    /// As [`MappedFile::open`].
    pub(crate) fn try_recognize(path: &Path) -> Result<bool> {
        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        let file = MappedFile::open(path)?;
        let head = || serde_json::from_slice::<Format>(file.bytes()).ok();
        Ok(file.bytes().len() as u64 <= MAX_BYTES && head().is_some_and(|head| head.format == FORMAT))
    }

    /// Reads a sidecar from memory; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it is not a sidecar of [`VERSION`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let malformed = |message: String| Error::malformed(path, format!("sidecar: {}", crate::formats::shorten(&message)));
        let head: Head = serde_json::from_slice(text).map_err(|e| malformed(format!("expected a qtool sidecar, found {e}")))?;
        if head.format != FORMAT || head.version != VERSION {
            return Err(malformed(format!("expected format {FORMAT} version {VERSION}, found {} version {}", head.format, head.version)));
        }
        serde_json::from_slice(text).map_err(|e| malformed(format!("expected the fields of docs/sidecar.schema.json, found {e}")))
    }
}

/// Stands for a document's own hash while it is computed.
pub const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where in a sidecar's text its own `hash` is, without quotes: the first member of this name, as text within quotes has none.
fn place_of_hash(text: &[u8], hash: &str) -> Option<Range<usize>> {
    let member = format!("\"blake3\": \"{hash}\"");
    let at = text.windows(member.len()).position(|window| window == member.as_bytes())?;
    let end = at + member.len() - 1;
    Some(end - hash.len()..end)
}

/// The sidecar that belongs to the output file `path`: the same name with the extension `json`.
pub fn sidecar_path(path: &Path) -> std::path::PathBuf {
    path.with_extension("json")
}

/// The sidecar's name in an output directory.
pub const DIRECTORY_SIDECAR: &str = "qtool.json";

/// The sidecar of an output given as itself, as a file of weights, or as a directory.
///
/// # Errors
///
/// [`Error::Io`] if there is none; [`Error::Malformed`] if it is a link that leads out of its directory, as `options` do not allow.
pub fn find(output: &Path, options: &ReadOptions) -> Result<std::path::PathBuf> {
    let candidate = if output.is_dir() {
        output.join(DIRECTORY_SIDECAR)
    } else if output.extension().is_some_and(|extension| extension == "json") {
        output.to_owned()
    } else {
        let of_directory = output.with_file_name(DIRECTORY_SIDECAR);
        let of_file = sidecar_path(output);
        if of_directory.is_file() && !of_file.is_file() { of_directory } else { of_file }
    };
    match candidate.symlink_metadata() {
        Ok(_) if candidate == output => Ok(candidate),
        // Its name was not asked for but found.
        Ok(_) => {
            contained(super::staging::parent(&candidate), Path::new(candidate.file_name().unwrap_or_default()), options).map(|_| candidate)
        }
        Err(e) => {
            if let Err(missing) = output.symlink_metadata() {
                return Err(Error::io(output, "open", missing));
            }
            let hint = format!("{} is no output of qtool, or its sidecar is gone or has another name: then give that", show_path(output));
            Err(Error::io(&candidate, "open", e).with_hint(hint))
        }
    }
}

/// Objects over several lines, arrays of numbers in one.
struct IndentedObjects {
    depth: usize,
}

impl IndentedObjects {
    fn new_line(&self, writer: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(b"  "))
    }
}

impl Formatter for IndentedObjects {
    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        CompactFormatter.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        self.new_line(writer)?;
        CompactFormatter.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        CompactFormatter.begin_object_key(writer, first)?;
        self.new_line(writer)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}
