//! Normalization in weights: what is folded computes the same, and what is unusual is left alone.

use super::reference::{Array, run};
use super::{model, node, operators, prepared, value, with};
use crate::formats::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::FLOAT16;

/// Numbers between -1 and 1 that look random.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    TensorProto::floats(name.into(), dims, &numbers(name.bytes().map(u64::from).sum(), count))
}

/// Parameters of a BatchNormalization: `scale`, `shift`, `mean` and `variance`.
fn statistics(channels: i64) -> Vec<TensorProto> {
    let variance: Vec<f32> = numbers(9, channels as usize).iter().map(|v| v.abs() + 0.1).collect();
    let rest = ["scale", "shift", "mean"].map(|name| floats(name, &[channels]));
    rest.into_iter().chain([TensorProto::floats("variance".into(), &[channels], &variance)]).collect()
}

fn normalization(input: &str, output: &str) -> NodeProto {
    with("BatchNormalization", &[input, "scale", "shift", "mean", "variance"], &[output], vec![AttributeProto::float("epsilon", 1e-3)])
}

/// Prepares a model of `x` to `y` and expects these operators to be left, which compute the same within `tolerance` of the
/// largest value.
fn expect(mut model: ModelProto, shape: &[usize], left: &[&str], tolerance: f64) -> ModelProto {
    let x = Array { shape: shape.to_vec(), values: numbers(5, shape.iter().product()).into_iter().map(f64::from).collect() };
    let before = run(model.graph.as_deref().unwrap(), &[("x", x.clone())])["y"].clone();
    let (_, graph) = prepared(&mut model);
    assert_eq!(operators(graph), left);
    let after = &run(graph, &[("x", x)])["y"];
    assert_eq!(after.shape, before.shape);
    let largest = before.values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let worst = before.values.iter().zip(&after.values).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "off by {worst} of {largest}");
    model
}

fn group(group: i64) -> Vec<AttributeProto> {
    vec![AttributeProto::int("group", group), AttributeProto::ints("pads", &[1, 1, 1, 1])]
}

#[test]
fn normalization_after_a_convolution() {
    for (op_type, dims, groups) in [
        ("Conv", [6, 4, 3, 3], 1),
        ("Conv", [6, 2, 3, 3], 2),
        ("Conv", [4, 1, 3, 3], 4),
        ("ConvTranspose", [4, 6, 3, 2], 1),
        ("ConvTranspose", [4, 3, 2, 3], 2),
    ] {
        let attributes = if op_type == "Conv" { group(groups) } else { vec![AttributeProto::int("group", groups)] };
        let out = if op_type == "Conv" { dims[0] } else { dims[1] * groups };
        for biased in [false, true] {
            let input: &[&str] = if biased { &["x", "layer.weight", "b"] } else { &["x", "layer.weight"] };
            let nodes = vec![with(op_type, input, &["c"], attributes.clone()), normalization("c", "y")];
            let constants = [statistics(out), vec![floats("layer.weight", &dims), floats("b", &[out])]].concat();
            let mut model = model(4, nodes, constants);
            if !biased {
                model.graph.as_mut().unwrap().initializer.pop();
            }
            let model = expect(model, &[2, 4, 5, 4], &[op_type], 1e-6);
            let graph = model.graph.as_deref().unwrap();
            let names: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
            assert_eq!(names, ["layer.weight", if biased { "b" } else { "layer.bias" }], "nothing else is left");
            assert_eq!((graph.node[0].name.as_str(), graph.node[0].output[0].as_str()), ("c", "y"));
        }
    }
}

#[test]
fn arithmetic_after_a_convolution() {
    for (op_type, dims, first) in [
        ("Mul", &[1, 6, 1, 1][..], false),
        ("Mul", &[6, 1, 1], true),
        ("Add", &[1], false),
        ("Add", &[6, 1, 1], true),
        ("Sub", &[6, 1, 1], false),
        ("Sub", &[6, 1, 1], true),
        ("Div", &[], false),
    ] {
        let input = if first { ["k", "c"] } else { ["c", "k"] };
        let nodes = vec![with("Conv", &["x", "w"], &["c"], group(1)), node(op_type, &input, &["y"])];
        expect(model(4, nodes, vec![floats("w", &[6, 4, 3, 3]), floats("k", dims)]), &[1, 4, 3, 3], &["Conv"], 1e-6);
    }
}

#[test]
fn a_chain_after_a_convolution() {
    let nodes = vec![
        with("Conv", &["x", "w"], &["c"], group(1)),
        normalization("c", "d"),
        node("Mul", &["k", "d"], &["e"]),
        node("Add", &["e", "l"], &["f"]),
        node("Relu", &["f"], &["y"]),
    ];
    let constants = [statistics(6), vec![floats("w", &[6, 4, 3, 3]), floats("k", &[6, 1, 1]), floats("l", &[1, 6, 1, 1])]].concat();
    let model = expect(model(4, nodes, constants), &[1, 4, 3, 3], &["Conv", "Relu"], 1e-6);
    assert_eq!(model.graph.unwrap().node[0].output, ["f"], "the last value keeps its name");
}

