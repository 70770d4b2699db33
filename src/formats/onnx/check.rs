//! What must hold of a model before anything else trusts it, after
//! [`onnx.checker`](https://github.com/onnx/onnx/blob/main/onnx/checker.cc) and
//! [the specification](https://github.com/onnx/onnx/blob/main/docs/IR.md): known versions and operators, one definition of
//! each value before its first use, and constants with as many values as they say. Types and shapes are not inferred, and
//! what an operator takes is not checked.
//!
//! Stricter than the checker, because a quantizer would otherwise have to guess: unknown versions, values too many, and
//! outputs that nothing computes. More lenient: initializers need not be inputs before version 4 of the format, and ONNX
//! Runtime's own operators are known. Nodes out of order, which ONNX Runtime sorts, are refused as the checker does.

#[cfg(test)]
mod tests;

use super::operators::{NEWEST_OPSET, OLDEST_OPSET, check_operator};
use super::order::{find_cycle, needs_of_nodes};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto,
    TrainingInfoProto, ValueInfoProto, unknown_field, unknown_fields,
};
use super::tensor::INT64;
use super::wire::Value;
use crate::error::{Error, Result, escape, show_name};
use crate::formats::{ReadOptions, shorten};
use crate::limits::raised_by;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Versions of the format that are read: up to that of onnx 1.23.
const IR_VERSIONS: std::ops::RangeInclusive<i64> = 3..=14;

/// Checks a model whose values are all in it.
///
/// # Errors
///
/// [`Error::Malformed`] or [`Error::Tensor`] for what is wrong, [`Error::Limit`] for what exceeds one of `options`.
pub(super) fn check(path: &Path, model: &ModelProto, options: &ReadOptions) -> Result<()> {
    let mut checker = Checker { path, options, functions: HashMap::new(), nodes: Cell::new(0), initializers: Cell::new(0) };
    match model.ir_version {
        None => return Err(checker.fault("ir_version: expected one, found none")),
        Some(version) if !IR_VERSIONS.contains(&version) => {
            let (oldest, newest) = IR_VERSIONS.into_inner();
            return Err(checker.fault(format!("ir_version: expected {oldest} to {newest}, found {version}")));
        }
        Some(_) => {}
    }
    let opset = checker.opset(&model.opset_import)?;
    if model.opset_import.is_empty() {
        return Err(checker.fault("opset_import: expected one, found none"));
    }
    let graph = model.graph.as_deref().ok_or_else(|| checker.fault("graph: expected one, found none"))?;
    for (index, function) in model.functions.iter().enumerate() {
        if function.name.is_empty() {
            return Err(checker.fault(format!("function {index}: name: expected one, found none")));
        }
        if checker.functions.insert(function_key(function), index).is_some() {
            return Err(checker.fault(format!("function {}: expected one definition, found several", show_name(&function.name))));
        }
    }
    checker.recursion(&model.functions)?;
    checker.graph(graph, None, opset, false).map_err(|e| within(e, || "graph".into()))?;
    for function in &model.functions {
        checker.function(function, opset).map_err(|e| within(e, || format!("function {}", show_name(&function.name))))?;
    }
    for info in unread::<TrainingInfoProto>(&model.unknown, 20) {
        check_training(path, &info.map_err(|e| checker.fault(format!("training_info: {e}")))?, options)?;
    }
    Ok(())
}

/// Graphs for training are written back as they are, so all that matters is that their constants need no other file.
fn check_training(path: &Path, info: &TrainingInfoProto, options: &ReadOptions) -> Result<()> {
    let checker = Checker { path, options, functions: HashMap::new(), nodes: Cell::new(0), initializers: Cell::new(0) };
    let mut pending: Vec<&GraphProto> = info.initialization.as_deref().into_iter().chain(info.algorithm.as_deref()).collect();
    while let Some(graph) = pending.pop() {
        checker.constants(graph, &mut HashSet::new()).map_err(|e| within(e, || "training_info".into()))?;
        for attribute in graph.node.iter().flat_map(|node| &node.attribute) {
            attribute.t.as_deref().into_iter().chain(&attribute.tensors).try_for_each(|tensor| checker.tensor(tensor, &attribute.name))?;
            pending.extend(attribute.g.as_deref().into_iter().chain(&attribute.graphs));
        }
    }
    Ok(())
}

