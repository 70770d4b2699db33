//! ONNX models from quantization-aware training: what is taken over, and what is refused.

use crate::support::Workdir;
use crate::support::onnx::{Constant, Graph, INT8, Node, UINT8};

/// Values of the weight: halves of a scale, one that saturates, and one that is just below a half.
const WEIGHT: [f32; 8] = [0.05, 0.15, -0.25, 100.0, 0.25, 0.75, -1.25, 0.374_999_97];

/// `y = pair(Conv(pair(x), pair(weight), bias))`, one scale for each of two channels.
fn graph() -> Graph {
    let pair = |value: &str, params: &str, out: &str, attributes: &[(&'static str, i64)]| {
        let (scale, zero_point, codes) = (format!("{params}_s"), format!("{params}_z"), format!("{out}_codes"));
        [
            Node::new("QuantizeLinear", &[value, &scale, &zero_point], &codes, attributes),
            Node::new("DequantizeLinear", &[&codes, &scale, &zero_point], out, attributes),
        ]
    };
    let [x, xd] = pair("x", "x", "x_dq", &[]);
    let [w, wd] = pair("weight", "w", "weight_dq", &[("axis", 0)]);
    let [y, yd] = pair("conv", "y", "y", &[]);
    Graph {
        nodes: vec![x, xd, w, wd, Node::new("Conv", &["x_dq", "weight_dq", "bias"], "conv", &[]), y, yd],
        constants: vec![
            Constant::floats("weight", &[2, 1, 2, 2], &WEIGHT),
            Constant::floats("bias", &[2], &[0.5, -0.25]),
            Constant::floats("w_s", &[2], &[0.1, 0.5]),
            Constant::codes("w_z", INT8, &[2], &[0, 0]),
            Constant::floats("x_s", &[], &[0.125]),
            Constant::codes("x_z", UINT8, &[], &[128]),
            Constant::floats("y_s", &[], &[0.25]),
            Constant::codes("y_z", UINT8, &[], &[3]),
        ],
        inputs: vec![("x".into(), vec![1, 1, 4, 4])],
        outputs: vec![("y".into(), vec![1, 2, 3, 3])],
    }
}

fn with(graph: &Graph) -> Workdir {
    let dir = Workdir::new();
    dir.write("qat.onnx", graph.model(17));
    dir
}

#[test]
fn what_was_trained_is_taken_over_and_reproduced() {
    let dir = with(&graph());
    let said = dir.ok("quantize qat.onnx").stdout;
    assert!(said.contains("parameters of 1 weights and 2 activations are taken over"), "{said}");
    dir.ok("verify qat.int8.onnx");
    let sidecar = dir.json("qat.int8.json");
    let weight = &sidecar["tensors"]["weight"];
    assert_eq!(weight["observer"], "trained");
    assert_eq!(weight["scale"].to_string(), "[0.1,0.5]");
    assert_eq!(weight["axis"], 0);
    let (x, y) = (&sidecar["activations"]["x"], &sidecar["activations"]["conv"]);
    assert_eq!((x["zero_point"].as_i64(), y["zero_point"].as_i64()), (Some(128), Some(3)));
    assert!(x["observer"] == "trained" && x["scale"] == 0.125 && y["scale"] == 0.25, "{sidecar}");
    assert!(sidecar.get("calibration").is_none());
    // Half to even, in the arithmetic of QuantizeLinear: 0.15 / 0.1 is 1.5, -0.25 / 0.1 is -2.5.
    let codes: Vec<u8> = [0i8, 2, -2, 127, 0, 2, -2, 1].iter().map(|code| code.cast_unsigned()).collect();
    let written = dir.read("qat.int8.onnx");
    assert!(written.windows(8).any(|window| window == codes), "the codes of the weight");
    // 0.5 / (0.125 * 0.1) = 40 and -0.25 / (0.125 * 0.5) = -4.
    let bias: Vec<u8> = [40i32, -4].iter().flat_map(|code| code.to_le_bytes()).collect();
    assert!(written.windows(8).any(|window| window == bias), "the codes of the bias");
    assert!(!written.windows(4).any(|window| window == 100f32.to_le_bytes()), "no float weight is left");
    dir.ok("quantize qat.onnx --recipe qat.int8.json -o again.onnx");
    assert_eq!(dir.read("again.onnx"), written);
    dir.ok("quantize qat.onnx --mode static -o static.onnx");
    assert_eq!(dir.read("static.onnx"), written);
}

struct Wrong {
    change: fn(&mut Graph),
    /// Parts of the message: node, tensor, what was expected, what was found.
    parts: &'static [&'static str],
}

