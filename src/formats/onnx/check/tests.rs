use super::super::proto::{DimensionProto, Payload, TensorShapeProto, TensorTypeProto, TypeProto};
use super::super::tensor::{INT8, STRING};
use super::super::wire::Out;
use super::*;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn node(op_type: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto::new(op_type, String::new(), names(input), names(output))
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), ..Default::default() }
}

fn import(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.into(), version: Some(version), ..Default::default() }
}

fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.into(),
        domain: "d".into(),
        input: names(&["x"]),
        output: names(&["y"]),
        node: nodes,
        opset_import: vec![import("", 21)],
        ..Default::default()
    }
}

fn call(name: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto { domain: "d".into(), ..node(name, input, output) }
}

/// A node with this graph for a body.
fn with_body(nodes: Vec<NodeProto>, output: &str) -> NodeProto {
    let graph = GraphProto { node: nodes, output: vec![value(output)], ..Default::default() };
    let attribute = AttributeProto { name: "then_branch".into(), g: Some(Box::new(graph)), kind: Some(5), ..Default::default() };
    NodeProto { attribute: vec![attribute], ..node("If", &["x"], &["if"]) }
}

fn with_attribute(attribute: AttributeProto) -> NodeProto {
    NodeProto { attribute: vec![attribute], ..node("Constant", &[], &["c"]) }
}

