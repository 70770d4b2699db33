//! Engines: a float model runs on one sample, and any of its values can be looked at.
//!
//! The embedded engine is [`rten`](https://docs.rs/rten), pure Rust, which is always there. Built with the feature `ort`,
//! the program can load an installed [ONNX Runtime](https://onnxruntime.ai) instead, which knows more operators. Both
//! take the same model and call a value by the name it has in the file; an addition is a file and a row of [`ENGINES`].
//!
//! An engine may be called from several threads at once and calculates each sample on one thread: that is the fastest
//! way through many samples, and its results do not depend on the number of threads.
//!
//! Not reached: values inside the bodies of If, Loop and Scan, and sequences.

mod graph;
mod lower;
#[cfg(feature = "ort")]
mod ort;
mod rten;

use super::array::{Array, Data};
use crate::error::{Error, Result, show_name};
use crate::formats::ReadOptions;
use crate::formats::mmap::MappedFile;
use crate::formats::onnx::proto::{GraphProto, Message, ModelProto, Payload, StringStringEntryProto};
use crate::formats::onnx::tensor::{EXTERNAL, element_type};
use bytes::Bytes;
use graph::{Graph, Source, ValueId};
use std::path::{Path, PathBuf};

/// A loaded model.
///
/// Every value of the main graph has the name that the file gives it. Floats of any width come back as [`Data::Float`],
/// integers and booleans as [`Data::Int`], with the type that the model declares where it does.
pub trait Engine: Send + Sync {
    /// The engine's name in [`ENGINES`].
    fn name(&self) -> &'static str;

    /// Whether `value` is one of the model's: an input, a constant, or the output of a node of the main graph.
    fn has(&self, value: &str) -> bool;

    /// The values that depend on the sample, inputs included, each after those that it is computed from.
    fn values(&self) -> Vec<String>;

    /// Runs the model on one sample and calls `each(index, value)` once for every index of `wanted`, as soon as the
    /// value is known; not in the order of `wanted`. At most [`Options::memory`] bytes of values are kept meanwhile, or
    /// as much as a single node needs. Nodes that no wanted value depends on do not run.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if `inputs` are not the model's, a name is none of its values, or the engine cannot run it;
    /// whatever `each` returns.
    fn for_each_value(
        &self,
        inputs: &[(String, Array)],
        wanted: &[String],
        each: &mut dyn FnMut(usize, &Array) -> Result<()>,
    ) -> Result<()>;

    /// Runs the model on one sample and returns the values in the order of `wanted`, all held at once.
    ///
    /// # Errors
    ///
    /// As [`Engine::for_each_value`].
    fn run(&self, inputs: &[(String, Array)], wanted: &[String]) -> Result<Vec<Array>> {
        let mut values: Vec<Option<Array>> = vec![None; wanted.len()];
        self.for_each_value(inputs, wanted, &mut |index, value| {
            values[index] = Some(value.clone());
            Ok(())
        })?;
        Ok(values.into_iter().map(|value| value.expect("each wanted value is handed out once")).collect())
    }
}

/// Whether a panic of this thread becomes an [`Error`] of an engine, which says what it was.
pub fn catches_panics() -> bool {
    rten::catches_panics()
}

/// How to run models.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of values that a call keeps at once. Default: 16 MiB, which is also the fastest: what is observed while
    /// it is in the cache, and dropped, costs least.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory: 16 << 20 }
    }
}

/// A row of [`ENGINES`].
pub struct Entry {
    /// Name in messages and records.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    load: fn(Model) -> Result<Box<dyn Engine>>,
}

/// All engines that this program was built with, the embedded one first.
pub const ENGINES: &[Entry] = &[
    Entry { name: "rten", summary: "embedded, pure Rust", load: rten::load },
    #[cfg(feature = "ort")]
    Entry { name: "ort", summary: "ONNX Runtime, loaded from ORT_DYLIB_PATH", load: ort::load },
];

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// ONNX Runtime if the program was built for it and `ORT_DYLIB_PATH` is set, else the embedded one.
    #[default]
    Auto,
    /// The embedded engine.
    Rten,
    /// ONNX Runtime.
    Ort,
}