/// How many inputs must be there, of operators that are rewritten or looked through.
const REQUIRED_INPUTS: &[(usize, &[&str])] = &[
    (3, &["LSTM", "GRU", "RNN"]),
    (2, &["Conv", "ConvTranspose", "MatMul", "Gemm", "Gather", "Add", "Mul", "Sub", "Div", "QuantizeLinear", "DequantizeLinear"]),
    (
        1,
        &[
            "Cast",
            "Clip",
            "Flatten",
            "Identity",
            "LeakyRelu",
            "MaxPool",
            "Relu",
            "Reshape",
            "Sigmoid",
            "Softmax",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        ],
    ),
];

/// Domain, name and overload. The standard domain has two names.
type FunctionKey<'m> = (&'m str, &'m str, String);

fn function_key(function: &FunctionProto) -> FunctionKey<'_> {
    (domain(&function.domain), &function.name, overload(unknown_field(&function.unknown, 13)))
}

fn called_key(node: &NodeProto) -> FunctionKey<'_> {
    (domain(&node.domain), &node.op_type, overload(unknown_field(&node.unknown, 8)))
}

fn domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn overload(value: Option<Value>) -> String {
    match value {
        Some(Value::Bytes(name)) => String::from_utf8_lossy(&name).into_owned(),
        _ => String::new(),
    }
}

/// Messages in fields that are kept as they were read.
fn unread<M: Message>(unknown: &[bytes::Bytes], number: u32) -> impl Iterator<Item = Result<M, String>> {
    unknown_fields(unknown, number).map(|value| match value {
        Value::Bytes(bytes) => M::parse(bytes),
        other => Err(format!("expected a length, found {}", other.kind())),
    })
}

/// Values that nodes can use: those of this graph so far, and those of the graphs around it.
struct Scope<'m, 'outer> {
    names: HashSet<Cow<'m, str>>,
    nodes: &'m [NodeProto],
    outer: Option<&'outer Scope<'m, 'outer>>,
    /// Version of the standard operators, if they are imported.
    opset: Option<i64>,
    in_function: bool,
}

impl Scope<'_, '_> {
    fn sees(&self, name: &str) -> bool {
        self.names.contains(name) || self.outer.is_some_and(|outer| outer.sees(name))
    }

    /// What is wrong with a value that no node before has defined.
    fn explain(&self, name: &str) -> String {
        if !self.nodes.iter().any(|node| node.output.iter().any(|output| output == name)) {
            let nowhere = || "expected a value that something defines, found none of this name".to_owned();
            return self.outer.map_or_else(nowhere, |outer| outer.explain(name));
        }
        match find_cycle(&needs_of_nodes(self.nodes)) {
            Some(index) => format!("expected no cycle, found that {} needs its own output", shown_node(index, &self.nodes[index])),
            None => "expected nodes in topological order, found that a later node defines it".into(),
        }
    }
}

fn shown_node(index: usize, node: &NodeProto) -> String {
    match node.name.as_str() {
        "" => format!("node {index} ({})", escape(&shorten(&node.op_type))),
        name => format!("node {} ({})", show_name(name), escape(&shorten(&node.op_type))),
    }
}

/// The same error, with where it is.
fn within(error: Error, place: impl FnOnce() -> String) -> Error {
    match error {
        // Of deeply nested places the innermost are enough.
        Error::Malformed { file, message } if message.len() < 1000 => Error::Malformed { file, message: format!("{}: {message}", place()) },
        other => other,
    }
}

