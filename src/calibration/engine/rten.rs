//! The embedded engine: [`rten`](https://docs.rs/rten), run without its optimizations, so that every value exists under
//! the name that it has in the file.
//!
//! It calculates in f32 and i32 whatever the model declares: integers beyond 32 bits are refused in samples and constants,
//! but those that a model computes on the way wrap around unnoticed. [`super::lower`] lists what else differs from ONNX.

use super::graph::{Piece, Source, ValueId};
use super::lower::{self, Labels};
use super::{Engine, Model, Names, OTHER_ENGINE, Options, take_constants};
use crate::calibration::array::{Array, Data};
use crate::error::{Error, Result, show_name};
use crate::formats::onnx::tensor::{BOOL, INT8, UINT8, element_type};
use crate::tensor::Dtype;
use ::rten::{LoadErrorKind, ModelOptions, NodeId, RunErrorKind, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::{AsView, Layout};
use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// A model in `rten`.
struct Rten {
    names: Names,
    labels: Labels,
    options: Options,
    model: ::rten::Model,
    /// The engine's numbers of the values that it has.
    nodes: Vec<Option<NodeId>>,
    /// Largest size of each value so far, in bytes.
    sizes: Mutex<Vec<Option<u64>>>,
    /// Pools of one thread each, for callers to come; each caller needs one of its own.
    idle_pools: Mutex<Vec<Arc<ThreadPool>>>,
}

/// Loads a model.
pub(super) fn load(model: Model) -> Result<Box<dyn Engine>> {
    let Model { name, mut proto, graph, options } = model;
    let names = Names { file: name, graph };
    let labels = lower::for_engine(&mut proto).map_err(|e| names.malformed(e).with_hint(OTHER_ENGINE))?;
    let mut settings = ModelOptions::with_all_ops();
    settings.enable_optimization(false);
    let graph = proto.graph.as_deref_mut().expect("lowering refuses a model without a graph");
    for (location, contents) in take_constants(&names.file, graph)? {
        settings.external_data(&location, contents.to_vec());
    }
    let bytes = proto.to_bytes().ok_or_else(|| names.malformed("values: expected them to be known, found some yet to be computed"))?;
    drop(proto);
    let loaded = caught(&names, || settings.load(bytes))?;
    let model = loaded.map_err(|error| {
        // The message without the category that its display starts with.
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        let place = error.node().map_or(String::new(), |node| format!("{}: ", labels.explain(&format!("node {node}"))));
        let told = names.malformed(format!("{place}{}", labels.explain(&cause)));
        if matches!(error.kind(), LoadErrorKind::IoError | LoadErrorKind::ParseError) { told } else { told.with_hint(OTHER_ENGINE) }
    })?;
    let nodes = (0..names.graph.len()).map(|id| model.find_node(names.graph.name(id))).collect();
    let sizes = Mutex::new(vec![None; names.graph.len()]);
    Ok(Box::new(Rten { names, labels, options, model, nodes, sizes, idle_pools: Mutex::default() }))
}

impl Engine for Rten {
    fn name(&self) -> &'static str {
        "rten"
    }

    fn has(&self, value: &str) -> bool {
        self.names.graph.id(value).is_some_and(|id| self.nodes[id].is_some())
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
        let mut hand_out = |id: ValueId, array: &Array| match indices.get(&id) {
            Some(indices) => indices.iter().try_for_each(|index| each(*index, array)),
            None => Ok(()),
        };

        let mut held: HashMap<ValueId, Held<'_>> = HashMap::new();
        for (id, array) in self.names.inputs(inputs)? {
            hand_out(id, array)?;
            held.insert(id, self.input(id, array)?);
        }
        let constants: Vec<ValueId> = indices.keys().copied().filter(|id| self.names.graph.source(*id) == Source::Constant).collect();
        let mut run = self.names.graph.run(&wanted);
        let mut sizes = self.sizes.lock().expect("no thread panics while it holds this lock").clone();
        let pool = self.take_pool();
        let mut piece = Piece { feeds: Vec::new(), fetches: constants, done: Vec::new() };
        loop {
            let values = if piece.fetches.is_empty() { Vec::new() } else { self.run_piece(&piece, &held, &pool)? };
            for (id, value) in piece.fetches.iter().zip(values) {
                let value = if run.is_wanted(*id) {
                    let (array, rest) = self.array(*id, value)?;
                    hand_out(*id, &array)?;
                    rest.unwrap_or(Held::Floats(array))
                } else {
                    Held::Other(value)
                };
                sizes[*id] = sizes[*id].max(Some(value.bytes()));
                if run.is_needed_later(*id) {
                    held.insert(*id, value);
                }
            }
            piece.done.iter().for_each(|id| drop(held.remove(id)));
            let bytes = held.values().map(Held::bytes).sum();
            match run.next_piece(bytes, self.options.memory, &sizes) {
                Some(next) => piece = next,
                None => break,
            }
        }
        self.idle_pools.lock().expect("no thread panics while it holds this lock").push(pool);
        let mut known = self.sizes.lock().expect("no thread panics while it holds this lock");
        known.iter_mut().zip(sizes).for_each(|(known, size)| *known = (*known).max(size));
        Ok(())
    }
}

