//! Small graphs, before and after.

mod folding;
mod reference;

use super::{PrepareOptions, Prepared, prepare};
use crate::formats::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::graph::version::raise_opset;

/// Reads the model that the environment names, prepares it and writes it: for checks with other programs.
#[test]
#[ignore = "a tool: reads QTOOL_PREP_IN and writes QTOOL_PREP_OUT"]
fn prepare_a_file() {
    let [input, output] = ["QTOOL_PREP_IN", "QTOOL_PREP_OUT"].map(|name| std::env::var(name).unwrap());
    let mut model = ModelProto::parse(std::fs::read(input).unwrap().into()).unwrap();
    println!("{:#?}", prepare(&mut model, PrepareOptions::default()));
    std::fs::write(output, model.to_bytes().unwrap()).unwrap();
}

/// A node without attributes, named as its first output.
pub(in crate::graph) fn node(op_type: &str, input: &[&str], output: &[&str]) -> NodeProto {
    with(op_type, input, output, Vec::new())
}

/// A node, named as its first output.
pub(in crate::graph) fn with(op_type: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    NodeProto { attribute, ..NodeProto::new(op_type, output[0].to_owned(), owned(input), owned(output)) }
}

/// A float value of so many dimensions.
pub(in crate::graph) fn value(name: &str, rank: usize) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: vec![DimensionProto::default(); rank], ..TensorShapeProto::default() };
    let tensor = TensorTypeProto { elem_type: Some(1), shape: Some(Box::new(shape)), ..TensorTypeProto::default() };
    let kind = TypeProto { tensor_type: Some(Box::new(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(Box::new(kind)), ..ValueInfoProto::default() }
}

/// A model that takes `x` and gives `y`.
pub(in crate::graph) fn model(rank: usize, node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto { node, initializer, input: vec![value("x", rank)], output: vec![value("y", rank)], ..GraphProto::default() };
    let opset_import = vec![OperatorSetIdProto { version: Some(13), ..OperatorSetIdProto::default() }];
    ModelProto { ir_version: Some(7), graph: Some(Box::new(graph)), opset_import, ..ModelProto::default() }
}

fn prepared(model: &mut ModelProto) -> (Prepared, &GraphProto) {
    let prepared = prepare(model, PrepareOptions::default());
    (prepared, model.graph.as_deref().unwrap())
}

fn operators(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

fn constant<'g>(graph: &'g GraphProto, name: &str) -> &'g TensorProto {
    graph.initializer.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no constant {name}"))
}

fn if_node(then_branch: GraphProto, output: &str) -> NodeProto {
    let else_branch = then_branch.clone();
    let body = |name: &str, g: GraphProto| AttributeProto { name: name.into(), g: Some(Box::new(g)), ..AttributeProto::default() };
    with("If", &["condition"], &[output], vec![body("then_branch", then_branch), body("else_branch", else_branch)])
}

fn body(node: Vec<NodeProto>, output: &str) -> GraphProto {
    GraphProto { node, output: vec![value(output, 1)], ..GraphProto::default() }
}

#[test]
fn constants_become_initializers_in_every_graph() {
    let floats = AttributeProto { floats: vec![1.0, 2.0], ..AttributeProto { name: "value_floats".into(), ..AttributeProto::default() } };
    let one = |output: &str| {
        with("Constant", &[], &[output], vec![AttributeProto::tensor("value", TensorProto::ints(String::new(), &[1], &[7]))])
    };
    let inner = body(vec![one("i"), node("Add", &["x", "f"], &["t"]), node("Reshape", &["t", "i"], &["b"])], "b");
    let mut model = model(
        1,
        vec![
            with("Constant", &[], &["f"], vec![floats]),
            with("Constant", &[], &["text"], vec![AttributeProto::string("value_string", "a")]),
            if_node(inner, "z"),
            node("Concat", &["z", "text"], &["w"]),
            one("y"),
        ],
        vec![],
    );
    let (prepared, graph) = prepared(&mut model);
    assert_eq!(prepared.constants, 3, "one in the graph, one in each body");
    assert_eq!(operators(graph), ["Constant", "If", "Concat", "Constant"], "text stays, and so does an output");
    assert_eq!(constant(graph, "f").to_floats(), Some(vec![1.0, 2.0]));
    let inner = graph.node[1].bodies().next().unwrap();
    assert_eq!((operators(inner), constant(inner, "i").to_ints()), (vec!["Add", "Reshape"], Some(vec![7])));
}