#[test]
fn arithmetic_along_other_axes_stays() {
    for (op_type, dims) in [("Mul", &[4][..]), ("Add", &[1, 4]), ("Add", &[2, 1, 1, 1]), ("Mul", &[1, 1, 1, 1, 1])] {
        let nodes = vec![with("Conv", &["x", "w"], &["c"], group(1)), node(op_type, &["c", "k"], &["y"])];
        let mut model = model(4, nodes, vec![floats("w", &[6, 4, 3, 3]), floats("k", dims)]);
        assert_eq!(operators(prepared(&mut model).1), ["Conv", op_type], "{dims:?}");
    }
    let nodes = vec![with("Conv", &["x", "w"], &["c"], group(1)), node("Div", &["k", "c"], &["y"])];
    let mut model = model(4, nodes, vec![floats("w", &[6, 4, 3, 3]), floats("k", &[6, 1, 1])]);
    assert_eq!(operators(prepared(&mut model).1), ["Conv", "Div"]);
}

#[test]
fn normalization_before_a_convolution() {
    let nodes = |attributes| vec![normalization("x", "n"), with("Conv", &["n", "w", "b"], &["y"], attributes)];
    let constants = |dims: &[i64]| [statistics(4), vec![floats("w", dims), floats("b", &[6])]].concat();
    let two = vec![AttributeProto::int("group", 2)];
    expect(model(4, nodes(Vec::new()), constants(&[6, 4, 3, 3])), &[1, 4, 5, 4], &["Conv"], 1e-6);
    expect(model(4, nodes(two), constants(&[6, 2, 3, 3])), &[1, 4, 5, 4], &["Conv"], 1e-6);
    expect(model(4, nodes(group(1)), constants(&[6, 4, 3, 3])), &[1, 4, 5, 4], &["BatchNormalization", "Conv"], 0.0);
}

#[test]
fn normalization_beside_a_matrix_product() {
    let weight = || floats("w", &[4, 6]);
    let gemm = |input: &[&str], output: &str, trans_b: i64| {
        let attributes =
            vec![AttributeProto::float("alpha", 0.5), AttributeProto::float("beta", 2.0), AttributeProto::int("transB", trans_b)];
        with("Gemm", input, &[output], attributes)
    };
    let case = |nodes: Vec<NodeProto>, channels: i64, more: Vec<TensorProto>, left: &[&str]| {
        expect(model(2, nodes, [statistics(channels), more].concat()), &[3, 4], left, 1e-6)
    };
    case(vec![gemm(&["x", "w", "b"], "c", 0), normalization("c", "y")], 6, vec![weight(), floats("b", &[6])], &["Gemm"]);
    case(vec![gemm(&["x", "w", "b"], "c", 1), normalization("c", "y")], 6, vec![floats("w", &[6, 4]), floats("b", &[1, 6])], &["Gemm"]);
    case(vec![gemm(&["x", "w"], "c", 0), normalization("c", "y")], 6, vec![weight()], &["Gemm"]);
    case(vec![normalization("x", "n"), gemm(&["n", "w", "b"], "y", 1)], 4, vec![floats("w", &[6, 4]), floats("b", &[])], &["Gemm"]);
    // The bias is an Add then, and both become one Gemm.
    case(vec![node("MatMul", &["x", "w"], &["c"]), normalization("c", "y")], 6, vec![weight()], &["Gemm"]);
    let biased = vec![node("MatMul", &["x", "w"], &["c"]), node("Add", &["b", "c"], &["d"]), normalization("d", "y")];
    case(biased, 6, vec![weight(), floats("b", &[6])], &["Gemm"]);
}