impl Rten {
    fn take_pool(&self) -> Arc<ThreadPool> {
        let idle = self.idle_pools.lock().expect("no thread panics while it holds this lock").pop();
        idle.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1)))
    }

    fn run_piece(&self, piece: &Piece, held: &HashMap<ValueId, Held<'_>>, pool: &Arc<ThreadPool>) -> Result<Vec<Value>> {
        let node = |id: &ValueId| {
            let name = self.names.graph.name(*id);
            self.nodes[*id]
                .ok_or_else(|| self.names.malformed(format!("value {}: expected the engine to keep it, found none", show_name(name))))
        };
        let mut feeds = Vec::with_capacity(piece.feeds.len());
        for id in &piece.feeds {
            feeds.push((node(id)?, ValueOrView::View(held[id].view())));
        }
        let fetches: Vec<NodeId> = piece.fetches.iter().map(node).collect::<Result<_>>()?;
        let options = RunOptions::default().with_thread_pool(Some(pool.clone()));
        let run = || self.model.run(feeds, &fetches, Some(options));
        let result = caught(&self.names, run)?;
        result.map_err(|error| {
            let told = self.names.malformed(self.labels.explain(&error.to_string()));
            if error.kind() == RunErrorKind::OperatorError { told.with_hint(OTHER_ENGINE) } else { told }
        })
    }

    /// A value of the sample as the engine takes it.
    fn input<'a>(&self, id: ValueId, array: &'a Array) -> Result<Held<'a>> {
        let shape = &array.shape[..];
        let declared = self.names.graph.element_type(id);
        let out_of_range = |value: i64| {
            let name = show_name(self.names.graph.name(id));
            let expected =
                if matches!(declared, Some(INT8 | UINT8)) { "the declared type" } else { "32 bits, as the embedded engine calculates" };
            let told = self.names.malformed(format!("input {name}: values: expected integers of {expected}, found {value}"));
            if matches!(declared, Some(INT8 | UINT8)) { told } else { told.with_hint(OTHER_ENGINE) }
        };
        let value = match &array.data {
            Data::Float(values) => return Ok(Held::Sample { shape, values }),
            Data::Int(values) if declared == Some(BOOL) => {
                Value::from_shape(shape, values.iter().map(|value| i32::from(*value != 0)).collect()).ok()
            }
            Data::Int(values) if declared == Some(INT8) => Value::from_shape(shape, narrow::<i8>(values).map_err(out_of_range)?).ok(),
            Data::Int(values) if declared == Some(UINT8) => Value::from_shape(shape, narrow::<u8>(values).map_err(out_of_range)?).ok(),
            Data::Int(values) => Value::from_shape(shape, narrow::<i32>(values).map_err(out_of_range)?).ok(),
        };
        Ok(Held::Other(value.expect("the shape of inputs is checked")))
    }

    /// A value as the caller takes it, and apart from it what the engine takes unless that can be read from the array.
    fn array(&self, id: ValueId, value: Value) -> Result<(Array, Option<Held<'static>>)> {
        let shape = value.shape().to_vec();
        let declared = self.names.graph.element_type(id).and_then(element_type).and_then(|element| element.dtype);
        let of_kind = |kind: &[&str], default: Dtype| declared.filter(|dtype| kind.contains(&dtype.kind())).unwrap_or(default);
        let (dtype, ints): (Dtype, Vec<i64>) = match &value {
            Value::FloatTensor(_) => {
                let Value::FloatTensor(tensor) = value else { unreachable!("it was matched above") };
                let dtype = of_kind(&["float"], Dtype::F32);
                return Ok((Array { dtype, shape, data: Data::Float(tensor.into_data()) }, None));
            }
            Value::Int32Tensor(tensor) => (of_kind(&["integer", "boolean"], Dtype::I32), tensor.iter().map(|v| i64::from(*v)).collect()),
            Value::Int8Tensor(tensor) => (Dtype::I8, tensor.iter().map(|v| i64::from(*v)).collect()),
            Value::UInt8Tensor(tensor) => (Dtype::U8, tensor.iter().map(|v| i64::from(*v)).collect()),
            _ => {
                let name = show_name(self.names.graph.name(id));
                return Err(self.names.malformed(format!("value {name}: expected a tensor, found a sequence")));
            }
        };
        Ok((Array { dtype, shape, data: Data::Int(ints) }, Some(Held::Other(value))))
    }
}

