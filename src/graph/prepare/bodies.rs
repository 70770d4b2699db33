//! Names in the bodies of control flow.

use crate::formats::onnx::proto::GraphProto;
use std::collections::HashMap;

/// Visits every name that a body gives to a value of its own, not those of bodies within.
pub(super) fn for_each_definition(body: &GraphProto, mut visit: impl FnMut(&str)) {
    body.input.iter().for_each(|value| visit(&value.name));
    body.initializer.iter().for_each(|tensor| visit(&tensor.name));
    body.node.iter().flat_map(|node| &node.output).for_each(|name| visit(name));
}

/// Whether a body, or one within, gives `name` to a value of its own. That is not valid ONNX, but met.
pub(super) fn defines(body: &GraphProto, name: &str) -> bool {
    let mut found = false;
    for_each_definition(body, |own| found |= own == name);
    found || body.node.iter().flat_map(|node| node.bodies()).any(|inner| defines(inner, name))
}

/// Gives other names to values that a body takes from around it.
pub(super) fn rename(body: &mut GraphProto, renamed: &HashMap<String, String>) {
    let apply = |name: &mut String| {
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        }
    };
    body.output.iter_mut().for_each(|value| apply(&mut value.name));
    for node in &mut body.node {
        node.input.iter_mut().for_each(apply);
        node.bodies_mut().for_each(|inner| rename(inner, renamed));
    }
}
