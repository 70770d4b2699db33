//! Files that are made to hurt: no panic, no signal, no endless run, and errors that say what is wrong.

use crate::support::Workdir;
use crate::support::model::{Tensor, file, tensors};
use crate::support::onnx::{Constant, Graph, Node, UINT8};

/// The state of a fake quantizer of `weight` with one scale.
fn state(root: &str, scale: f32) -> [Tensor; 2] {
    let zero_point = Tensor::new(&format!("{root}.zero_point"), "I32", &[1], vec![0; 4]);
    [Tensor::f32(&format!("{root}.scale"), &[1], &[scale]), zero_point]
}

fn weight(name: &str) -> Tensor {
    Tensor::f32(name, &[8, 8], &(0..64).map(|i| (i as f32 - 31.5) / 40.0).collect::<Vec<_>>())
}

#[test]
fn a_weight_or_an_activation_with_two_fake_quantizers_is_refused() {
    for (first, second) in [
        ("fc.weight_fake_quant", "fc.weight_fake_quantizer"),
        ("fc.activation_post_process", "fc.activation_post_process.activation_post_process"),
    ] {
        let model: Vec<Tensor> = [weight("fc.weight")].into_iter().chain(state(first, 0.02)).chain(state(second, 0.5)).collect();
        let dir = Workdir::with_model(&file(&model));
        if first.contains("weight") {
            let run = dir.fails("quantize model.safetensors", 1);
            assert!(run.stderr.contains("expected one fake quantizer of \"fc.weight\""), "{run}");
        }
    }
    // The input and the output of one module are two activations.
    let both = state("fc.activation_fake_quantizer", 0.5).into_iter().chain(state("fc.activation_post_process", 0.02));
    let model: Vec<Tensor> = [weight("fc.weight")].into_iter().chain(both).collect();
    let dir = Workdir::with_model(&file(&model));
    dir.ok("quantize model.safetensors --min-elements 0");
    let activations = &dir.json("model.int8.json")["activations"];
    assert!(activations["fc"]["scale"] == 0.02 && activations["fc.input"]["scale"] == 0.5, "{activations}");
}

#[test]
fn a_parametrized_weight_that_is_stored_twice_is_refused() {
    let of = "fc.parametrizations.weight";
    let model: Vec<Tensor> =
        [weight("fc.weight"), weight(&format!("{of}.original"))].into_iter().chain(state(&format!("{of}.0"), 0.02)).collect();
    let dir = Workdir::with_model(&file(&model));
    let run = dir.fails("quantize model.safetensors", 1);
    assert!(run.stderr.contains("tensor \"fc.weight\": expected it stored once"), "{run}");
}

#[test]
fn trained_scales_as_large_as_floats_are_verified_too() {
    let model: Vec<Tensor> = [weight("fc.weight")].into_iter().chain(state("fc.activation_post_process", 3e38)).collect();
    let dir = Workdir::with_model(&file(&model));
    dir.ok("quantize model.safetensors --min-elements 0");
    dir.ok("verify model.int8.safetensors");
}

#[test]
fn names_with_many_dots_take_no_longer() {
    let dir = Workdir::with_model(&file(&[weight(&"a.".repeat(80_000))]));
    dir.ok("quantize model.safetensors --quiet");
}

#[test]
fn patterns_beyond_their_limits_are_wrong_usage() {
    let dir = Workdir::with_fixture();
    let nested = "{".repeat(260) + "a" + &"}".repeat(260);
    let run = dir.run(["quantize", "model.safetensors", "--exclude", &nested]).expect(2);
    assert!(run.stderr.contains("pattern"), "{run}");
    dir.write("r.toml", format!("[[rule]]\nmatch = \"{}\"\nweights = \"keep\"", "[!a]".repeat(200_000)));
    let run = dir.fails("recipe check r.toml", 2);
    assert!(run.stderr.contains("line 2, column 9"), "{run}");
}

