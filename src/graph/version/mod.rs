//! Raises the version of the standard operators that a model uses, as newer forms of quantization need newer operators:
//! per-axis DequantizeLinear version 13, 16-bit, 4-bit and blocked codes version 21.
//!
//! Every node is taken through the versions one by one, in the graph, in the bodies of control flow and in functions that
//! use the standard operators. [`table`] says which operators change how; values and the names of outputs stay the same.
//! What an operator cannot say in its new version is refused, never approximated.

mod ir;
mod moves;
mod resize;
mod rewrite;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use ir::raise_ir;

use super::facts::{self, Facts};
use super::names::Names;
use super::sweep;
use crate::error::show_name;
use crate::formats::onnx::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Oldest version that can be raised.
const OLDEST: i64 = 7;
/// Newest version that [`table`] reaches.
const NEWEST: i64 = 21;

/// Raises the standard operators to version `to`, at most 21, and the IR version with them. A model of that version or a
/// newer one stays as it is, and so it does if there is an error.
///
/// # Errors
///
/// Which operator cannot be raised, what was expected of it and what was found.
pub(crate) fn raise_opset(model: &mut ModelProto, to: i64) -> Result<(), String> {
    if to > NEWEST {
        return Err(format!("opset: expected at most {NEWEST} to raise the model to, found {to}"));
    }
    let from = model.opset();
    // Tensors share their bytes with the original.
    let mut raised = model.clone();
    if from < to {
        let (mut names, only_floats) = (Names::of(&raised), facts::only_floats(&raised));
        if let Some(graph) = &mut raised.graph {
            let has_standard = graph.node.iter().any(uses_standard);
            if has_standard {
                check_oldest(from)?;
            }
            Raise { from, to, names: &mut names }.graph(graph, &Facts::new(only_floats))?;
        }
        set_version(&mut raised.opset_import, to);
        raise_ir(&mut raised, ir::of_opset(to));
    }
    let only_floats = facts::only_floats(&raised);
    for function in &mut raised.functions {
        raise_function(function, to, only_floats)
            .map_err(|e| format!("function {}.{}: {e}", show_name(&function.domain), show_name(&function.name)))?;
    }
    *model = raised;
    Ok(())
}

fn check_oldest(from: i64) -> Result<(), String> {
    if from < OLDEST { Err(format!("opset: expected at least {OLDEST} to raise the model from, found {from}")) } else { Ok(()) }
}

/// Whether a node, or one in its bodies, is a standard operator.
fn uses_standard(node: &NodeProto) -> bool {
    node.is_standard() || node.bodies().any(|body| body.node.iter().any(uses_standard))
}

fn set_version(imports: &mut Vec<OperatorSetIdProto>, to: i64) {
    match imports.iter_mut().find(|import| import.domain.is_empty() || import.domain == "ai.onnx") {
        Some(import) => import.version = Some(to),
        None => imports.push(OperatorSetIdProto { version: Some(to), ..OperatorSetIdProto::default() }),
    }
}

/// Raises a function that uses the standard operators, as functions must agree with the model on what they mean.
fn raise_function(function: &mut FunctionProto, to: i64, only_floats: bool) -> Result<(), String> {
    let standard = function.opset_import.iter().find(|import| import.domain.is_empty() || import.domain == "ai.onnx");
    let Some(from) = standard.map(|import| import.version.unwrap_or(1)).filter(|from| *from < to) else { return Ok(()) };
    check_oldest(from)?;
    let value = |name: &String| crate::formats::onnx::proto::ValueInfoProto { name: name.clone(), ..Default::default() };
    let body = GraphProto {
        node: std::mem::take(&mut function.node),
        input: function.input.iter().map(value).collect(),
        output: function.output.iter().map(value).collect(),
        ..GraphProto::default()
    };
    let mut alone = ModelProto { graph: Some(Box::new(body)), ..ModelProto::default() };
    let mut names = Names::of(&alone);
    if let Some(graph) = &mut alone.graph {
        Raise { from, to, names: &mut names }.graph(graph, &Facts::new(only_floats))?;
        // Functions have no initializers.
        let constants = std::mem::take(&mut graph.initializer).into_iter().map(|tensor| {
            let output = vec![tensor.name.clone()];
            let attribute = vec![AttributeProto::tensor("value", TensorProto { name: String::new(), ..tensor })];
            NodeProto { attribute, ..NodeProto::new("Constant", String::new(), Vec::new(), output) }
        });
        function.node = constants.chain(std::mem::take(&mut graph.node)).collect();
    }
    set_version(&mut function.opset_import, to);
    Ok(())
}

