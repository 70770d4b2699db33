//! `qtool compare` and `qtool dequantize` of ONNX models.

use crate::onnx_quantize::{count, small};

/// Every mode and form that is written.
const OPTIONS: [&str; 8] = [
    "--mode weight-only",
    "--mode weight-only --weights uint8 --asymmetric",
    "--mode weight-only --granularity per-tensor",
    "--mode weight-only --weights int4 --granularity per-group:16",
    "--mode dynamic",
    "--samples samples",
    "--samples samples --activations int8",
    "--samples samples --format qoperator",
];

#[test]
fn a_model_does_not_differ_from_itself() {
    let dir = small();
    dir.write("copy.onnx", dir.read("model.onnx"));
    let run = dir.ok("compare model.onnx copy.onnx --samples samples --json");
    let output = &run.json()["outputs"][0];
    assert_eq!((output["name"].as_str(), output["max_abs"].as_f64()), (Some("scores"), Some(0.0)), "{output}");
    dir.ok("compare model.onnx copy.onnx --samples samples --min-sqnr 1000 --min-cosine 0.99999 --max-abs 0 --min-top1 1");
}

#[test]
fn quantized_models_are_near_and_gates_can_fail() {
    let dir = small();
    for options in OPTIONS {
        let floor = if options.contains("int4") { 10 } else { 25 };
        dir.ok(&format!("quantize model.onnx {options} -o q.onnx --force"));
        dir.ok(&format!("compare model.onnx q.onnx --samples samples --layers --min-sqnr {floor} --min-cosine 0.9"));
        for gate in ["--min-sqnr 90", "--min-cosine 0.9999999", "--max-abs 0.0000001"] {
            dir.fails(&format!("compare model.onnx q.onnx --samples samples {gate}"), 3);
        }
    }
    dir.fails("compare model.onnx q.onnx", 2);
}

#[test]
fn dequantize_gives_the_float_operators_back() {
    let dir = small();
    for options in OPTIONS {
        dir.ok(&format!("quantize model.onnx {options} -o q.onnx --force"));
        dir.ok("dequantize q.onnx -o float.onnx --force");
        let model = dir.read("float.onnx");
        for (op_type, number) in [("Conv", 3), ("Gemm", 1), ("MatMul", 1), ("LSTM", 1), ("Gather", 1), ("GlobalAveragePool", 1)] {
            assert_eq!(count(&model, op_type), number, "{op_type} with {options:?}");
        }
        for op_type in
            ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "DynamicQuantizeLSTM"]
        {
            assert_eq!(count(&model, op_type), 0, "{op_type} with {options:?}");
        }
        // What is left is the rounding of weights.
        let floor = if options.contains("int4") { 10 } else { 35 };
        dir.ok(&format!("compare model.onnx float.onnx --samples samples --min-sqnr {floor}"));
    }
    dir.fails("dequantize model.onnx -o again.onnx", 1).expect_one_error();
}