/// The values in a narrower type, or the first that does not fit.
fn narrow<T: TryFrom<i64>>(values: &[i64]) -> Result<Vec<T>, i64> {
    values.iter().map(|value| T::try_from(*value).map_err(|_| *value)).collect()
}

/// A value that nodes to come read.
enum Held<'a> {
    Sample { shape: &'a [usize], values: &'a [f32] },
    Floats(Array),
    Other(Value),
}

impl Held<'_> {
    fn view(&self) -> ValueView<'_> {
        let floats = |shape: &[usize], values| ValueView::from_shape(shape, values).expect("the shape of arrays is theirs");
        match self {
            Held::Sample { shape, values } => floats(shape, values),
            Held::Floats(array) => floats(&array.shape, array.floats().unwrap_or_default()),
            Held::Other(value) => value.as_view(),
        }
    }

    /// Bytes that are held for it; none for what the caller holds.
    fn bytes(&self) -> u64 {
        let elements = |value: &Value, size: usize| (value.len() * size) as u64;
        match self {
            Held::Sample { .. } => 0,
            Held::Floats(array) => (array.data.len() * size_of::<f32>()) as u64,
            Held::Other(value @ (Value::Int8Tensor(_) | Value::UInt8Tensor(_))) => elements(value, 1),
            Held::Other(value) => elements(value, size_of::<f32>()),
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is about to become an error.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What the threads of the engine's own pools are called, whose panics come out of the call that they work for.
const POOL: &str = "rten-";

/// As [`super::catches_panics`].
pub(super) fn catches_panics() -> bool {
    IS_CAUGHT.get() || std::thread::current().name().is_some_and(|name| name.starts_with(POOL))
}

/// What `run` gives, or that it panicked.
fn caught<T>(names: &Names, run: impl FnOnce() -> T) -> Result<T> {
    let before = IS_CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(run));
    IS_CAUGHT.set(before);
    done.map_err(|panic| panicked(names, panic.as_ref()))
}

/// What a panic of the engine is to the caller: an error about the model.
fn panicked(names: &Names, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = format!("engine: expected it to run the model, found that it panics: {}", text.unwrap_or("without a message"));
    names.malformed(message).with_hint(OTHER_ENGINE)
}