/// One run from a version to another.
struct Raise<'n> {
    from: i64,
    to: i64,
    names: &'n mut Names,
}

impl Raise<'_> {
    fn graph(&mut self, graph: &mut GraphProto, outer: &Facts<'_>) -> Result<(), String> {
        let facts = Facts::of(graph, outer);
        let unused = sweep::unused(graph);
        for mut node in std::mem::take(&mut graph.node) {
            node.bodies_mut().try_for_each(|body| self.graph(body, &facts))?;
            let mut step =
                Step { facts: &facts, names: self.names, to: self.to, constants: Vec::new(), before: Vec::new(), after: Vec::new() };
            for version in self.from + 1..=self.to {
                let Some(convert) = table::step(&node, version) else { continue };
                convert(&mut node, &mut step)
                    .map_err(|e| format!("node {} ({}): opset {version}: {e}", show_name(&node.name), show_name(&node.op_type)))?;
            }
            graph.initializer.append(&mut step.constants);
            graph.node.append(&mut step.before);
            graph.node.push(node);
            graph.node.append(&mut step.after);
        }
        sweep::remove(graph, &unused);
        Ok(())
    }
}

/// What the conversion of one node may look at, and what it adds to the graph.
struct Step<'s> {
    facts: &'s Facts<'s>,
    names: &'s mut Names,
    /// The version that the model is raised to in the end.
    to: i64,
    constants: Vec<TensorProto>,
    before: Vec<NodeProto>,
    after: Vec<NodeProto>,
}

impl Step<'_> {
    /// A new name that tells what it is of.
    fn name(&mut self, node: &NodeProto, what: &str) -> String {
        let of = node.output.iter().find(|name| !name.is_empty()).map_or(node.name.as_str(), String::as_str);
        self.names.fresh(&format!("{of}_{what}"))
    }

    /// A new constant of 64-bit integers; its name.
    fn ints(&mut self, node: &NodeProto, what: &str, dims: &[i64], values: &[i64]) -> String {
        let name = self.name(node, what);
        self.constants.push(TensorProto::ints(name.clone(), dims, values));
        name
    }

    /// A new value that an operator computes before the node; its name.
    fn compute(&mut self, node: &NodeProto, what: &str, op_type: &str, input: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = self.name(node, what);
        let input = input.iter().map(|name| (*name).to_owned()).collect();
        self.before.push(NodeProto { attribute, ..NodeProto::new(op_type, output.clone(), input, vec![output.clone()]) });
        output
    }
}

/// Takes an attribute out of a node.
///
/// # Errors
///
/// If its value is an attribute of the function around.
fn take(node: &mut NodeProto, name: &str) -> Result<Option<AttributeProto>, String> {
    let Some(place) = node.attribute.iter().position(|attribute| attribute.name == name) else { return Ok(None) };
    let attribute = node.attribute.remove(place);
    if attribute.ref_attr_name.is_empty() {
        return Ok(Some(attribute));
    }
    Err(format!("{name}: expected a value, found a reference to the function's attribute {}", show_name(&attribute.ref_attr_name)))
}

/// Gives a node another value of an attribute.
fn set(node: &mut NodeProto, attribute: AttributeProto) {
    node.attribute.retain(|old| old.name != attribute.name);
    node.attribute.push(attribute);
}

/// Gives a node an input, with absent ones before it.
fn set_input(node: &mut NodeProto, index: usize, name: String) {
    if node.input.len() <= index {
        node.input.resize(index + 1, String::new());
    }
    node.input[index] = name;
}
