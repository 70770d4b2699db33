//! Computes what depends on constants only.
//!
//! Exporters leave such nodes where they could not see that a shape or a parameter is constant: a Reshape or Cast of a
//! weight, `Sqrt(Add(variance, epsilon))`, the Concat of a bias. Results are those of the runtime: integers are exact,
//! floats are rounded after each operation to their own type. Whatever is not listed in [`OPERATORS`] stays, and so does
//! whatever is larger than [`SMALL`](super::SMALL), except for other views of the same bytes.

mod arithmetic;
mod movement;
mod value;

use super::SMALL;
use super::visible::Visible;
use crate::formats::onnx::proto::{GraphProto, NodeProto};
use std::collections::HashSet;
use value::Constant;

/// What a node computes from its inputs; nothing, if it is unusual.
type Compute = fn(&NodeProto, &[Option<Constant>]) -> Option<Constant>;

/// Operators of which constants are computed.
const OPERATORS: &[(&str, Compute)] = &[
    ("Abs", arithmetic::unary),
    ("Add", arithmetic::binary),
    ("Cast", arithmetic::cast),
    ("Ceil", arithmetic::unary),
    ("Concat", movement::concat),
    ("ConstantOfShape", movement::constant_of_shape),
    ("Div", arithmetic::binary),
    ("Exp", arithmetic::unary),
    ("Expand", movement::expand),
    ("Floor", arithmetic::unary),
    ("Gather", movement::gather),
    ("Max", arithmetic::binary),
    ("Min", arithmetic::binary),
    ("Mul", arithmetic::binary),
    ("Neg", arithmetic::unary),
    ("Pow", arithmetic::power),
    ("Range", arithmetic::range),
    ("Reciprocal", arithmetic::unary),
    ("Shape", movement::shape_of),
    ("Slice", movement::slice),
    ("Sqrt", arithmetic::unary),
    ("Sub", arithmetic::binary),
    ("Transpose", movement::transpose),
];

/// Operators whose output is another view of their first input's bytes, of whatever size.
const VIEWS: &[(&str, Compute)] =
    &[("Flatten", movement::flatten), ("Reshape", movement::reshape), ("Squeeze", movement::squeeze), ("Unsqueeze", movement::unsqueeze)];

/// Replaces nodes of constants by their values and returns how many. `outer` are the constants of the graphs around.
pub(super) fn compute(graph: &mut GraphProto, outer: &Visible<'_>) -> usize {
    let mut known = Visible::within(graph, outer);
    let outputs: HashSet<String> = graph.output.iter().map(|value| value.name.clone()).collect();
    let before = graph.node.len();
    let initializers = &mut graph.initializer;
    graph.node.retain(|node| {
        let [output] = &node.output[..] else { return true };
        if output.is_empty() || outputs.contains(output) {
            return true;
        }
        let Some(tensor) = evaluate(node, &known).map(|value| value.into_tensor(output.clone())) else { return true };
        known.insert(tensor.clone());
        initializers.push(tensor);
        false
    });
    before - graph.node.len()
}

/// The value of a node whose inputs are all constant.
fn evaluate(node: &NodeProto, known: &Visible<'_>) -> Option<Constant> {
    if !node.is_standard() || node.attribute.iter().any(|attribute| !attribute.ref_attr_name.is_empty()) {
        return None;
    }
    let find = |table: &[(&str, Compute)]| table.iter().find(|(op_type, _)| *op_type == node.op_type).map(|(_, compute)| *compute);
    let view = find(VIEWS);
    let compute = view.or_else(|| find(OPERATORS))?;
    let mut inputs = Vec::with_capacity(node.input.len());
    for i in 0..node.input.len() {
        inputs.push(match node.input(i) {
            None => None,
            Some(name) => {
                let constant = Constant::of(known.get(name)?)?;
                // Shape needs none of the values.
                let any_size = (view.is_some() && i == 0) || node.op_type == "Shape";
                Some(constant).filter(|constant| any_size || constant.elements() <= SMALL).map(Some)?
            }
        });
    }
    compute(node, &inputs).filter(|value| view.is_some() || value.elements() <= SMALL)
}