/// `sum = x + w`, `y = Relu(sum)`.
fn model() -> ModelProto {
    let graph = GraphProto {
        node: vec![node("Add", &["x", "w"], &["sum"]), node("Relu", &["sum"], &["y"])],
        initializer: vec![TensorProto::floats("w".into(), &[2], &[1.0, 2.0])],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    ModelProto { ir_version: Some(10), opset_import: vec![import("", 21)], graph: Some(Box::new(graph)), ..Default::default() }
}

fn field(number: u32, message: &impl Message) -> bytes::Bytes {
    let mut out = Out::default();
    out.field_message(number, |out| message.encode(out));
    out.into_vec().unwrap().into()
}

fn sparse(indices: &[i64]) -> SparseTensorProto {
    let values = TensorProto::floats("s".into(), &[2], &[1.0, 2.0]);
    let indices = TensorProto::ints(String::new(), &[2], indices);
    SparseTensorProto { values: Some(Box::new(values)), indices: Some(Box::new(indices)), dims: vec![2, 3], ..Default::default() }
}

fn external() -> TensorProto {
    TensorProto { data_location: Some(1), ..TensorProto::floats("e".into(), &[1], &[1.0]) }
}

#[test]
#[rustfmt::skip]
fn each_rule_has_its_message() {
    type Change = fn(&mut ModelProto, &mut GraphProto);
    type Case = (&'static str, Change, Result<(), (u8, &'static str)>);
    let cases: &[Case] = &[
        ("as it is", |_, _| {}, Ok(())),
        ("old format", |m, _| m.ir_version = Some(2), Err((1, "ir_version: expected 3 to 14, found 2"))),
        ("no import", |m, _| m.opset_import.clear(), Err((1, "opset_import: expected one"))),
        ("old operators", |m, _| m.opset_import = vec![import("", 6)], Err((1, "ai.onnx: expected version 7 to 28, found 6"))),
        ("both names", |m, _| m.opset_import.push(import("ai.onnx", 21)), Ok(())),
        ("two versions", |m, _| m.opset_import.push(import("ai.onnx", 20)), Err((1, "found 21 and 20"))),
        ("only others", |m, _| m.opset_import = vec![import("d", 1)], Err((1, "expected a version of ai.onnx"))),
        ("unsorted", |_, g| g.node.swap(0, 1), Err((1, r#"node 0 (Relu): input "sum": expected nodes in topological order"#))),
        ("cycle", |_, g| g.node[0].input[0] = "y".into(), Err((1, "expected no cycle, found that node"))),
        ("itself", |_, g| g.node[0].input[0] = "sum".into(), Err((1, "expected no cycle, found that node 0 (Add)"))),
        ("undefined", |_, g| g.node[0].input[0] = "z".into(), Err((1, r#"input "z": expected a value that something defines"#))),
        ("left out", |_, g| g.node.push(node("Clip", &["x", "", "w"], &["c"])), Ok(())),
        ("left out of two", |_, g| g.node[0].input[0] = String::new(), Err((1, r#"op_type "Add": expected 2 inputs, found no input 0"#))),
        ("no outputs", |_, g| g.node.push(node("Relu", &["x"], &[""])), Err((1, r#"op_type "Relu": expected an output, found none"#))),
        ("twice", |_, g| g.node.push(node("Relu", &["x"], &["y"])), Err((1, r#"output "y": expected one definition"#))),
        ("constant", |_, g| g.node.push(node("Relu", &["x"], &["w"])), Err((1, r#"output "w": expected one definition"#))),
        ("lowest type of attribute", |_, g| g.node.push(with_attribute(AttributeProto { name: "a".into(), kind: Some(i64::MIN), ..Default::default() })), Err((1, "type: expected a type of ONNX, found -"))),
        ("no output", |_, g| g.output.push(value("z")), Err((1, r#"output "z": expected something that defines it"#))),
        ("input as output", |_, g| g.output.push(value("x")), Ok(())),
        ("two inputs", |_, g| g.input.push(value("x")), Err((1, r#"input "x": expected one of this name"#))),
        ("default value", |_, g| g.input.push(value("w")), Ok(())),
        ("two constants", |_, g| g.initializer.push(g.initializer[0].clone()), Err((1, r#"tensor "w": name: expected one"#))),
        ("unknown", |_, g| g.node[1].op_type = "ReLU".into(), Err((1, r#"node 1 (ReLU): op_type "ReLU": expected an operator"#))),
        ("too new", |_, g| g.node[1].op_type = "Attention".into(), Err((1, "expected operator set 23 or newer, found 21"))),
        ("removed", |_, g| g.node[1].op_type = "Upsample".into(), Err((1, "expected Resize since operator set 10"))),
        ("others'", |_, g| g.node[1].domain = "com.microsoft".into(), Ok(())),
        ("body", |_, g| g.node.push(with_body(vec![node("Relu", &["sum"], &["b"])], "b")), Ok(())),
        ("bodies share names", |_, g| g.node.extend([0, 1].map(|i| NodeProto { output: names(&[["i", "j"][i]]), ..with_body(vec![node("Relu", &["x"], &["b"])], "b") })), Ok(())),
        ("body names", |_, g| g.node.push(with_body(vec![node("Relu", &["x"], &["sum"])], "sum")), Err((1, r#"body: node 0 (Relu): output "sum""#))),
        ("body too early", |_, g| g.node.insert(0, with_body(vec![node("Relu", &["sum"], &["b"])], "b")), Err((1, "topological order"))),
        ("body in a cycle", |_, g| {
            g.node.insert(0, with_body(vec![node("Relu", &["sum"], &["b"])], "b"));
            g.node[1].input[0] = "if".into();
        }, Err((1, "expected no cycle, found that node"))),
        ("name from a body", |_, g| {
            g.node.push(with_body(vec![node("Relu", &["x"], &["b"])], "b"));
            g.output.push(value("b"));
        }, Err((1, r#"output "b""#))),
        ("call", |m, g| {
            m.functions = vec![function("F", vec![node("Relu", &["x"], &["y"])])];
            g.node.push(call("F", &["x"], &["f"]));
        }, Ok(())),
        ("function of a standard name", |m, g| {
            m.functions = vec![FunctionProto { domain: String::new(), ..function("ReLU", vec![node("Relu", &["x"], &["y"])]) }];
            g.node[1].op_type = "ReLU".into();
        }, Ok(())),
        ("function sees only its inputs", |m, _| m.functions = vec![function("F", vec![node("Relu", &["w"], &["y"])])], Err((1, r#"function "F": node 0 (Relu): input "w""#))),
        ("function without result", |m, _| m.functions = vec![function("F", vec![])], Err((1, r#"function "F": output "y""#))),
        ("function's versions", |m, _| {
            m.functions = vec![FunctionProto { opset_import: vec![import("", 29)], ..function("F", vec![node("Relu", &["x"], &["y"])]) }];
        }, Err((1, r#"function "F": opset_import"#))),
        ("two functions", |m, _| m.functions = ["F", "F"].map(|f| function(f, vec![node("Relu", &["x"], &["y"])])).into(), Err((1, "expected one definition"))),
        ("overloads", |m, _| {
            // They call each other, but not themselves.
            let overload = |number, name: &str| {
                let mut out = Out::default();
                out.field_bytes(number, name.as_bytes());
                vec![out.into_vec().unwrap().into()]
            };
            let inner = FunctionProto { unknown: overload(13, "a"), ..function("F", vec![node("Relu", &["x"], &["y"])]) };
            let caller = NodeProto { unknown: overload(8, "a"), ..call("F", &["x"], &["y"]) };
            m.functions = vec![inner, function("F", vec![caller])];
        }, Ok(())),
        ("recursion", |m, _| {
            m.functions = vec![
                function("F", vec![with_body(vec![call("G", &["x"], &["b"])], "b"), node("Relu", &["if"], &["y"])]),
                function("G", vec![call("F", &["x"], &["y"])]),
            ];
        }, Err((1, "expected no recursion"))),
        ("two attributes", |_, g| g.node[1].attribute = vec![AttributeProto::int("a", 1), AttributeProto::int("a", 1)], Err((1, r#"attribute "a": expected one"#))),
        ("attribute's name", |_, g| g.node.push(with_attribute(AttributeProto::int("", 1))), Err((1, "name: expected one"))),
        ("attribute's type", |_, g| g.node.push(with_attribute(AttributeProto { kind: None, ..AttributeProto::int("a", 1) })), Err((1, "type: expected a type of ONNX, found 0"))),
        ("another type", |_, g| g.node.push(with_attribute(AttributeProto { kind: Some(1), ..AttributeProto::int("a", 1) })), Err((1, "expected a value of type FLOAT, found one of INT"))),
        ("no tensor", |_, g| g.node.push(with_attribute(AttributeProto { kind: Some(4), name: "a".into(), ..Default::default() })), Err((1, "expected a value of type TENSOR, found none"))),
        ("zero left out", |_, g| g.node.push(with_attribute(AttributeProto { i: None, ..AttributeProto::int("a", 0) })), Ok(())),
        ("constant's values", |_, g| g.node.push(with_attribute(AttributeProto::tensor("value", TensorProto::raw(String::new(), INT8, &[2], vec![0])))), Err((1, r#"tensor "c": values: expected 2 bytes"#))),
        ("texts", |_, g| {
            let string_data = vec![b"a"[..].into(), b"\xff"[..].into()];
            g.initializer.push(TensorProto { name: "t".into(), data_type: Some(STRING), dims: vec![2], string_data, ..Default::default() });
        }, Ok(())),
        ("too few texts", |_, g| g.initializer.push(TensorProto { name: "t".into(), data_type: Some(STRING), dims: vec![1], ..Default::default() }), Err((1, "expected 1 of string"))),
        ("too large a number", |_, g| {
            // 300 as a varint in int32_data.
            let tensor = TensorProto::parse(vec![0x08, 1, 0x10, 3, 0x28, 0xac, 2, 0x42, 1, b't'].into()).unwrap();
            g.initializer.push(tensor);
        }, Err((1, "int32_data: expected numbers of 8 bits, found 300"))),
        ("negative number", |_, g| {
            let bytes = [&[0x08, 1, 0x10, 3, 0x28][..], &[0xff; 9], &[1, 0x42, 1, b't']].concat();
            g.initializer.push(TensorProto::parse(bytes.into()).unwrap());
        }, Ok(())),
        ("values to come", |_, g| g.initializer[0].raw_data = Some(Payload::Deferred { id: 0, len: 8 }), Err((1, "values"))),
        ("sparse", |_, g| {
            g.unknown.push(field(15, &sparse(&[1, 5])));
            g.node[0].input[1] = "s".into();
        }, Ok(())),
        ("sparse out of order", |_, g| g.unknown.push(field(15, &sparse(&[5, 1]))), Err((1, "expected ascending places"))),
        ("sparse outside", |_, g| g.unknown.push(field(15, &sparse(&[1, 6]))), Err((1, "expected 0 to below 6, found 6"))),
        ("sparse in another file", |_, g| {
            let sparse = SparseTensorProto { values: Some(Box::new(external())), ..sparse(&[1]) };
            g.node.push(with_attribute(AttributeProto { name: "sparse_value".into(), kind: Some(11), unknown: vec![field(22, &sparse)], ..Default::default() }));
        }, Err((1, "found a reference to another"))),
        ("training in another file", |m, _| {
            let graph = GraphProto { initializer: vec![external()], ..Default::default() };
            m.unknown.push(field(20, &TrainingInfoProto { algorithm: Some(Box::new(graph)), ..Default::default() }));
        }, Err((1, "found a reference to another"))),
        ("default in another file", |m, _| {
            let unknown = vec![field(11, &AttributeProto::tensor("a", external()))];
            m.functions = vec![FunctionProto { unknown, ..function("F", vec![node("Relu", &["x"], &["y"])]) }];
        }, Err((1, "found a reference to another"))),
        ("long name", |_, g| g.node[0].name = "n".repeat(101), Err((6, "bytes of a name: expected at most 100, found 101"))),
        ("rank", |_, g| g.initializer[0].dims = vec![1; 9], Err((6, r#"dimensions of "w": expected at most 8, found 9"#))),
        ("rank of an input", |_, g| {
            let shape = TensorShapeProto { dim: vec![DimensionProto::default(); 9], ..Default::default() };
            let tensor = TensorTypeProto { shape: Some(Box::new(shape)), ..Default::default() };
            g.input[0].r#type = Some(Box::new(TypeProto { tensor_type: Some(Box::new(tensor)), ..Default::default() }));
        }, Err((6, r#"dimensions of "x""#))),
        ("elements", |_, g| g.initializer[0].dims = vec![7, 13], Err((6, r#"elements of "w": expected at most 90, found 91"#))),
        ("nodes", |_, g| g.node.extend((0..9).map(|i| node("Relu", &["x"], &[&i.to_string()]))), Err((6, "nodes: expected at most 10, found 11"))),
        ("initializers", |_, g| g.initializer.extend((0..10).map(|i| TensorProto::floats(i.to_string(), &[0], &[]))), Err((6, "initializers: expected at most 10, found 11"))),
    ];
    let options = ReadOptions { max_nodes: 10, max_rank: 8, max_name_bytes: 100, max_elements: 90, ..ReadOptions::default() };
    for (case, change, expected) in cases {
        let mut model = model();
        let mut graph = model.graph.take().unwrap();
        change(&mut model, &mut graph);
        model.graph = Some(graph);
        let found = check(Path::new("m.onnx"), &model, &options);
        match (&found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err((exit, message))) if error.exit_code() == *exit && error.to_string().contains(message) => {}
            _ => panic!("{case}: expected {expected:?}, found {found:?}"),
        }
    }
    let mut small = model();
    small.functions = vec![];
    let tight = ReadOptions { max_graph_bytes: 500, ..options };
    let error = super::super::parse(Path::new("m.onnx"), small.to_bytes().unwrap().into(), &tight).unwrap_err();
    assert!(error.exit_code() == 6 && error.to_string().contains("memory"), "{error}");
}
