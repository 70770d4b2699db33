//! An installed [ONNX Runtime](https://onnxruntime.ai), 1.18 or later, loaded when it is first used; run without its
//! optimizations, so that every value exists under the name that it has in the file.
//!
//! It hands out graph outputs only, so every value is made one. Nothing can be fed back: where the wanted values do not
//! fit in memory together, the model runs once for each part of them. Each concurrent caller gets a session of its own,
//! with its own copy of the weights.

use super::graph::{Source, ValueId};
use super::{Engine, Model, Names, ORT_DYLIB_PATH, Options, take_constants};
use crate::calibration::array::{Array, Data};
use crate::error::{Error, Result, show_name};
use crate::formats::onnx::proto::{GraphProto, TypeProto, ValueInfoProto};
use crate::formats::onnx::tensor::element_type;
use crate::tensor::Dtype;
use ::ort::environment::Environment;
use ::ort::logging::LogLevel;
use ::ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ::ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ::ort::value::{DynValue, Tensor, TensorElementType};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

/// A model in ONNX Runtime.
struct Ort {
    names: Names,
    options: Options,
    environment: Environment,
    /// The model with references to the large constants, to make sessions from.
    bytes: Vec<u8>,
    constants: Vec<(String, Arc<[u8]>)>,
    /// Sessions for callers to come.
    idle: Mutex<Vec<Session>>,
    /// Largest size of each value so far, in bytes.
    sizes: Mutex<Vec<Option<u64>>>,
}

/// Loads a model.
pub(super) fn load(model: Model) -> Result<Box<dyn Engine>> {
    let Model { name, mut proto, graph, options } = model;
    let names = Names { file: name, graph };
    let main = proto.graph.as_deref_mut().expect("the graph has been read");
    add_outputs(main, &names);
    let constants = take_constants(&names.file, main)?.into_iter().map(|(name, contents)| (name, Arc::from(&contents[..]))).collect();
    let bytes = proto.to_bytes().ok_or_else(|| names.malformed("values: expected them to be known, found some yet to be computed"))?;
    let environment = environment().map_err(Error::Usage)?;
    let sizes = Mutex::new(vec![None; names.graph.len()]);
    let this = Ort { names, options, environment, bytes, constants, idle: Mutex::default(), sizes };
    let first = this.session()?;
    this.idle.lock().expect("no thread panics while it holds this lock").push(first);
    Ok(Box::new(this))
}

/// The library, loaded once.
fn environment() -> Result<Environment, String> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let load = || {
        let path = std::env::var_os(ORT_DYLIB_PATH).filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| format!("engine ort: expected {ORT_DYLIB_PATH} to name ONNX Runtime's library, found it unset"))?;
        let failed =
            |e: &dyn std::fmt::Display| format!("engine ort: expected a library of ONNX Runtime 1.18 or later in {ORT_DYLIB_PATH}: {e}");
        let builder = ::ort::init_from(path).map_err(|e| failed(&e))?;
        builder.with_name("qtool").with_telemetry(false).build().map_err(|e| failed(&e))
    };
    ENVIRONMENT.get_or_init(load).clone()
}