#[test]
fn parameters_that_cannot_be_are_errors_that_name_node_and_tensor() {
    let computed = |graph: &mut Graph| {
        graph.constants.retain(|constant| constant.name != "x_s");
        graph.inputs.push(("x_s".into(), vec![]));
    };
    let cases = [
        Wrong { change: computed, parts: &["node \"x_dq_codes_node\"", "scale \"x_s\"", "expected a constant", "when the model runs"] },
        Wrong {
            change: |graph| *graph.constant("y_s") = Constant::floats("y_s", &[], &[0.0]),
            parts: &["node \"y_codes_node\"", "scale \"y_s\"", "positive and finite", "found 0"],
        },
        Wrong {
            change: |graph| *graph.constant("w_s") = Constant::floats("w_s", &[2], &[0.1, -0.5]),
            parts: &["node \"weight_dq_codes_node\"", "scale \"w_s\"", "found -0.5 at index 1"],
        },
        Wrong {
            change: |graph| *graph.constant("w_s") = Constant::floats("w_s", &[2], &[f32::NAN, 0.5]),
            parts: &["node \"weight_dq_codes_node\"", "scale \"w_s\"", "found NaN at index 0"],
        },
        Wrong {
            change: |graph| *graph.constant("x_s") = Constant::floats("x_s", &[], &[f32::INFINITY]),
            parts: &["node \"x_dq_codes_node\"", "scale \"x_s\"", "found inf"],
        },
        Wrong {
            change: |graph| *graph.constant("w_z") = Constant::codes("w_z", INT8, &[3], &[0, 0, 0]),
            parts: &["node \"weight_dq_codes_node\"", "zero point \"w_z\"", "shape of its scale, [2], found [3]"],
        },
        Wrong {
            change: |graph| {
                graph.constants.push(Constant::codes("other_z", INT8, &[], &[0]));
                graph.node("y").inputs[2] = "other_z".into();
            },
            parts: &["node \"y_node\"", "zero point \"other_z\"", "expected uint8, the type of its codes, found int8"],
        },
        Wrong {
            change: |graph| {
                for value in ["weight_dq_codes", "weight_dq"] {
                    graph.node(value).attributes = vec![("axis", 4)];
                }
            },
            parts: &["node \"weight_dq_codes_node\"", "tensor \"weight\"", "axis: expected one of the 4 dimensions, found 4"],
        },
        Wrong {
            change: |graph| {
                for value in ["weight_dq_codes", "weight_dq"] {
                    graph.node(value).attributes = vec![("axis", -3)];
                }
            },
            parts: &["node \"weight_dq_codes_node\"", "tensor \"weight\"", "expected 1, one for each index of axis -3, found 2"],
        },
        Wrong {
            change: |graph| {
                graph.constants.push(Constant::floats("other_s", &[2], &[0.1, 0.6]));
                graph.node("weight_dq").inputs[1] = "other_s".into();
            },
            parts: &["node \"weight_dq_node\"", "tensor \"weight\"", "QuantizeLinear", "\"weight_dq_codes_node\""],
        },
        Wrong {
            change: |graph| {
                graph.constants.push(Constant::floats("other_s", &[2], &[0.1, 0.6]));
                for (op, from, to) in [("QuantizeLinear", "weight", "more_codes"), ("DequantizeLinear", "more_codes", "more")] {
                    graph.nodes.push(Node::new(op, &[from, "other_s", "w_z"], to, &[("axis", 0)]));
                }
                graph.nodes.push(Node::new("Conv", &["x_dq", "more"], "z", &[]));
                graph.outputs.push(("z".into(), vec![1, 2, 3, 3]));
            },
            parts: &[
                "node \"more_codes_node\"",
                "tensor \"weight\"",
                "node \"weight_dq_codes_node\", which quantizes it too, found others",
            ],
        },
        Wrong {
            change: |graph| graph.constant("weight").bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            parts: &["tensor \"weight\"", "finite", "1 NaN"],
        },
    ];
    for Wrong { change, parts } in cases {
        let mut graph = graph();
        change(&mut graph);
        let dir = with(&graph);
        let run = dir.fails("quantize qat.onnx -o out.onnx", 1);
        run.expect_one_error();
        for part in parts {
            assert!(run.stderr.contains(part), "{part}: {run}");
        }
        assert!(!dir.exists("out.onnx"));
    }
}

#[test]
fn modes_and_methods_that_observe_are_refused_unless_training_is_ignored() {
    let dir = with(&graph());
    for options in ["--mode dynamic", "--mode weight-only", "--rounding adaround", "--min-sqnr 30", "--transform equalize"] {
        let run = dir.fails(&format!("quantize qat.onnx -o out.onnx {options}"), 2);
        assert!(run.stderr.contains("quantization-aware training") && run.stderr.contains("--ignore-qat"), "{run}");
    }
    dir.ok("quantize qat.onnx --ignore-qat --mode weight-only -o out.onnx");
    assert_eq!(dir.json("out.json")["tensors"]["weight"]["observer"], "min-max");
    assert_eq!(dir.json("out.json")["activations"].to_string(), "{}");
}

#[test]
fn what_training_left_in_float_stays_so() {
    let mut graph = graph();
    graph.constants.push(Constant::floats("second", &[1, 2, 1, 1], &[0.5, -0.5]));
    graph.node("y").output = "middle".into();
    graph.nodes.push(Node::new("Conv", &["middle", "second"], "y", &[]));
    graph.outputs[0].1 = vec![1, 1, 3, 3];
    let dir = with(&graph);
    dir.ok("quantize qat.onnx -o out.onnx");
    let sidecar = dir.json("out.json");
    assert!(sidecar["kept"]["second"].as_str().unwrap().starts_with("trained in float"), "{sidecar}");
    assert_eq!(sidecar["tensors"].as_object().unwrap().len(), 1);
    // A weight that is kept by a rule is as it was trained, but not quantized.
    dir.ok("quantize qat.onnx --exclude weight -o kept.onnx");
    assert!(dir.json("kept.json")["tensors"].as_object().unwrap().is_empty());
}
