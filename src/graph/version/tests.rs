//! Single operators, before and after. That values stay the same was checked against ONNX Runtime with generated models.

use super::{raise_ir, raise_opset, table};
use crate::formats::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::formats::onnx::tensor::{DOUBLE, FLOAT, FLOAT16};

/// Reads the model that the environment names, raises it and writes it: for checks with other programs.
#[test]
#[ignore = "a tool: reads QTOOL_PREP_IN, raises to QTOOL_PREP_TO and writes QTOOL_PREP_OUT"]
fn raise_a_file() {
    let [input, output, to] = ["QTOOL_PREP_IN", "QTOOL_PREP_OUT", "QTOOL_PREP_TO"].map(|name| std::env::var(name).unwrap());
    let mut model = ModelProto::parse(std::fs::read(input).unwrap().into()).unwrap();
    match raise_opset(&mut model, to.parse().unwrap()) {
        Ok(()) => std::fs::write(output, model.to_bytes().unwrap()).unwrap(),
        Err(error) => println!("refused: {error}"),
    }
}

fn with(op_type: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    NodeProto { attribute, ..NodeProto::new(op_type, output[0].to_owned(), owned(input), owned(output)) }
}

fn node(op_type: &str, input: &[&str], output: &[&str]) -> NodeProto {
    with(op_type, input, output, Vec::new())
}