struct Checker<'m> {
    path: &'m Path,
    options: &'m ReadOptions,
    /// Model-local functions, and their positions.
    functions: HashMap<FunctionKey<'m>, usize>,
    nodes: Cell<u64>,
    initializers: Cell<u64>,
}

impl<'m> Checker<'m> {
    fn fault(&self, message: impl Into<String>) -> Error {
        Error::malformed(self.path, message)
    }

    fn limit(&self, name: &'static str, what: impl FnOnce() -> String, limit: u64, found: u64) -> Result<()> {
        match found > limit {
            true => Err(raised_by(Error::Limit { file: self.path.to_owned(), what: what(), limit, found }, name)),
            false => Ok(()),
        }
    }

    fn count(&self, counter: &Cell<u64>, what: &str, more: usize) -> Result<()> {
        counter.set(counter.get() + more as u64);
        self.limit("nodes", || what.to_owned(), self.options.max_nodes, counter.get())
    }

    fn name(&self, name: &str) -> Result<()> {
        self.limit("name-bytes", || "bytes of a name".into(), self.options.max_name_bytes, name.len() as u64)
    }

    /// The version of the standard operators, if they are imported.
    fn opset(&self, imports: &[OperatorSetIdProto]) -> Result<Option<i64>> {
        let mut versions = HashMap::new();
        for import in imports {
            let name = domain(&import.domain);
            let shown = if name.is_empty() { "ai.onnx".to_owned() } else { show_name(name).to_string() };
            let version = import.version.unwrap_or(0);
            if let Some(other) = versions.insert(name, version).filter(|other| *other != version) {
                return Err(self.fault(format!("opset_import: {shown}: expected one version, found {other} and {version}")));
            }
            if name.is_empty() && !(OLDEST_OPSET..=NEWEST_OPSET).contains(&version) {
                let message = format!("opset_import: {shown}: expected version {OLDEST_OPSET} to {NEWEST_OPSET}, found {version}");
                let hint = (version < OLDEST_OPSET).then_some("convert the model with onnx.version_converter.convert_version");
                return Err(hint.into_iter().fold(self.fault(message), Error::with_hint));
            }
        }
        Ok(versions.remove(""))
    }

    fn graph(&self, graph: &'m GraphProto, outer: Option<&Scope<'m, '_>>, opset: Option<i64>, in_function: bool) -> Result<()> {
        let mut scope = Scope { names: HashSet::new(), nodes: &graph.node, outer, opset, in_function };
        graph.input.iter().chain(&graph.output).chain(&graph.value_info).try_for_each(|value| self.value(value))?;
        for input in &graph.input {
            self.define_once(&mut scope.names, &input.name, "input")?;
        }
        let mut constants = HashSet::with_capacity(graph.initializer.len());
        self.constants(graph, &mut constants)?;
        // A constant that is an input too is that input's default value.
        scope.names.extend(constants);
        self.body(&graph.node, &mut scope)?;
        self.outputs(graph.output.iter().map(|output| &output.name), &scope)
    }

    fn function(&self, function: &'m FunctionProto, opset: Option<i64>) -> Result<()> {
        // Functions of early writers rely on the model's imports.
        let opset = if function.opset_import.is_empty() { opset } else { self.opset(&function.opset_import)? };
        let mut scope = Scope { names: HashSet::new(), nodes: &function.node, outer: None, opset, in_function: true };
        for input in &function.input {
            self.define_once(&mut scope.names, input, "input")?;
        }
        for default in unread::<AttributeProto>(&function.unknown, 11) {
            // Read here only to be checked, so it cannot be lent to the scope.
            let default = default.map_err(|e| self.fault(format!("attribute_proto: {e}")))?;
            self.attribute(&default, false)?;
            default.t.iter().try_for_each(|tensor| self.tensor(tensor, &default.name))?;
        }
        self.body(&function.node, &mut scope)?;
        self.outputs(function.output.iter(), &scope)
    }