#[test]
fn old_models_list_no_constants_among_their_inputs_any_more() {
    let mut model = model(1, vec![node("Add", &["x", "w"], &["y"])], vec![TensorProto::floats("w".into(), &[1], &[1.0])]);
    model.ir_version = Some(3);
    model.graph.as_mut().unwrap().input.push(value("w", 1));
    let (_, graph) = prepared(&mut model);
    assert_eq!(graph.input.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["x"]);
    assert_eq!(model.ir_version, Some(4));
}

#[test]
fn what_hands_on_its_input_goes() {
    let inner = body(vec![node("Relu", &["b"], &["c"])], "c");
    let mut model = model(
        1,
        vec![
            node("Relu", &["x"], &["a"]),
            node("Identity", &["a"], &["b"]),
            with("Dropout", &["b"], &["d", "mask"], vec![AttributeProto::float("ratio", 0.5)]),
            if_node(inner, "e"),
            node("Add", &["d", "e"], &["f"]),
            node("Identity", &["f"], &["y"]),
        ],
        vec![],
    );
    let (prepared, graph) = prepared(&mut model);
    assert_eq!((prepared.removed, operators(graph)), (3, vec!["Relu", "If", "Add"]));
    assert_eq!((&graph.node[2].input[..], &graph.node[2].output[..]), (&["a".into(), "e".into()][..], &["y".into()][..]));
    assert_eq!(graph.node[1].bodies().next().unwrap().node[0].input, ["a"], "the body takes the value under its own name");
}

#[test]
fn what_hands_on_a_graph_input_to_an_output_stays() {
    let mut model = model(1, vec![node("Identity", &["x"], &["y"])], vec![]);
    assert_eq!(operators(prepared(&mut model).1), ["Identity"]);
}

#[test]
fn a_dropout_that_trains_stays() {
    for (training, left) in [(1u8, 1), (0, 0)] {
        let training = TensorProto::raw("t".into(), 9, &[], vec![training]);
        let ratio = TensorProto::floats("r".into(), &[], &[0.5]);
        let nodes = vec![node("Dropout", &["x", "r", "t"], &["d"]), node("Relu", &["d"], &["y"])];
        let mut model = model(1, nodes, vec![training, ratio]);
        let (_, graph) = prepared(&mut model);
        assert_eq!((graph.node.len(), graph.initializer.len()), (1 + left, 2 * left));
    }
}