#[test]
fn reasons_of_strangers_cannot_drive_the_terminal() {
    let dir = Workdir::with_fixture();
    dir.write("r.toml", "[[rule]]\nmatch = \"conv1*\"\nweights = \"keep\"\nreason = \"\\u001b[31mhi\\u202e\"");
    for run in ["quantize model.safetensors --recipe r.toml --dry-run", "quantize model.safetensors --recipe r.toml"] {
        let text = dir.ok(run).stdout;
        assert!(text.contains("\\u{1b}[31mhi\\u{202e}") && !text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    }
}

#[test]
fn layers_whose_products_would_not_fit_exceed_a_limit() {
    let wide = |name: &str| Tensor::f32(name, &[1, 200_000], &vec![1.0; 200_000]);
    let dir = Workdir::with_model(&file(&[wide("l.weight")]));
    dir.write("samples.safetensors", file(&[wide("l")]));
    for command in [
        "quantize model.safetensors --rounding gptq --samples samples.safetensors",
        "calibrate model.safetensors --samples samples.safetensors -o s.stats",
    ] {
        let run = dir.fails(command, 6);
        assert!(run.stderr.contains("features of layer \"l\""), "{run}");
    }
}

#[test]
fn a_sidecar_gives_its_seed_again() {
    let mut random = crate::support::Random(3);
    let dir = Workdir::with_model(&file(&[Tensor::weights("l.weight", &[64, 64], &mut random)]));
    dir.write("s.safetensors", file(&[Tensor::weights("l", &[100, 64], &mut random)]));
    let run = "--samples s.safetensors --rounding adaround --weights int4";
    dir.ok(&format!("quantize model.safetensors {run} --seed 7 -o a.safetensors"));
    dir.ok("quantize model.safetensors --samples s.safetensors --recipe a.json -o b.safetensors");
    assert_eq!(dir.json("b.json")["seed"], 7);
    assert!(tensors(&dir.read("a.safetensors")) == tensors(&dir.read("b.safetensors")));
}

/// A model with these nodes, `x [1, 4]`, `y [1, 4]`, and constants `w [4, 4]`, `c` codes of it, `s` and `z`.
fn with_nodes(nodes: Vec<Node>) -> Workdir {
    let graph = Graph {
        nodes,
        constants: vec![
            Constant::floats("w", &[4, 4], &[0.5; 16]),
            Constant::codes("c", UINT8, &[4, 4], &[3; 16]),
            Constant::floats("s", &[], &[0.25]),
            Constant::codes("z", UINT8, &[], &[0]),
            Constant::floats("many", &[4], &[0.25; 4]),
            Constant::codes("zeros", UINT8, &[4], &[0; 4]),
        ],
        inputs: vec![("x".into(), vec![1, 4])],
        outputs: vec![("y".into(), vec![1, 4])],
    };
    let dir = Workdir::new();
    dir.write("m.onnx", graph.model(17));
    dir
}

#[test]
fn nodes_without_what_they_need_are_refused() {
    let good = || Node::new("Relu", &["x"], "y", &[]);
    for bad in [
        Node::new("MatMul", &["x", "w"], "", &[]),
        Node::new("MatMul", &["x"], "m", &[]),
        Node::new("Gather", &["w"], "g", &[]),
        Node::new("DequantizeLinear", &["c", "s", "z"], "", &[]),
        Node::new("DequantizeLinear", &["c"], "d", &[]),
        Node::new("QuantizeLinear", &["", "s", "z"], "q", &[]),
        Node::new("Clip", &[], "k", &[]),
    ] {
        let op = bad.op;
        let dir = with_nodes(vec![bad, good()]);
        let run = dir.fails("quantize m.onnx", 1);
        assert!(run.stderr.contains(&format!("op_type \"{op}\": expected")), "{run}");
    }
}

#[test]
fn long_chains_between_pairs_overflow_no_stack() {
    let pair = |value: &str, out: &str| {
        let codes = format!("{out}_codes");
        [Node::new("QuantizeLinear", &[value, "s", "z"], &codes, &[]), Node::new("DequantizeLinear", &[&codes, "s", "z"], out, &[])]
    };
    let mut nodes: Vec<Node> = pair("x", "a").into();
    nodes.push(Node::new("Sigmoid", &["a"], "f0", &[]));
    nodes.extend((0..20_000).map(|i| Node::new("Flatten", &[&format!("f{i}")], &format!("f{}", i + 1), &[])));
    nodes.extend(pair("f20000", "d"));
    nodes.push(Node::new("MatMul", &["d", "w"], "y", &[]));
    let dir = with_nodes(nodes);
    dir.run(["quantize", "m.onnx", "--quiet"]).expect(0);
}

#[test]
fn axes_far_outside_of_a_value_take_no_memory() {
    for axis in [i64::MIN, i64::MIN + 1, -(1 << 40), -65, -3, 2, 1 << 40, i64::MAX] {
        let nodes = vec![
            Node::new("QuantizeLinear", &["x", "s", "z"], "q", &[]),
            Node::new("DequantizeLinear", &["q", "many", "zeros"], "d", &[("axis", axis)]),
            Node::new("DequantizeLinear", &["c", "many", "zeros"], "v", &[("axis", axis)]),
            Node::new("MatMul", &["d", "v"], "y", &[]),
        ];
        let dir = with_nodes(nodes);
        dir.run(["quantize", "m.onnx", "-q"]).expect(1).expect_one_error();
        dir.run(["dequantize", "m.onnx", "-o", "f.onnx"]).expect(1).expect_one_error();
        dir.run(["compare", "m.onnx", "m.onnx", "--synthetic", "1"]).expect(1).expect_one_error();
        dir.run(["lint", "m.onnx", "-q"]).expect(3);
        assert_eq!(dir.names(), ["m.onnx"], "axis {axis}");
    }
}

// The following take a second; when everything was compared with everything, they took from twenty seconds to a minute.

/// A model of `nodes`, of `count` more that make a value each, and of their sum.
fn with_many(mut nodes: Vec<Node>, count: usize, node: impl Fn(&str) -> Node) -> Workdir {
    let values: Vec<String> = (0..count).map(|i| format!("v{i}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    nodes.extend(values.iter().map(|value| node(value)));
    nodes.push(Node::new("Sum", &values, "y", &[]));
    with_nodes(nodes)
}

#[test]
fn many_bodies_take_their_share_each() {
    let body = |name: String| Graph {
        nodes: vec![Node::new("MatMul", &["x", "w"], &name, &[])],
        outputs: vec![(name.clone(), vec![1, 4])],
        ..Graph::default()
    };
    let dir = with_many(vec![Node::new("Cast", &["s"], "is", &[("to", 9)])], 8_000, |value| {
        let bodies = vec![("then_branch", body(format!("{value}_then"))), ("else_branch", body(format!("{value}_else")))];
        Node { bodies, ..Node::new("If", &["is"], value, &[]) }
    });
    dir.ok("inspect m.onnx");
}

#[test]
fn many_readers_of_one_weight_take_their_share_each() {
    let dir = with_many(Vec::new(), 10_000, |value| Node::new("MatMul", &["x", "w"], value, &[]));
    dir.ok("quantize m.onnx --mode weight-only --min-elements 0 --quiet --no-lint");
}

#[test]
fn many_readers_of_one_trained_value_take_their_share_each() {
    let pairs = vec![
        Node::new("QuantizeLinear", &["x", "s", "z"], "q", &[]),
        Node::new("DequantizeLinear", &["q", "s", "z"], "d", &[]),
        Node::new("DequantizeLinear", &["c", "s", "z"], "trained", &[]),
    ];
    let dir = with_many(pairs, 10_000, |value| Node::new("MatMul", &["d", "trained"], value, &[]));
    dir.ok("quantize m.onnx --quiet --no-lint");
}

#[test]
fn long_recipes_are_placed_in_one_go() {
    let dir = Workdir::with_fixture();
    let tables: String = (0..50_000).map(|i| format!("[[fake_quantizer]]\nname = \"f{i}\"\nweight = \"w{i}\"\n")).collect();
    dir.write("r.toml", &tables);
    let run = dir.fails("quantize model.safetensors --recipe r.toml", 2);
    assert!(run.stderr.contains("line 1, column 1: fake_quantizer \"f0\""), "{run}");
    let tables: Vec<String> = (0..50_000).map(|i| format!("{{\"name\": \"f{i}\", \"weight\": \"w{i}\"}}")).collect();
    dir.write("r.json", format!("{{\"fake_quantizer\": [{}]}}", tables.join(", ")));
    let run = dir.fails("quantize model.safetensors --recipe r.json", 2);
    assert!(run.stderr.contains("line 1, column 21: fake_quantizer \"f0\""), "{run}");
}
