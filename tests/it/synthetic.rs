//! `--synthetic`: random samples for who has none.

use crate::onnx_quantize::small;
use crate::support::Workdir;
use crate::support::onnx::{Constant, Graph, Node, OPEN};

#[test]
fn random_samples_are_the_same_everywhere_and_the_sidecar_says_so() {
    let dir = small();
    let run = dir.ok("quantize model.onnx --synthetic 4 -o a.onnx --threads 1");
    assert!(run.stdout.contains("--synthetic: what random inputs show of ranges and errors does not hold for real ones"), "{run}");
    dir.ok("quantize model.onnx --synthetic 4 -o b.onnx --threads 3");
    assert!(dir.read("a.onnx") == dir.read("b.onnx"));
    let calibration = &dir.json("a.json")["calibration"];
    assert_eq!((calibration["samples"].as_u64(), calibration["synthetic"].as_bool()), (Some(4), Some(true)), "{calibration}");
    dir.ok("verify a.onnx");
    // Four others than of five, and real samples are not called random.
    dir.ok("quantize model.onnx --synthetic 5 -o c.onnx");
    assert_ne!(dir.json("c.json")["calibration"]["blake3"], calibration["blake3"]);
    dir.ok("quantize model.onnx --samples samples -o d.onnx");
    assert!(dir.json("d.json")["calibration"].get("synthetic").is_none());
}

#[test]
fn every_command_that_runs_a_model_takes_them() {
    let dir = small();
    dir.ok("calibrate model.onnx --synthetic 4 --part 0/2 -o first.stats");
    dir.ok("calibrate model.onnx --synthetic 4 --part 1/2 -o second.stats");
    dir.ok("merge first.stats second.stats -o all.stats");
    dir.ok("quantize model.onnx --synthetic 4 --min-sqnr 0 -o a.onnx");
    dir.ok("quantize model.onnx --stats all.stats --min-sqnr 0 -o b.onnx");
    assert!(dir.read("a.onnx") == dir.read("b.onnx"));
    dir.ok("compare model.onnx a.onnx --synthetic 2 --min-sqnr 10 --layers");
    dir.ok("analyze model.onnx --synthetic 2");
    let run = dir.ok("quantize model.onnx --synthetic 4 --if-changed -o c.onnx");
    assert!(!run.stdout.contains("unchanged"), "{run}");
    assert!(dir.ok("quantize model.onnx --synthetic 4 --if-changed -o c.onnx").stdout.contains("unchanged"));
    assert!(dir.ok("quantize model.onnx --synthetic 3 --if-changed -o c.onnx").stdout.contains("the recipe or an option changed"));
}

/// `y = x @ w`, of which a dimension of `x` is open.
fn open() -> Workdir {
    let graph = Graph {
        nodes: vec![Node::new("MatMul", &["x", "w"], "y", &[])],
        constants: vec![Constant::floats("w", &[64, 32], &(0..2048).map(|i| (i % 17) as f32 / 17.0 - 0.4).collect::<Vec<_>>())],
        inputs: vec![("x".into(), vec![OPEN, 64])],
        outputs: vec![("y".into(), vec![OPEN, 32])],
    };
    let dir = Workdir::new();
    dir.write("m.onnx", graph.model(17));
    dir
}

#[test]
fn open_dimensions_are_one_unless_given() {
    let dir = open();
    let run = dir.ok("quantize m.onnx --synthetic 2 -o a.onnx");
    assert!(run.stdout.contains("dimensions that the model leaves open are 1 (--input-shape): \"x\" F32 [?, 64]"), "{run}");
    let run = dir.ok("quantize m.onnx --synthetic 2 --input-shape x=7x64 -o b.onnx");
    assert!(!run.stdout.contains("--input-shape"), "{run}");
    let mistakes = [
        ("--input-shape x=7x64", "--synthetic"),
        ("--synthetic 0", "0"),
        ("--synthetic 2 --input-shape y=7x64", "--input-shape: expected an input of the model, found \"y\""),
        ("--synthetic 2 --input-shape x=7x65", "--input-shape: \"x\": expected [?, 64], found [7, 65]"),
        ("--synthetic 2 --input-shape x=7xa", "expected NAME=DIMS such as x=1x3x224x224"),
        ("--synthetic 2 --samples s", "cannot be used with"),
    ];
    for (options, expected) in mistakes {
        let run = dir.fails(&format!("quantize m.onnx {options} -o c.onnx"), 2);
        assert!(run.stderr.contains(expected), "{options}: {run}");
    }
    let run = dir.fails("quantize m.onnx --synthetic 2 --input-shape x=9000000000x64 -o c.onnx", 6);
    assert!(run.stderr.contains("sample-bytes"), "{run}");
    let dir = Workdir::with_fixture();
    let run = dir.fails("quantize model.safetensors --synthetic 2", 2);
    assert!(run.stderr.contains("--synthetic: expected an ONNX model"), "{run}");
}

#[test]
fn a_model_that_does_not_run_on_the_smallest_input_is_told_of_shapes() {
    let graph = Graph {
        nodes: vec![Node::new("Reshape", &["x", "shape"], "r", &[]), Node::new("MatMul", &["r", "w"], "y", &[])],
        constants: vec![
            Constant::floats("w", &[64, 32], &[0.5; 2048]),
            Constant::codes("shape", crate::support::onnx::INT64, &[2], &[255, 255, 255, 255, 255, 255, 255, 255, 64, 0, 0, 0, 0, 0, 0, 0]),
        ],
        inputs: vec![("x".into(), vec![1, OPEN])],
        outputs: vec![("y".into(), vec![OPEN, 32])],
    };
    let dir = Workdir::new();
    dir.write("m.onnx", graph.model(17));
    let run = dir.fails("quantize m.onnx --synthetic 2 -o q.onnx", 1);
    assert!(run.stderr.contains("hint: random inputs have 1 for each dimension that the model leaves open: --input-shape"), "{run}");
    dir.ok("quantize m.onnx --synthetic 2 --input-shape x=1x128 -o q.onnx");
}