    fn define_once(&self, names: &mut HashSet<Cow<'m, str>>, name: &'m str, what: &str) -> Result<()> {
        self.name(name)?;
        match names.insert(name.into()) {
            true => Ok(()),
            false => Err(self.fault(format!("{what} {}: expected one of this name, found several", show_name(name)))),
        }
    }

    fn outputs(&self, mut outputs: impl Iterator<Item = &'m String>, scope: &Scope<'m, '_>) -> Result<()> {
        match outputs.find(|name| !scope.sees(name)) {
            Some(name) => Err(self.fault(format!("output {}: expected something that defines it, found nothing", show_name(name)))),
            None => Ok(()),
        }
    }

    fn value(&self, value: &ValueInfoProto) -> Result<()> {
        self.name(&value.name)?;
        let shape = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()).and_then(|tensor| tensor.shape.as_ref());
        self.rank(&value.name, shape.map_or(0, |shape| shape.dim.len()))
    }

    fn rank(&self, name: &str, rank: usize) -> Result<()> {
        self.limit("rank", || format!("dimensions of {}", show_name(name)), self.options.max_rank, rank as u64)
    }

    fn elements(&self, name: &str, dims: &[i64]) -> Result<()> {
        // Dimensions below 0 and products beyond 64 bits are faults of another kind.
        let found = dims.iter().map(|dim| u64::try_from(*dim).ok()).try_fold(1u64, |product, dim| product.checked_mul(dim?));
        found
            .map_or(Ok(()), |found| self.limit("elements", || format!("elements of {}", show_name(name)), self.options.max_elements, found))
    }

    /// The nodes of a graph or of a function, in order.
    fn body(&self, nodes: &'m [NodeProto], scope: &mut Scope<'m, '_>) -> Result<()> {
        self.count(&self.nodes, "nodes", nodes.len())?;
        for (index, node) in nodes.iter().enumerate() {
            self.node(node, scope).map_err(|e| within(e, || shown_node(index, node)))?;
        }
        Ok(())
    }

    fn node(&self, node: &'m NodeProto, scope: &mut Scope<'m, '_>) -> Result<()> {
        [&node.name, &node.op_type, &node.domain].into_iter().chain(&node.output).try_for_each(|name| self.name(name))?;
        if node.is_standard() && !self.functions.contains_key(&called_key(node)) {
            let opset = scope.opset.ok_or_else(|| self.fault("opset_import: expected a version of ai.onnx, found none"))?;
            check_operator(&node.op_type, opset).map_err(|e| self.fault(format!("op_type {}: {e}", show_name(&node.op_type))))?;
        }
        if let Some(input) = node.input.iter().find(|input| !input.is_empty() && !scope.sees(input)) {
            return Err(self.fault(format!("input {}: {}", show_name(input), scope.explain(input))));
        }
        self.arity(node)?;
        let mut names = HashSet::with_capacity(node.attribute.len());
        for attribute in &node.attribute {
            if !names.insert(&attribute.name) {
                return Err(self.fault(format!("attribute {}: expected one, found several", show_name(&attribute.name))));
            }
            self.attribute(attribute, scope.in_function)?;
            let owner = node.output.first().unwrap_or(&node.name);
            for tensor in attribute.t.as_deref().into_iter().chain(&attribute.tensors) {
                self.tensor(tensor, owner)?;
            }
        }
        for body in node.bodies() {
            self.graph(body, Some(scope), scope.opset, scope.in_function).map_err(|e| within(e, || "body".into()))?;
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if scope.sees(output) {
                return Err(self.fault(format!("output {}: expected one definition, found several", show_name(output))));
            }
            scope.names.insert(output.into());
        }
        Ok(())
    }

    /// That operators which are looked into have what they compute with, and that all give something.
    fn arity(&self, node: &NodeProto) -> Result<()> {
        let is_known = node.is_standard() || node.domain == "com.microsoft";
        if !is_known || self.functions.contains_key(&called_key(node)) {
            return Ok(());
        }
        if node.output.iter().all(String::is_empty) {
            return Err(self.fault(format!("op_type {}: expected an output, found none", show_name(&node.op_type))));
        }
        let needed = REQUIRED_INPUTS.iter().find(|(_, ops)| ops.contains(&node.op_type.as_str())).map_or(0, |(needed, _)| *needed);
        match (0..needed).find(|input| node.input(*input).is_none()) {
            Some(missing) => {
                Err(self.fault(format!("op_type {}: expected {needed} inputs, found no input {missing}", show_name(&node.op_type))))
            }
            None => Ok(()),
        }
    }

    /// That an attribute has one value, of the kind that it says.
    fn attribute(&self, attribute: &AttributeProto, in_function: bool) -> Result<()> {
        let fault = |message: String| Err(self.fault(format!("attribute {}: {message}", show_name(&attribute.name))));
        self.name(&attribute.name)?;
        if attribute.name.is_empty() {
            return fault("name: expected one, found none".into());
        }
        let unread_field = |number| unknown_field(&attribute.unknown, number).is_some();
        let filled = [
            ("FLOAT", attribute.f.is_some()),
            ("INT", attribute.i.is_some()),
            ("STRING", attribute.s.is_some()),
            ("TENSOR", attribute.t.is_some()),
            ("GRAPH", attribute.g.is_some()),
            ("FLOATS", !attribute.floats.is_empty()),
            ("INTS", !attribute.ints.is_empty()),
            ("STRINGS", !attribute.strings.is_empty()),
            ("TENSORS", !attribute.tensors.is_empty()),
            ("GRAPHS", !attribute.graphs.is_empty()),
            ("SPARSE_TENSOR", unread_field(22)),
            ("SPARSE_TENSORS", unread_field(23)),
            ("TYPE_PROTO", unread_field(14)),
            ("TYPE_PROTOS", unread_field(15)),
        ];
        let code = attribute.kind.unwrap_or(0);
        let kind = usize::try_from(code).ok().and_then(|code| filled.get(code.checked_sub(1)?));
        let Some((kind, is_filled)) = kind else {
            return fault(format!("type: expected a type of ONNX, found {code}"));
        };
        if let Some((other, _)) = filled.iter().find(|(name, filled)| *filled && name != kind) {
            return fault(format!("expected a value of type {kind}, found one of {other}"));
        }
        // A number, a text or a list that is left out is zero or empty, which these cannot be.
        let is_required = matches!(*kind, "TENSOR" | "GRAPH" | "SPARSE_TENSOR" | "TYPE_PROTO");
        let is_reference = in_function && !attribute.ref_attr_name.is_empty();
        if is_required && !is_filled && !is_reference {
            return fault(format!("expected a value of type {kind}, found none"));
        }
        for number in [22, 23] {
            unread::<SparseTensorProto>(&attribute.unknown, number)
                .try_for_each(|sparse| self.sparse(sparse, &attribute.name).map(drop))?;
        }
        Ok(())
    }

    /// The constants of a graph alone, whose names are added to `names`.
    fn constants(&self, graph: &'m GraphProto, names: &mut HashSet<Cow<'m, str>>) -> Result<()> {
        let several = |name: &str| Error::tensor(self.path, name, "name: expected one initializer, found several");
        self.count(&self.initializers, "initializers", graph.initializer.len())?;
        for tensor in &graph.initializer {
            self.tensor(tensor, "")?;
            if !names.insert(tensor.name.as_str().into()) {
                return Err(several(&tensor.name));
            }
        }
        for sparse in unread::<SparseTensorProto>(&graph.unknown, 15) {
            let name = self.sparse(sparse, "")?;
            if name.is_empty() {
                return Err(self.fault("sparse_initializer: name: expected one, found none"));
            }
            self.count(&self.initializers, "initializers", 1)?;
            if !names.insert(name.clone().into()) {
                return Err(several(&name));
            }
        }
        Ok(())
    }

    /// That a constant has as many values as it says; `owner` names one without a name.
    fn tensor(&self, tensor: &TensorProto, owner: &str) -> Result<()> {
        let name = if tensor.name.is_empty() { owner } else { &tensor.name };
        self.name(&tensor.name)?;
        self.rank(name, tensor.dims.len())?;
        self.elements(name, &tensor.dims)?;
        tensor.check_contents().map_err(|e| Error::tensor(self.path, name, e))
    }

    /// The name of a sparse constant, after checking that its values and their places fit its dimensions.
    fn sparse(&self, sparse: Result<SparseTensorProto, String>, owner: &str) -> Result<String> {
        let sparse = sparse.map_err(|e| self.fault(format!("sparse tensor: {e}")))?;
        let empty = TensorProto::default();
        let [values, indices] = [&sparse.values, &sparse.indices].map(|tensor| tensor.as_deref().unwrap_or(&empty));
        let name = if values.name.is_empty() { owner } else { &values.name };
        self.rank(name, sparse.dims.len())?;
        self.elements(name, &sparse.dims)?;
        self.tensor(values, name)?;
        self.tensor(indices, name)?;
        check_indices(&sparse.dims, values, indices).map_err(|e| Error::tensor(self.path, name, format!("sparse tensor: {e}")))?;
        Ok(values.name.clone())
    }

    fn recursion(&self, functions: &'m [FunctionProto]) -> Result<()> {
        let calls = |function: &FunctionProto| {
            let mut calls = Vec::new();
            let mut pending: Vec<&NodeProto> = function.node.iter().collect();
            while let Some(node) = pending.pop() {
                calls.extend(self.functions.get(&called_key(node)));
                pending.extend(node.bodies().flat_map(|body| &body.node));
            }
            calls
        };
        let calls: Vec<Vec<usize>> = functions.iter().map(calls).collect();
        match find_cycle(&calls) {
            Some(index) => {
                let name = show_name(&functions[index].name);
                Err(self.fault(format!("function {name}: expected no recursion, found that it calls itself, directly or through others")))
            }
            None => Ok(()),
        }
    }
}