#[test]
fn a_product_becomes_a_gemm_only_with_a_bias_for_each_row_that_nobody_else_sees() {
    let product = || node("MatMul", &["x", "w"], &["c"]);
    let constants = |bias: &[i64]| vec![floats("w", &[4, 6]), floats("b", bias)];
    let left = |rank: usize, nodes: Vec<NodeProto>, bias: &[i64]| {
        let mut model = model(rank, nodes, constants(bias));
        operators(prepared(&mut model).1).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let add = |a: &str, b: &str| node("Add", &[a, b], &["y"]);
    assert_eq!(left(2, vec![product(), add("c", "b")], &[6]), ["Gemm"]);
    assert_eq!(left(2, vec![product(), add("b", "c")], &[6]), ["Gemm"]);
    assert_eq!(left(2, vec![product(), add("c", "c")], &[6]), ["MatMul", "Add"]);
    assert_eq!(left(3, vec![product(), add("c", "b")], &[6]), ["MatMul", "Add"]);
    assert_eq!(left(2, vec![product(), add("c", "b")], &[3, 6]), ["MatMul", "Add"]);
    assert_eq!(left(2, vec![product(), add("c", "b")], &[1]), ["MatMul", "Add"]);
    assert_eq!(left(2, vec![product(), node("Relu", &["c"], &["r"]), node("Sum", &["r", "c", "b"], &["y"])], &[6])[0], "MatMul");
}

#[test]
fn a_product_of_more_dimensions_keeps_its_normalization() {
    let nodes = vec![node("MatMul", &["x", "w"], &["c"]), normalization("c", "y")];
    let mut model = model(3, nodes, [statistics(6), vec![floats("w", &[4, 6])]].concat());
    assert_eq!(operators(prepared(&mut model).1), ["MatMul", "BatchNormalization"]);
}

#[test]
fn half_precision_is_rounded_once() {
    let half = |tensor: TensorProto| {
        let values = tensor.to_floats().unwrap();
        let mut bytes = vec![0; values.len() * 2];
        crate::tensor::encode_f32(crate::tensor::Dtype::F16, &values, &mut bytes);
        TensorProto::raw(tensor.name, FLOAT16, &tensor.dims, bytes)
    };
    let nodes = vec![with("Conv", &["x", "w"], &["c"], group(1)), normalization("c", "y")];
    let constants = [statistics(6), vec![floats("w", &[6, 4, 3, 3])]].concat().into_iter().map(half).collect();
    let model = expect(model(4, nodes, constants), &[1, 4, 3, 3], &["Conv"], 2e-3);
    assert!(model.graph.unwrap().initializer.iter().all(|tensor| tensor.data_type == Some(FLOAT16)));
}

#[test]
fn a_weight_that_two_layers_share_is_stored_twice_if_it_is_small() {
    for (dims, shape, folds) in [([6, 4, 3, 3], [1, 4, 3, 3], true), ([65, 1009, 1, 1], [1, 1009, 1, 1], false)] {
        let nodes = vec![
            node("Conv", &["x", "w"], &["c"]),
            normalization("c", "n"),
            node("Conv", &["x", "w"], &["d"]),
            node("Add", &["n", "d"], &["y"]),
        ];
        let left: &[&str] = if folds { &["Conv", "Conv", "Add"] } else { &["Conv", "BatchNormalization", "Conv", "Add"] };
        let model = expect(model(4, nodes, [statistics(dims[0]), vec![floats("w", &dims)]].concat()), &shape, left, 1e-6);
        let graph = model.graph.unwrap();
        assert_eq!(graph.node[left.len() - 2].input, ["x", "w"]);
        assert_eq!(graph.node[0].input[1], if folds { "w_folded" } else { "w" });
    }
}

#[test]
fn unusual_normalization_stays() {
    let usual = || {
        (
            vec![with("Conv", &["x", "w"], &["c"], group(1)), normalization("c", "y")],
            [statistics(6), vec![floats("w", &[6, 4, 3, 3])]].concat(),
        )
    };
    let stays = |mut model: ModelProto, why: &str| assert!(operators(prepared(&mut model).1).contains(&"BatchNormalization"), "{why}");
    let (mut nodes, constants) = usual();
    nodes[1].attribute.push(AttributeProto::int("training_mode", 1));
    stays(model(4, nodes, constants), "it trains");
    let (mut nodes, constants) = usual();
    nodes[1].output.push("running_mean".into());
    nodes.push(node("Relu", &["running_mean"], &["z"]));
    stays(model(4, nodes, constants), "its statistics are used");
    let (mut nodes, constants) = usual();
    nodes.push(node("Relu", &["c"], &["z"]));
    stays(model(4, nodes, constants), "the convolution is used elsewhere");
    let (nodes, constants) = usual();
    let mut seen = model(4, nodes, constants);
    seen.graph.as_mut().unwrap().output.push(value("c", 4));
    stays(seen, "the convolution is an output");
    let (nodes, constants) = usual();
    let mut given = model(4, nodes, constants);
    given.graph.as_mut().unwrap().input.push(value("w", 4));
    stays(given, "the caller may replace the weight");
    let (nodes, mut constants) = usual();
    constants[0] = floats("scale", &[1]);
    stays(model(4, nodes, constants), "the scale is of another size");
    let (nodes, mut constants) = usual();
    constants[3] = TensorProto::floats("variance".into(), &[6], &[-1.0; 6]);
    stays(model(4, nodes, constants), "the result is no number");
    let (mut nodes, constants) = usual();
    nodes[0].domain = "mine".into();
    stays(model(4, nodes, constants), "the convolution is somebody else's");
}