fn value(name: &str, element: i64, rank: Option<usize>) -> ValueInfoProto {
    let shape = rank.map(|rank| Box::new(TensorShapeProto { dim: vec![Default::default(); rank], ..TensorShapeProto::default() }));
    let tensor = TensorTypeProto { elem_type: Some(element), shape, ..TensorTypeProto::default() };
    let kind = TypeProto { tensor_type: Some(Box::new(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(Box::new(kind)), ..ValueInfoProto::default() }
}

fn model(opset: i64, x: ValueInfoProto, node: Vec<NodeProto>) -> ModelProto {
    let output = vec![ValueInfoProto { name: "y".into(), ..ValueInfoProto::default() }];
    let graph = GraphProto { node, input: vec![x], output, ..GraphProto::default() };
    let opset_import = vec![OperatorSetIdProto { version: Some(opset), ..OperatorSetIdProto::default() }];
    ModelProto { ir_version: Some(4), graph: Some(Box::new(graph)), opset_import, ..ModelProto::default() }
}

/// A model of one node that takes `x`, floats of four dimensions, and gives `y`.
fn single(opset: i64, node: NodeProto) -> ModelProto {
    model(opset, value("x", FLOAT, Some(4)), vec![node])
}

fn raised(mut model: ModelProto, to: i64) -> Box<GraphProto> {
    raise_opset(&mut model, to).unwrap();
    assert_eq!(model.opset(), to);
    model.graph.unwrap()
}

/// The constants that a node takes after its first input, as numbers; empty where it takes none.
fn inputs(graph: &GraphProto, node: usize) -> Vec<Vec<f32>> {
    let constant = |name: &String| {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == *name)?;
        tensor.to_floats().or_else(|| Some(tensor.to_ints()?.into_iter().map(|value| value as f32).collect()))
    };
    graph.node[node].input.iter().skip(1).map(|name| constant(name).unwrap_or_default()).collect()
}

#[test]
fn attributes_become_inputs() {
    let ints = AttributeProto::ints;
    let scales = AttributeProto { floats: vec![1.0, 2.0], name: "scales".into(), ..AttributeProto::default() };
    type Case = (i64, i64, &'static str, Vec<AttributeProto>, Vec<Vec<f32>>);
    let cases: Vec<Case> = vec![
        (7, 11, "Clip", vec![AttributeProto::float("min", -1.0), AttributeProto::float("max", 6.0)], vec![vec![-1.0], vec![6.0]]),
        (7, 11, "Clip", vec![AttributeProto::float("max", 6.0)], vec![vec![], vec![6.0]]),
        (7, 11, "Clip", vec![], vec![]),
        (7, 11, "Pad", vec![ints("pads", &[1, 2]), AttributeProto::float("value", 3.0)], vec![vec![1.0, 2.0], vec![3.0]]),
        (7, 11, "Pad", vec![ints("pads", &[1, 2])], vec![vec![1.0, 2.0]]),
        (9, 10, "Slice", vec![ints("starts", &[1]), ints("ends", &[2])], vec![vec![1.0], vec![2.0]]),
        (7, 21, "Slice", vec![ints("starts", &[1]), ints("ends", &[2]), ints("axes", &[3])], vec![vec![1.0], vec![2.0], vec![3.0]]),
        (7, 11, "TopK", vec![AttributeProto::int("k", 3)], vec![vec![3.0]]),
        (12, 13, "Squeeze", vec![ints("axes", &[1])], vec![vec![1.0]]),
        (12, 13, "Squeeze", vec![], vec![]),
        (12, 13, "Unsqueeze", vec![ints("axes", &[-1])], vec![vec![-1.0]]),
        (12, 13, "ReduceSum", vec![ints("axes", &[-1])], vec![vec![-1.0]]),
        (11, 17, "ReduceMean", vec![ints("axes", &[2])], vec![]),
        (11, 18, "ReduceMean", vec![ints("axes", &[2])], vec![vec![2.0]]),
        (11, 18, "ReduceMax", vec![ints("axes", &[])], vec![]),
        (11, 13, "Split", vec![ints("split", &[1, 2])], vec![vec![1.0, 2.0]]),
        (17, 20, "DFT", vec![], vec![vec![], vec![1.0]]),
        (7, 9, "Upsample", vec![scales], vec![vec![1.0, 2.0]]),
    ];
    for (from, to, op_type, attributes, expected) in cases {
        let graph = raised(single(from, with(op_type, &["x"], &["y"], attributes.clone())), to);
        assert_eq!(inputs(&graph, 0), expected, "{op_type} {attributes:?}");
        let left = graph.node[0].attribute.iter().filter(|attribute| attribute.name == "axes").count();
        assert_eq!(left, usize::from(op_type == "ReduceMean" && to < 18), "{op_type}");
    }
}

#[test]
fn limits_have_the_type_of_the_input() {
    for (element, bytes) in [(FLOAT, &6f32.to_le_bytes()[..]), (DOUBLE, &6f64.to_le_bytes()), (FLOAT16, &[0, 0x46])] {
        let clip = with("Clip", &["a"], &["y"], vec![AttributeProto::float("max", 6.0)]);
        let graph = raised(model(10, value("x", element, None), vec![node("Relu", &["x"], &["a"]), clip]), 11);
        assert_eq!((graph.initializer[0].data_type, &graph.initializer[0].contents().unwrap()[..]), (Some(element), bytes));
    }
    let clip = with("Clip", &["a"], &["y"], vec![AttributeProto::float("max", 6.0)]);
    let mut unknown = model(10, value("x", FLOAT16, None), vec![NodeProto { domain: "mine".into(), ..node("Op", &["x"], &["a"]) }, clip]);
    let error = raise_opset(&mut unknown, 13).unwrap_err();
    assert!(error.contains("\"y\" (\"Clip\"): opset 11") && error.contains("type"), "{error}");
    assert_eq!(unknown.opset(), 10, "the model stays as it is");
}

#[test]
fn softmax_is_along_one_axis() {
    let cases: [(Option<i64>, Option<usize>, &[&str]); 6] = [
        (Some(-1), None, &["Softmax"]),
        (Some(3), Some(4), &["Softmax"]),
        (None, Some(2), &["Softmax"]),
        (None, Some(4), &["Shape", "Flatten", "Softmax", "Reshape"]),
        (Some(3), None, &["Shape", "Flatten", "Softmax", "Reshape"]),
        (Some(-2), Some(4), &["Shape", "Flatten", "Softmax", "Reshape"]),
    ];
    for (axis, rank, left) in cases {
        let attributes = axis.map(|axis| AttributeProto::int("axis", axis)).into_iter().collect();
        let graph = raised(model(11, value("x", FLOAT, rank), vec![with("Softmax", &["x"], &["y"], attributes)]), 13);
        let names: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(names, left, "{axis:?} of {rank:?}");
        let softmax = graph.node.iter().find(|node| node.op_type == "Softmax").unwrap();
        assert_eq!((softmax.int("axis", 1), softmax.name.as_str()), (-1, "y"));
        assert_eq!(graph.node.last().unwrap().output, ["y"], "the output keeps its name");
    }
}

#[test]
fn ranks_follow_through_shapes() {
    // x[N, C, H, W] to [N, -1] to Softmax along the last axis, as PaddlePaddle exports it.
    let line = |name: &str, values: &[i64]| {
        with("Constant", &[], &[name], vec![AttributeProto::tensor("value", TensorProto::ints(String::new(), &[1], values))])
    };
    let nodes = vec![
        line("zero", &[0]),
        line("one", &[1]),
        line("rest", &[-1]),
        node("Shape", &["x"], &["s"]),
        node("Slice", &["s", "zero", "one"], &["n"]),
        with("Concat", &["n", "rest"], &["shape"], vec![AttributeProto::int("axis", 0)]),
        node("Reshape", &["x", "shape"], &["flat"]),
        with("Softmax", &["flat"], &["y"], vec![AttributeProto::int("axis", 1)]),
    ];
    let graph = raised(model(11, value("x", FLOAT, Some(4)), nodes.clone()), 13);
    assert_eq!(graph.node.len(), nodes.len());
    // A declaration that contradicts this is a reason to believe neither.
    let mut wrong = model(11, value("x", FLOAT, Some(4)), nodes.clone());
    wrong.graph.as_mut().unwrap().value_info.push(value("flat", FLOAT, Some(3)));
    assert_eq!(raised(wrong, 13).node.len(), nodes.len() + 3);
}

#[test]
fn resize_says_what_it_did() {
    let text =
        |graph: &GraphProto, name: &str| graph.node[0].attribute(name).map(|a| String::from_utf8_lossy(a.s.as_ref().unwrap()).into_owned());
    for (scales, nearest) in [([1.0, 2.0], "floor"), ([1.0, 0.5], "ceil")] {
        let mut model = single(10, node("Resize", &["x", "scales"], &["y"]));
        model.graph.as_mut().unwrap().initializer.push(TensorProto::floats("scales".into(), &[2], &scales));
        let graph = raised(model, 13);
        assert_eq!(graph.node[0].input, ["x", "", "scales"]);
        assert_eq!(text(&graph, "nearest_mode").as_deref(), Some(nearest));
        assert_eq!(text(&graph, "coordinate_transformation_mode").as_deref(), Some("asymmetric"));
    }
    let attributes = ["coordinate_transformation_mode", "nearest_mode"].into_iter().zip(["tf_half_pixel_for_nn", "floor"]);
    let attributes = attributes.map(|(name, value)| AttributeProto::string(name, value)).collect();
    let mut model = single(11, with("Resize", &["x", "empty", "empty", "sizes"], &["y"], attributes));
    model.graph.as_mut().unwrap().initializer.push(TensorProto::floats("empty".into(), &[0], &[]));
    let graph = raised(model, 13);
    assert_eq!(graph.node[0].input, ["x", "empty", "", "sizes"]);
    assert_eq!(text(&graph, "nearest_mode").as_deref(), Some("round_prefer_ceil"));
}

#[test]
fn other_operators_change_as_they_should() {
    let attribute = |graph: &GraphProto, name: &str| graph.node[0].attribute(name).map(|a| (a.i, a.s.as_ref().map(|s| s.to_vec())));
    let graph = raised(single(10, node("Scatter", &["x", "i", "u"], &["y"])), 11);
    assert_eq!(graph.node[0].op_type, "ScatterElements");
    let graph = raised(single(10, node("RoiAlign", &["x", "r", "b"], &["y"])), 16);
    assert_eq!(attribute(&graph, "coordinate_transformation_mode"), Some((None, Some(b"output_half_pixel".to_vec()))));
    let graph = raised(single(16, with("GridSample", &["x", "g"], &["y"], vec![AttributeProto::string("mode", "bicubic")])), 20);
    assert_eq!(attribute(&graph, "mode"), Some((None, Some(b"cubic".to_vec()))));
    let graph = raised(single(13, node("Split", &["x"], &["y", "z"])), 18);
    assert_eq!(attribute(&graph, "num_outputs"), Some((Some(2), None)));
    let graph = raised(single(11, with("Dropout", &["x"], &["y", "mask"], vec![AttributeProto::float("ratio", 0.5)])), 13);
    assert_eq!((graph.node[0].output.len(), graph.node[0].attribute.len()), (1, 0));
    let graph = raised(single(20, with("GroupNormalization", &["x", "s", "b"], &["y"], vec![AttributeProto::int("num_groups", 3)])), 21);
    let names: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(names, ["Shape", "Div", "Concat", "Unsqueeze", "Expand", "Reshape", "Unsqueeze", "Expand", "Reshape", "GroupNormalization"]);
}

#[test]
fn what_cannot_be_said_is_refused() {
    let used = |op_type: &str| vec![node(op_type, &["x"], &["a", "b"]), node("Relu", &["b"], &["y"])];
    let resize = node("Resize", &["x", "scales"], &["y"]);
    let mode = AttributeProto::string("coordinate_transformation_mode", "tf_half_pixel_for_nn");
    let reference = AttributeProto { ref_attr_name: "axes".into(), ..AttributeProto::ints("axes", &[]) };
    let cases = [
        (8, 9, vec![with("BatchNormalization", &["x"], &["y"], vec![AttributeProto::int("spatial", 0)])], "spatial"),
        (9, 14, used("BatchNormalization"), "outputs"),
        (9, 13, used("Dropout"), "mask"),
        (8, 9, vec![node("Scan", &["", "x"], &["y"])], "Scan"),
        (10, 11, vec![resize], "scales"),
        (11, 13, vec![with("Resize", &["x"], &["y"], vec![mode])], "tf_half_pixel_for_nn"),
        (12, 13, vec![with("Squeeze", &["x"], &["y"], vec![reference])], "reference"),
        (9, 13, vec![node("Cast", &["x"], &["a"]), node("Erf", &["i"], &["y"])], "floats"),
        (6, 13, vec![node("Relu", &["x"], &["y"])], "at least 7"),
    ];
    for (from, to, nodes, expected) in cases {
        let mut model = model(from, value("x", FLOAT, Some(4)), nodes);
        model.graph.as_mut().unwrap().input.push(value("i", 6, None));
        let error = raise_opset(&mut model, to).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(model.opset(), from);
    }
    assert!(raise_opset(&mut single(13, node("Relu", &["x"], &["y"])), 22).is_err());
}

#[test]
fn bodies_and_functions_are_raised_too() {
    let squeeze = |input: &str, output: &str| with("Squeeze", &[input], &[output], vec![AttributeProto::ints("axes", &[0])]);
    let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
    let body = GraphProto { node: vec![squeeze("x", "b")], output: vec![value("b")], ..GraphProto::default() };
    let body = AttributeProto { name: "then_branch".into(), g: Some(Box::new(body)), ..AttributeProto::default() };
    let mut model = single(11, with("If", &["c"], &["y"], vec![body]));
    let version = |version| vec![OperatorSetIdProto { version: Some(version), ..OperatorSetIdProto::default() }];
    let function = |opset| FunctionProto {
        name: "f".into(),
        domain: "mine".into(),
        input: vec!["p".into()],
        output: vec!["q".into()],
        node: vec![squeeze("p", "q")],
        opset_import: version(opset),
        ..FunctionProto::default()
    };
    model.functions = vec![function(11), function(13)];
    raise_opset(&mut model, 13).unwrap();
    let graph = model.graph.as_deref().unwrap();
    let body = graph.node[0].bodies().next().unwrap();
    assert_eq!((body.node[0].input.len(), body.initializer.len()), (2, 1));
    let names = |function: &FunctionProto| function.node.iter().map(|node| node.op_type.clone()).collect::<Vec<_>>();
    assert_eq!(names(&model.functions[0]), ["Constant", "Squeeze"], "functions have no initializers");
    assert_eq!(model.functions[0].node[1].input[1], model.functions[0].node[0].output[0]);
    assert_eq!(names(&model.functions[1]), ["Squeeze"], "it was of that version already");
    assert_eq!(model.functions[0].opset_import[0].version, Some(13));
}

#[test]
fn what_is_not_standard_is_left_alone() {
    let foreign = NodeProto { domain: "mine".into(), ..with("Squeeze", &["x"], &["y"], vec![AttributeProto::ints("axes", &[0])]) };
    let graph = raised(single(11, foreign), 13);
    assert_eq!((graph.node[0].input.len(), graph.node[0].attribute.len()), (1, 1));
}

#[test]
fn newer_models_stay() {
    let mut model = single(17, node("Relu", &["x"], &["y"]));
    raise_opset(&mut model, 13).unwrap();
    assert_eq!((model.opset(), model.ir_version), (17, Some(4)));
    raise_ir(&mut model, 3);
    assert_eq!(model.ir_version, Some(4));
}

#[test]
fn the_ir_follows_the_operators() {
    for (to, ir) in [(11, 6), (13, 7), (15, 8), (19, 9), (21, 10)] {
        let mut model = single(9, node("Relu", &["x"], &["y"]));
        raise_opset(&mut model, to).unwrap();
        assert_eq!(model.ir_version, Some(ir));
    }
}

#[test]
fn steps_are_listed_once() {
    let mut seen = std::collections::HashSet::new();
    for (op_type, version, _) in table::STEPS {
        assert!(seen.insert((op_type, version)), "{op_type} {version}");
        assert!((super::OLDEST + 1..=super::NEWEST).contains(version), "{op_type} {version}");
    }
}