#[test]
fn constants_are_computed() {
    let ints = |name: &str, values: &[i64]| TensorProto::ints(name.into(), &[values.len() as i64], values);
    let floats = |name: &str, dims: &[i64], values: &[f32]| TensorProto::floats(name.into(), dims, values);
    let int = |name: &str, value: i64| vec![AttributeProto::int(name, value)];
    let cases: Vec<(NodeProto, &[i64], Vec<f32>)> = vec![
        (node("Add", &["m", "v"], &["c"]), &[2, 3], vec![2.0, 4.0, 6.0, 5.0, 7.0, 9.0]),
        (node("Div", &["v", "two"], &["c"]), &[3], vec![0.5, 1.0, 1.5]),
        (node("Pow", &["v", "two"], &["c"]), &[3], vec![1.0, 4.0, 9.0]),
        (node("Sqrt", &["v"], &["c"]), &[3], vec![1.0, 2f32.sqrt(), 3f32.sqrt()]),
        (node("Reciprocal", &["v"], &["c"]), &[3], vec![1.0, 0.5, 1.0 / 3.0]),
        (node("Transpose", &["m"], &["c"]), &[3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]),
        (node("Reshape", &["m", "flat"], &["c"]), &[6], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (node("Unsqueeze", &["v", "first"], &["c"]), &[1, 3], vec![1.0, 2.0, 3.0]),
        (with("Flatten", &["m"], &["c"], int("axis", 0)), &[1, 6], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (with("Concat", &["m", "m"], &["c"], int("axis", 1)), &[2, 6], vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0]),
        (with("Gather", &["m", "flat"], &["c"], int("axis", -1)), &[2, 1], vec![3.0, 6.0]),
        (node("Slice", &["m", "first", "two_i", "flat"], &["c"]), &[2, 2], vec![1.0, 2.0, 4.0, 5.0]),
        (node("Expand", &["two", "two_i"], &["c"]), &[2], vec![2.0, 2.0]),
        (with("Cast", &["two_i"], &["c"], int("to", 1)), &[1], vec![2.0]),
        (with("Cast", &["half"], &["c"], int("to", 1)), &[1], vec![1.5]),
        (node("Max", &["v", "two"], &["c"]), &[3], vec![2.0, 2.0, 3.0]),
    ];
    for (computed, dims, expected) in cases {
        let constants = vec![
            floats("m", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            floats("v", &[3], &[1.0, 2.0, 3.0]),
            floats("two", &[], &[2.0]),
            ints("flat", &[-1]),
            ints("first", &[0]),
            ints("two_i", &[2]),
            TensorProto::raw("half".into(), 10, &[1], vec![0x00, 0x3e]),
        ];
        let what = format!("{computed:?}");
        let mut model = model(1, vec![computed, node("Add", &["x", "c"], &["y"])], constants);
        let (prepared, graph) = prepared(&mut model);
        assert_eq!((prepared.computed, operators(graph)), (1, vec!["Add"]), "{what}");
        let c = constant(graph, "c");
        assert_eq!((&c.dims[..], c.to_floats()), (dims, Some(expected)), "{what}");
    }
}

#[test]
fn what_is_large_or_unsure_is_not_computed() {
    let ints = |name: &str, values: &[i64]| TensorProto::ints(name.into(), &[values.len() as i64], values);
    let cases = [
        (node("Transpose", &["large"], &["c"]), "large"),
        (node("Neg", &["large"], &["c"]), "large"),
        (node("Expand", &["one", "shape"], &["c"]), "of a large result"),
        (node("Div", &["one_i", "zero_i"], &["c"]), "a division by zero"),
        (node("Add", &["one_i", "most"], &["c"]), "an overflow"),
        (node("Add", &["one", "one_i"], &["c"]), "of two types"),
        (with("Cast", &["nan"], &["c"], vec![AttributeProto::int("to", 7)]), "no integer"),
        (node("Reshape", &["one", "shape"], &["c"]), "of another size"),
        (NodeProto { domain: "mine".into(), ..node("Neg", &["one"], &["c"]) }, "somebody else's"),
        (node("Neg", &["default"], &["c"]), "replaceable by the caller"),
    ];
    for (computed, why) in cases {
        let op_type = computed.op_type.clone();
        let constants = vec![
            TensorProto::floats("large".into(), &[257, 256], &vec![1.0; 257 * 256]),
            TensorProto::floats("one".into(), &[1], &[1.0]),
            TensorProto::floats("nan".into(), &[1], &[f32::NAN]),
            TensorProto::floats("default".into(), &[1], &[1.0]),
            ints("one_i", &[1]),
            ints("zero_i", &[0]),
            ints("most", &[i64::MAX]),
            ints("shape", &[257, 256]),
        ];
        let mut model = model(1, vec![computed, node("Add", &["x", "c"], &["y"])], constants);
        model.graph.as_mut().unwrap().input.push(value("default", 1));
        let (prepared, graph) = prepared(&mut model);
        assert_eq!((prepared.computed, operators(graph)), (0, vec![op_type.as_str(), "Add"]), "{why}");
    }
}

#[test]
fn a_view_of_a_large_constant_shares_its_bytes() {
    let large = TensorProto::floats("large".into(), &[257, 256], &vec![1.0; 257 * 256]);
    let bytes = large.contents().unwrap();
    let shape = TensorProto::ints("shape".into(), &[2], &[256, 257]);
    let mut model = model(1, vec![node("Reshape", &["large", "shape"], &["c"]), node("MatMul", &["x", "c"], &["y"])], vec![large, shape]);
    let (_, graph) = prepared(&mut model);
    assert_eq!(constant(graph, "c").dims, [256, 257]);
    assert_eq!(constant(graph, "c").contents().unwrap().as_ptr(), bytes.as_ptr());
    assert_eq!(graph.initializer.len(), 1, "nothing uses the original any more");
}

#[test]
fn what_was_unused_from_the_start_stays() {
    let spare = TensorProto::floats("spare".into(), &[1], &[1.0]);
    let mut model = model(1, vec![node("Neg", &["x"], &["nobody"]), node("Relu", &["x"], &["y"])], vec![spare]);
    let (_, graph) = prepared(&mut model);
    assert_eq!((operators(graph), graph.initializer.len()), (vec!["Neg", "Relu"], 1));
}

/// A model with an operator for most of what preparing and raising look at.
fn varied() -> ModelProto {
    let ints = |name: &str, values: &[i64]| TensorProto::ints(name.into(), &[values.len() as i64], values);
    let int = |name: &str, value: i64| vec![AttributeProto::int(name, value)];
    let inner =
        body(vec![node("Identity", &["c"], &["t"]), with("Squeeze", &["t"], &["b"], vec![AttributeProto::ints("axes", &[0])])], "b");
    let nodes = vec![
        with("Constant", &[], &["k"], vec![AttributeProto::tensor("value", TensorProto::floats(String::new(), &[2, 1, 1], &[1.0, 2.0]))]),
        node("Transpose", &["m"], &["mt"]),
        node("Reshape", &["mt", "shape"], &["w"]),
        with("Conv", &["x", "w"], &["a"], vec![AttributeProto::ints("pads", &[0, 0, 0, 0]), AttributeProto::int("group", 1)]),
        with("BatchNormalization", &["a", "s", "s", "s", "s"], &["n"], vec![AttributeProto::float("epsilon", 1e-3)]),
        node("Mul", &["k", "n"], &["c"]),
        if_node(inner, "i"),
        with("Concat", &["shape", "shape"], &["l"], int("axis", 0)),
        with("Gather", &["l", "shape"], &["g"], int("axis", 0)),
        with("Slice", &["l"], &["f"], vec![AttributeProto::ints("starts", &[0]), AttributeProto::ints("ends", &[4])]),
        node("Expand", &["k", "g"], &["e"]),
        with("Cast", &["f"], &["r"], int("to", 1)),
        with("Clip", &["c"], &["o"], vec![AttributeProto::float("max", 6.0)]),
        with("Pad", &["o"], &["p"], vec![AttributeProto::ints("pads", &[0; 8]), AttributeProto::float("value", 1.0)]),
        with("Upsample", &["p", "scales"], &["u"], vec![AttributeProto::string("mode", "nearest")]),
        with("Softmax", &["u"], &["h"], int("axis", 2)),
        with("Gemm", &["h", "q", "s"], &["j"], int("transB", 1)),
        with("Dropout", &["j"], &["y", "mask"], vec![AttributeProto::float("ratio", 0.5)]),
    ];
    let constants = vec![
        TensorProto::floats("m".into(), &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        TensorProto::floats("q".into(), &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        TensorProto::floats("s".into(), &[2], &[1.0, 2.0]),
        TensorProto::floats("scales".into(), &[4], &[1.0, 1.0, 2.0, 2.0]),
        ints("shape", &[2, 2, 1, 1]),
    ];
    let mut model = model(4, nodes, constants);
    model.opset_import[0].version = Some(9);
    model
}

#[test]
fn damaged_models_do_not_panic() {
    let bytes = varied().to_bytes().unwrap();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut read = 0;
    for _ in 0..6_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random(4) {
            let at = random(damaged.len());
            damaged[at] = [0, 1, 2, 0x7f, 0xff, random(256) as u8][random(6)];
        }
        let Ok(mut model) = ModelProto::parse(damaged.into()) else { continue };
        read += 1;
        let mut other = model.clone();
        prepare(&mut model, PrepareOptions::default());
        let _ = (raise_opset(&mut model, 13), raise_opset(&mut other, 21));
    }
    assert!(read > 1_000, "only {read} of 6,000 were models");
}

#[test]
fn varied_models_are_prepared_and_raised() {
    let mut model = varied();
    prepare(&mut model, PrepareOptions::default());
    raise_opset(&mut model, 21).unwrap();
    let expected = ["Conv", "If", "Clip", "Pad", "Resize", "Shape", "Flatten", "Softmax", "Reshape", "Gemm"];
    assert_eq!(operators(model.graph.as_deref().unwrap())[..2], expected[..2]);
}