/// That the indices of a sparse tensor ascend within its dimensions: either `[count]` positions in row-major order, or
/// `[count, rank]` coordinates.
fn check_indices(dims: &[i64], values: &TensorProto, indices: &TensorProto) -> Result<(), String> {
    let whole = TensorProto { dims: dims.to_vec(), data_type: values.data_type, ..TensorProto::default() };
    let (shape, elements) = (whole.shape()?, whole.elements()?);
    let count = values.elements()?;
    let width = match indices.shape()?[..] {
        [found] if found == count => 1,
        [found, rank] if found == count && rank == shape.len() && rank > 0 => rank,
        _ => return Err(format!("indices: expected {count} or {count} times {}, found {}", shape.len(), indices.shown_dims())),
    };
    if indices.data_type != Some(INT64) {
        return Err("indices: expected int64, found another type".into());
    }
    let bytes = indices.contents()?;
    let numbers = bytes.as_chunks::<8>().0;
    let mut previous = None;
    for place in numbers.chunks_exact(width) {
        let mut position = 0;
        for (axis, number) in place.iter().enumerate() {
            let size = if width == 1 && indices.dims.len() == 1 { elements } else { shape[axis] };
            let number = i64::from_le_bytes(*number);
            let index = usize::try_from(number).ok().filter(|index| *index < size);
            position = position * size + index.ok_or_else(|| format!("indices: expected 0 to below {size}, found {number}"))?;
        }
        if previous.is_some_and(|previous| previous >= position) {
            return Err(format!("indices: expected ascending places, found {position} out of order"));
        }
        previous = Some(position);
    }
    Ok(())
}