/// Where the `ort` engine looks for ONNX Runtime's library.
const ORT_DYLIB_PATH: &str = "ORT_DYLIB_PATH";

/// What tells the engine that `choice` leads to from others: its name, and the content of a library that is not a part of this program.
///
/// # Errors
///
/// [`Error::Usage`] if this program has no such engine; [`Error::Io`] if the library cannot be read.
pub(crate) fn identity(choice: EngineChoice) -> Result<String> {
    let name = choice.entry()?.name;
    match std::env::var_os(ORT_DYLIB_PATH).filter(|_| name == "ort") {
        Some(path) => Ok(format!("{name} {}", blake3::hash(MappedFile::open(Path::new(&path))?.bytes()).to_hex())),
        None => Ok(name.to_owned()),
    }
}

/// What to do about a model that the embedded engine cannot run.
const OTHER_ENGINE: &str = if cfg!(feature = "ort") {
    "set ORT_DYLIB_PATH to run calibration on an installed ONNX Runtime"
} else {
    "build qtool with --features ort and set ORT_DYLIB_PATH to run calibration on an installed ONNX Runtime"
};

impl EngineChoice {
    fn entry(self) -> Result<&'static Entry> {
        let name = match self {
            EngineChoice::Rten => "rten",
            EngineChoice::Ort => "ort",
            EngineChoice::Auto if std::env::var_os(ORT_DYLIB_PATH).is_some_and(|path| !path.is_empty()) => "ort",
            EngineChoice::Auto => "rten",
        };
        match ENGINES.iter().find(|entry| entry.name == name) {
            Some(entry) => Ok(entry),
            None if self == EngineChoice::Auto => Ok(&ENGINES[0]),
            None => {
                let missing = Error::Usage(format!("engine {name}: expected one that this program was built with, found it left out"));
                Err(missing.with_hint("build qtool with --features ort"))
            }
        }
    }
}

/// Loads the ONNX file at `path`, with the weights that lie in files beside it.
///
/// # Errors
///
/// [`Error::Io`] or [`Error::Malformed`] if it cannot be read, is not a model or not one that the engine runs.
pub fn open(choice: EngineChoice, path: &Path, options: &Options) -> Result<Box<dyn Engine>> {
    let file = crate::formats::onnx::open(MappedFile::open(path)?, &ReadOptions::default())?;
    load_model(choice, path, file.proto, options)
}

/// Loads a self-contained ONNX model from memory; `name` is what messages call it.
///
/// # Errors
///
/// [`Error::Malformed`] if it is not a model or not one that the engine runs.
pub fn load(choice: EngineChoice, name: &Path, model: Vec<u8>, options: &Options) -> Result<Box<dyn Engine>> {
    let model = ModelProto::parse(model.into()).map_err(|e| Error::malformed(name, format!("ONNX: {e}")))?;
    load_model(choice, name, model, options)
}

/// Loads a model whose constants are all at hand; `name` is what messages call it.
///
/// # Errors
///
/// As [`load`].
pub(crate) fn load_model(choice: EngineChoice, name: &Path, proto: ModelProto, options: &Options) -> Result<Box<dyn Engine>> {
    let graph = proto.graph.as_deref().ok_or_else(|| Error::malformed(name, "graph: expected one, found none"))?;
    let graph = Graph::new(graph).map_err(|e| Error::malformed(name, e))?;
    (choice.entry()?.load)(Model { name: name.to_owned(), proto, graph, options: options.clone() })
}

/// What an engine is made from.
struct Model {
    name: PathBuf,
    proto: ModelProto,
    graph: Graph,
    options: Options,
}

/// The names of a model, and what the caller may ask of them: what all engines have in common.
struct Names {
    file: PathBuf,
    graph: Graph,
}

impl Names {
    fn malformed(&self, message: impl Into<String>) -> Error {
        Error::malformed(&self.file, message)
    }