/// Makes every value of the main graph an output.
fn add_outputs(graph: &mut GraphProto, names: &Names) {
    let known: HashMap<String, Option<Box<TypeProto>>> = graph.output.iter().map(|info| (info.name.clone(), info.r#type.clone())).collect();
    let made = (0..names.graph.len()).filter(|id| names.graph.source(*id) != Source::Input).map(|id| names.graph.name(id).to_owned());
    let more = made.filter(|name| !known.contains_key(name)).map(|name| ValueInfoProto { name, ..ValueInfoProto::default() });
    graph.output.extend(more.collect::<Vec<_>>());
}

impl Ort {
    fn session(&self) -> Result<Session> {
        if let Some(session) = self.idle.lock().expect("no thread panics while it holds this lock").pop() {
            return Ok(session);
        }
        let configured = || -> ::ort::Result<SessionBuilder> {
            let mut builder = Session::builder(&self.environment)?
                .with_optimization_level(GraphOptimizationLevel::Disable)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .with_log_level(LogLevel::Error)?;
            for (name, contents) in &self.constants {
                builder = builder.with_external_initializer_file_in_memory(name, contents.clone())?;
            }
            Ok(builder)
        };
        configured().and_then(|mut builder| builder.commit_from_memory(&self.bytes)).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &::ort::Error) -> Error {
        self.names.malformed(format!("ONNX Runtime: {error}"))
    }

    /// A value of the sample in the type that the model declares.
    fn input(&self, id: ValueId, array: &Array) -> Result<DynValue> {
        let shape: Vec<i64> = array.shape.iter().map(|dim| *dim as i64).collect();
        let declared = self.names.graph.element_type(id).and_then(element_type).and_then(|element| element.dtype);
        let name = show_name(self.names.graph.name(id));
        macro_rules! tensor {
            ($values:expr) => {
                Tensor::from_array((shape, $values)).map(Tensor::into_dyn).map_err(|e| self.failed(&e))
            };
        }
        macro_rules! ints {
            ($values:expr, $type:ty) => {{
                let converted =
                    $values.iter().map(|value| <$type>::try_from(*value).map_err(|_| *value)).collect::<Result<Vec<$type>, i64>>();
                tensor!(converted.map_err(|value| {
                    self.names.malformed(format!("input {name}: values: expected integers of the declared type, found {value}"))
                })?)
            }};
        }
        match (&array.data, declared.unwrap_or(array.dtype)) {
            (Data::Float(values), Dtype::F32) => tensor!(values.clone()),
            (Data::Float(values), Dtype::F64) => tensor!(values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>()),
            (Data::Float(values), Dtype::F16) => tensor!(values.iter().map(|value| half::f16::from_f32(*value)).collect::<Vec<_>>()),
            (Data::Float(values), Dtype::BF16) => tensor!(values.iter().map(|value| half::bf16::from_f32(*value)).collect::<Vec<_>>()),
            (Data::Int(values), Dtype::Bool) => tensor!(values.iter().map(|value| *value != 0).collect::<Vec<bool>>()),
            (Data::Int(values), Dtype::I8) => ints!(values, i8),
            (Data::Int(values), Dtype::U8) => ints!(values, u8),
            (Data::Int(values), Dtype::I16) => ints!(values, i16),
            (Data::Int(values), Dtype::U16) => ints!(values, u16),
            (Data::Int(values), Dtype::I32) => ints!(values, i32),
            (Data::Int(values), Dtype::U32) => ints!(values, u32),
            (Data::Int(values), Dtype::I64) => ints!(values, i64),
            (Data::Int(values), Dtype::U64) => ints!(values, u64),
            (_, other) => Err(self.names.malformed(format!("input {name}: dtype: expected one that samples have, found {other}"))),
        }
    }

    /// A value as the caller takes it.
    fn array(&self, id: ValueId, value: &DynValue) -> Result<Array> {
        let name = || show_name(self.names.graph.name(id));
        let element = value.dtype().tensor_type();
        macro_rules! values {
            ($type:ty, $dtype:expr, $kind:ident, $convert:expr) => {{
                let (shape, values) = value.try_extract_tensor::<$type>().map_err(|e| self.failed(&e))?;
                let shape = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
                Ok(Array { dtype: $dtype, shape, data: Data::$kind(values.iter().map($convert).collect()) })
            }};
        }
        match element {
            Some(TensorElementType::Float32) => values!(f32, Dtype::F32, Float, |v| *v),
            Some(TensorElementType::Float64) => values!(f64, Dtype::F64, Float, |v| *v as f32),
            Some(TensorElementType::Float16) => values!(half::f16, Dtype::F16, Float, |v| v.to_f32()),
            Some(TensorElementType::Bfloat16) => values!(half::bf16, Dtype::BF16, Float, |v| v.to_f32()),
            Some(TensorElementType::Bool) => values!(bool, Dtype::Bool, Int, |v| i64::from(*v)),
            Some(TensorElementType::Int8) => values!(i8, Dtype::I8, Int, |v| i64::from(*v)),
            Some(TensorElementType::Uint8) => values!(u8, Dtype::U8, Int, |v| i64::from(*v)),
            Some(TensorElementType::Int16) => values!(i16, Dtype::I16, Int, |v| i64::from(*v)),
            Some(TensorElementType::Uint16) => values!(u16, Dtype::U16, Int, |v| i64::from(*v)),
            Some(TensorElementType::Int32) => values!(i32, Dtype::I32, Int, |v| i64::from(*v)),
            Some(TensorElementType::Uint32) => values!(u32, Dtype::U32, Int, |v| i64::from(*v)),
            Some(TensorElementType::Int64) => values!(i64, Dtype::I64, Int, |v| *v),
            Some(TensorElementType::Uint64) => values!(u64, Dtype::U64, Int, |v| v.cast_signed()),
            Some(other) => Err(self.names.malformed(format!("value {}: dtype: expected one that can be observed, found {other}", name()))),
            None => Err(self.names.malformed(format!("value {}: expected a tensor, found another kind of value", name()))),
        }
    }

    /// How many of `values` to ask for at once; at least one.
    fn part(&self, values: &[ValueId], longest: usize, sizes: &[Option<u64>]) -> usize {
        let guess = sizes.iter().flatten().copied().max().unwrap_or(0);
        let (mut bytes, mut unknown) = (0u64, 0);
        let fits = |id: &&ValueId| {
            bytes = bytes.saturating_add(sizes[**id].unwrap_or(guess));
            unknown += usize::from(sizes[**id].is_none());
            bytes <= self.options.memory && unknown <= longest
        };
        values.iter().take_while(fits).count().max(1)
    }
}

/// Values in the first part of a model whose sizes are not known yet. Each next one may be four times as long.
const FIRST_PART: usize = 16;

impl Engine for Ort {
    fn name(&self) -> &'static str {
        "ort"
    }

    fn has(&self, value: &str) -> bool {
        self.names.graph.id(value).is_some()
    }

    fn values(&self) -> Vec<String> {
        self.names.values()
    }

    fn for_each_value(
        &self,
        inputs: &[(String, Array)],
        wanted: &[String],
        each: &mut dyn FnMut(usize, &Array) -> Result<()>,
    ) -> Result<()> {
        let wanted = self.names.wanted(wanted)?;
        let mut indices: HashMap<ValueId, Vec<usize>> = HashMap::new();
        wanted.iter().enumerate().for_each(|(index, id)| indices.entry(*id).or_default().push(index));
        let mut hand_out = |id: ValueId, array: &Array| indices[&id].iter().try_for_each(|index| each(*index, array));

        let mut feeds: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for (id, array) in self.names.inputs(inputs)? {
            if indices.contains_key(&id) {
                hand_out(id, array)?;
            }
            feeds.push((Cow::Borrowed(self.names.graph.name(id)), self.input(id, array)?.into()));
        }
        let constants = (0..self.names.graph.len()).filter(|id| self.names.graph.source(*id) == Source::Constant);
        let computed = self.names.graph.values().filter(|id| self.names.graph.source(*id) != Source::Input);
        let asked: Vec<ValueId> = constants.chain(computed).filter(|id| indices.contains_key(id)).collect();

        let mut session = self.session()?;
        let mut sizes = self.sizes.lock().expect("no thread panics while it holds this lock").clone();
        let (mut rest, mut longest) = (&asked[..], FIRST_PART);
        while !rest.is_empty() {
            let (part, later) = rest.split_at(self.part(rest, longest, &sizes));
            (rest, longest) = (later, longest.saturating_mul(4));
            let selected = part.iter().fold(OutputSelector::no_default(), |all, id| all.with(self.names.graph.name(*id)));
            let options = RunOptions::new().map_err(|e| self.failed(&e))?.with_outputs(selected);
            let views: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
                feeds.iter().map(|(name, value)| (name.clone(), SessionInputValue::View(value.view()))).collect();
            let mut outputs = session.run_with_options(views, &options).map_err(|e| self.failed(&e))?;
            for id in part {
                let value = outputs.remove(self.names.graph.name(*id));
                let array = self.array(*id, &value.expect("a value for each output that was selected"))?;
                sizes[*id] = sizes[*id].max(Some((array.data.len() * size_of::<f32>()) as u64));
                hand_out(*id, &array)?;
            }
        }
        self.idle.lock().expect("no thread panics while it holds this lock").push(session);
        let mut known = self.sizes.lock().expect("no thread panics while it holds this lock");
        known.iter_mut().zip(sizes).for_each(|(known, size)| *known = (*known).max(size));
        Ok(())
    }
}
