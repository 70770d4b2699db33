//! A model whose graph is kept as it was given, while values of its constants change.
//!
//! [`lift`] makes initializers of the float constants that Constant nodes hold, so that weights are found there too; [`restore`]
//! puts them back where they were. A graph that is not changed in between is the one that was given, field by field.

use super::scopes::{for_each_mut, scopes};
use super::version::raise_ir;
use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use std::collections::{HashMap, HashSet};

/// The first IR version whose initializers are no inputs.
const CONSTANTS_ARE_NO_INPUTS: i64 = 4;

/// The attribute of a Constant that holds a tensor.
const VALUE: &str = "value";

/// Makes initializers of float constants, and takes initializers from the inputs of graphs, where old models list them.
pub(crate) fn lift(model: &mut ModelProto) {
    raise_ir(model, CONSTANTS_ARE_NO_INPUTS);
    for_each_mut(model, &mut |_, graph| {
        let found: Vec<(usize, TensorProto)> = lifted(graph).map(|(place, tensor)| (place, tensor.clone())).collect();
        let names: Vec<String> = found.iter().map(|(place, _)| graph.node[*place].output[0].clone()).collect();
        let gone: HashSet<usize> = found.iter().map(|(place, _)| *place).collect();
        let mut place = 0..;
        graph.node.retain(|_| place.next().is_none_or(|place| !gone.contains(&place)));
        graph.initializer.extend(found.into_iter().zip(names).map(|((_, tensor), name)| TensorProto { name, ..tensor }));
    });
}

/// Puts constants back into the nodes of `given` that held them. Where constants were added besides, the model keeps the newer IR
/// version, which they need.
pub(crate) fn restore(model: &mut ModelProto, given: &ModelProto) {
    let before = scopes(given);
    let mut has_more = false;
    for_each_mut(model, &mut |number, graph| {
        let Some(scope) = before.get(number) else { return };
        restore_nodes(graph, scope.graph);
        let known: HashSet<&str> = scope.graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        has_more |= graph.initializer.iter().any(|tensor| !known.contains(tensor.name.as_str()));
    });
    if !has_more {
        model.ir_version = given.ir_version;
        for_each_mut(model, &mut |number, graph| {
            if let Some(scope) = before.get(number) {
                graph.input.clone_from(&scope.graph.input);
            }
        });
    }
}

/// Nodes that hold float constants, by place. One that is an output of its graph stays a node.
fn lifted(graph: &GraphProto) -> impl Iterator<Item = (usize, &TensorProto)> {
    let outputs: HashSet<&str> = graph.output.iter().map(|value| value.name.as_str()).collect();
    let nodes = graph.node.iter().enumerate();
    nodes.filter_map(move |(place, node)| Some((place, value(node).filter(|_| !outputs.contains(node.output[0].as_str()))?)))
}

/// The float tensor of a Constant.
fn value(node: &NodeProto) -> Option<&TensorProto> {
    let (true, [name], [attribute]) = (node.is("Constant"), &node.output[..], &node.attribute[..]) else { return None };
    let is_value = attribute.name == VALUE && attribute.ref_attr_name.is_empty() && !name.is_empty();
    attribute.t.as_deref().filter(|tensor| is_value && tensor.dtype().is_some_and(|dtype| dtype.is_decodable()))
}

fn restore_nodes(graph: &mut GraphProto, given: &GraphProto) {
    let places: Vec<usize> = lifted(given).map(|(place, _)| place).collect();
    let names: HashSet<&str> = places.iter().map(|place| given.node[*place].output[0].as_str()).collect();
    let (back, stay): (Vec<TensorProto>, Vec<TensorProto>) =
        std::mem::take(&mut graph.initializer).into_iter().partition(|tensor| names.contains(tensor.name.as_str()));
    graph.initializer = stay;
    let mut back: HashMap<String, TensorProto> = back.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut others = std::mem::take(&mut graph.node).into_iter();
    for place in places {
        let mut node = given.node[place].clone();
        // One that nothing took any more may be gone.
        let Some(tensor) = back.remove(&node.output[0]) else { continue };
        graph.node.extend(others.by_ref().take(place.saturating_sub(graph.node.len())));
        let own = node.attribute.iter_mut().find_map(|attribute| attribute.t.as_deref_mut()).expect("only nodes with a tensor are lifted");
        *own = TensorProto { name: std::mem::take(&mut own.name), ..tensor };
        graph.node.push(node);
    }
    graph.node.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::{AttributeProto, Message, ValueInfoProto};
    use crate::formats::onnx::wire::Out;

    fn bytes(model: &ModelProto) -> Vec<u8> {
        let mut out = Out::default();
        model.encode(&mut out);
        format!("{:?}", out.segments).into_bytes()
    }

    fn constant(name: &str, tensor: TensorProto) -> NodeProto {
        let mut node = NodeProto::new("Constant", format!("node of {name}"), vec![], vec![name.into()]);
        node.attribute.push(AttributeProto::tensor(VALUE, tensor));
        node
    }

    #[test]
    fn a_graph_that_is_only_lifted_is_restored_as_it_was() {
        let add = |a: &str, b: &str, c: &str| NodeProto::new("Add", format!("to {c}"), vec![a.into(), b.into()], vec![c.into()]);
        for ir_version in [3, 8] {
            let mut graph = GraphProto::default();
            graph.initializer.push(TensorProto::floats("stored".into(), &[1], &[1.0]));
            graph.input.push(ValueInfoProto::tensor("x".into(), 1, &[Some(1)]));
            graph.input.push(ValueInfoProto::tensor("stored".into(), 1, &[Some(1)]));
            graph.node.push(constant("a", TensorProto::floats("own name".into(), &[1], &[2.0])));
            graph.node.push(add("x", "a", "xa"));
            graph.node.push(constant("shape", TensorProto::ints(String::new(), &[1], &[1])));
            graph.node.push(constant("b", TensorProto::floats(String::new(), &[1], &[3.0])));
            graph.node.push(constant("out", TensorProto::floats(String::new(), &[1], &[4.0])));
            graph.node.push(add("xa", "b", "y"));
            graph.output.push(ValueInfoProto::tensor("out".into(), 1, &[Some(1)]));
            let given = ModelProto { ir_version: Some(ir_version), graph: Some(Box::new(graph)), ..ModelProto::default() };
            let mut model = given.clone();
            lift(&mut model);
            let constants = &model.graph.as_ref().unwrap().initializer;
            assert_eq!(constants.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["stored", "a", "b"]);
            restore(&mut model, &given);
            assert_eq!(bytes(&model), bytes(&given), "IR version {ir_version}");
        }
    }
}