    fn values(&self) -> Vec<String> {
        self.graph.values().map(|id| self.graph.name(id).to_owned()).collect()
    }

    /// The wanted values by number.
    fn wanted(&self, wanted: &[String]) -> Result<Vec<ValueId>> {
        let missing =
            |name: &str| self.malformed(format!("value {}: expected one of the main graph's values, found none", show_name(name)));
        wanted.iter().map(|name| self.graph.id(name).ok_or_else(|| missing(name))).collect()
    }

    /// The inputs by number, checked: each input of the model once, values of its kind, as many as its shape says.
    fn inputs<'a>(&self, inputs: &'a [(String, Array)]) -> Result<Vec<(ValueId, &'a Array)>> {
        let mut found: Vec<(ValueId, &Array)> = Vec::new();
        for (name, array) in inputs {
            let shown = show_name(name);
            let is_input = |id: &ValueId| self.graph.source(*id) == Source::Input;
            let Some(id) = self.graph.id(name).filter(is_input) else {
                return Err(self.malformed(format!("input {shown}: expected one of {}, found another", self.list_inputs())));
            };
            if found.iter().any(|(other, _)| *other == id) {
                return Err(self.malformed(format!("input {shown}: expected it once, found it twice")));
            }
            let declared = self.graph.element_type(id).and_then(element_type);
            let is_float = matches!(array.data, Data::Float(_));
            if let Some(declared) = declared.filter(|declared| is_float_type(declared.code) != is_float) {
                let found = array.dtype;
                return Err(self.malformed(format!("input {shown}: dtype: expected {}, found {found}", declared.name)));
            }
            if array.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)) != Some(array.data.len()) {
                let (shape, len) = (&array.shape, array.data.len());
                return Err(self.malformed(format!("input {shown}: shape: expected the product of {shape:?} to be {len}, found another")));
            }
            found.push((id, array));
        }
        let inputs = self.graph.values().filter(|id| self.graph.source(*id) == Source::Input);
        for id in inputs {
            if !found.iter().any(|(other, _)| *other == id) {
                return Err(self.malformed(format!("input {}: expected a value, found none", show_name(self.graph.name(id)))));
            }
        }
        Ok(found)
    }

    fn list_inputs(&self) -> String {
        let inputs = self.graph.values().filter(|id| self.graph.source(*id) == Source::Input);
        inputs.map(|id| show_name(self.graph.name(id)).to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// Whether a `TensorProto.DataType` is a float.
fn is_float_type(code: i64) -> bool {
    element_type(code).is_some_and(|element| element.name.contains("float") || element.name == "double")
}

/// Constants of at least this many bytes are handed to engines apart from the model, each in memory of its own, so that
/// no engine has to hold the model's bytes and its weights at once.
const LARGE_CONSTANT: usize = 1024;

/// Takes the large constants out of `graph`, leaving references to files that exist in memory only.
///
/// # Errors
///
/// [`Error::Tensor`] for a constant whose values are not at hand.
fn take_constants(file: &Path, graph: &mut GraphProto) -> Result<Vec<(String, Bytes)>> {
    let mut taken = Vec::new();
    for (index, tensor) in graph.initializer.iter_mut().enumerate() {
        let is_text = tensor.data_type == Some(crate::formats::onnx::tensor::STRING);
        let contents = if is_text { continue } else { tensor.contents().map_err(|e| Error::tensor(file, &tensor.name, e))? };
        if contents.len() < LARGE_CONSTANT {
            tensor.raw_data = Some(Payload::Bytes(contents));
        } else {
            let location = format!("{index}.data");
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
            tensor.external_data =
                vec![entry("location", location.clone()), entry("offset", "0".into()), entry("length", contents.len().to_string())];
            tensor.data_location = Some(EXTERNAL);
            tensor.raw_data = None;
            taken.push((location, contents));
        }
        tensor.float_data = Default::default();
        tensor.int32_data = Default::default();
        tensor.int64_data = Default::default();
        tensor.double_data = Default::default();
        tensor.uint64_data = Default::default();
    }
    Ok(taken)
}
