//! A graph for every rule, in which a node breaks it.

use super::rules::RULES;
use super::{LINT_TARGETS, NodeVerdict, Verdict, judge};
use crate::formats::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::formats::onnx::tensor::{FLOAT, FLOAT16, INT4, INT8, INT32, UINT8, UINT16, element_type};
use std::collections::BTreeSet;

/// The node that graphs are about.
const TARGET: &str = "target";

/// A graph in the making: methods add to it and return the name of the value that they add.
struct Build {
    graph: GraphProto,
    opset: i64,
}

/// One DequantizeLinear or QuantizeLinear: codes, shape of scale and zero point, and the number that zero points are.
#[derive(Clone, Copy)]
struct Grid(i64, &'static [i64], i64);

const U8: Grid = Grid(UINT8, &[], 128);
const S8: Grid = Grid(INT8, &[], 0);
const S8_CHANNELS: Grid = Grid(INT8, &[8], 0);

impl Build {
    fn new() -> Self {
        Build { graph: GraphProto::default(), opset: 21 }
    }

    fn tensor(&mut self, data_type: i64, dims: &[i64], value: i64) -> String {
        let name = format!("constant_{}", self.graph.initializer.len());
        let count = dims.iter().product::<i64>() as usize;
        let bytes: Vec<u8> = match data_type {
            FLOAT => (0..count).flat_map(|_| (value as f32 / 10_000.0).to_le_bytes()).collect(),
            FLOAT16 => vec![0x20; 2 * count],
            INT4 => vec![0; count.div_ceil(2)],
            _ => (0..count).flat_map(|_| value.to_le_bytes()[..element_type(data_type).unwrap().bits / 8].to_vec()).collect(),
        };
        self.graph.initializer.push(TensorProto::raw(name.clone(), data_type, dims, bytes));
        name
    }

    fn input(&mut self, dims: &[i64]) -> String {
        let name = format!("input_{}", self.graph.input.len());
        let dims: Vec<Option<i64>> = dims.iter().map(|dim| Some(*dim)).collect();
        self.graph.input.push(ValueInfoProto::tensor(name.clone(), FLOAT, &dims));
        name
    }

    fn output(&mut self, value: &str) {
        self.graph.output.push(ValueInfoProto::tensor(value.into(), FLOAT, &[]));
    }

    fn node(&mut self, op: &str, name: &str, inputs: &[&str], ints: &[(&str, i64)]) -> String {
        let name = if name.is_empty() { format!("{op}_{}", self.graph.node.len()) } else { name.to_owned() };
        let value = format!("{name}_out");
        let mut node = NodeProto::new(op, name, inputs.iter().map(|input| (*input).to_owned()).collect(), vec![value.clone()]);
        node.attribute.extend(ints.iter().map(|(name, value)| AttributeProto::int(name, *value)));
        self.graph.node.push(node);
        value
    }

    fn grid(&mut self, Grid(codes, dims, zero_point): Grid) -> [String; 2] {
        // The scale of a bias is the product of the others.
        let scale = if codes == INT32 { 25 } else { 500 };
        [self.tensor(FLOAT, dims, scale), self.tensor(codes, dims, zero_point)]
    }

    fn quantize(&mut self, value: &str, grid: Grid) -> String {
        let [scale, zero_point] = self.grid(grid);
        self.node("QuantizeLinear", "", &[value, &scale, &zero_point], &[])
    }

    fn dequantize(&mut self, codes: &str, grid: Grid, ints: &[(&str, i64)]) -> String {
        let [scale, zero_point] = self.grid(grid);
        self.node("DequantizeLinear", "", &[codes, &scale, &zero_point], ints)
    }

    fn pair(&mut self, value: &str, grid: Grid) -> String {
        let codes = self.quantize(value, grid);
        self.dequantize(&codes, grid, &[])
    }

    /// A quantized input.
    fn activation(&mut self, dims: &[i64], grid: Grid) -> String {
        let input = self.input(dims);
        self.pair(&input, grid)
    }

    /// Stored codes that are dequantized.
    fn weight(&mut self, dims: &[i64], grid: Grid, axis: i64) -> String {
        let codes = self.tensor(grid.0, dims, 3);
        self.dequantize(&codes, grid, &[("axis", axis)])
    }

    /// A convolution of quantized values, with the bias that there is.
    fn conv(&mut self, activation: Grid, weight: Grid, bias: Option<&str>) -> String {
        let x = self.activation(&[1, 8, 9, 9], activation);
        let w = self.weight(&[8, 8, 3, 3], weight, 0);
        let inputs: Vec<&str> = [x.as_str(), w.as_str()].into_iter().chain(bias).collect();
        self.node("Conv", TARGET, &inputs, &[])
    }

    fn matmul(&mut self, activation: Grid, weight: Grid) -> String {
        let x = self.activation(&[4, 8], activation);
        let w = self.weight(&[8, 8], weight, 1);
        self.node("MatMul", TARGET, &[&x, &w], &[])
    }

    fn gemm(&mut self, bias: Option<&str>) -> String {
        let x = self.activation(&[4, 8], U8);
        let w = self.weight(&[8, 8], S8_CHANNELS, 1);
        let inputs: Vec<&str> = [x.as_str(), w.as_str()].into_iter().chain(bias).collect();
        self.node("Gemm", TARGET, &inputs, &[])
    }

    /// A product of floats and stored codes.
    fn weight_only(&mut self, op: &str, weight: &str, bias: Option<&str>, ints: &[(&str, i64)]) -> String {
        let x = self.input(&[4, 64]);
        let inputs: Vec<&str> = [x.as_str(), weight].into_iter().chain(bias).collect();
        self.node(op, TARGET, &inputs, ints)
    }

    fn set_float(&mut self, name: &str, value: f32) {
        let target = self.graph.node.iter_mut().find(|node| node.name == TARGET).unwrap();
        target.attribute.push(AttributeProto::float(name, value));
    }

    fn finish(&mut self, value: &str) {
        let last = self.node("Tanh", "", &[value], &[]);
        self.output(&last);
    }

    fn finish_quantized(&mut self, value: &str, grid: Grid) {
        let value = self.pair(value, grid);
        self.finish(&value);
    }

    fn judge(self, target: &str) -> Vec<NodeVerdict> {
        let import = OperatorSetIdProto { version: Some(self.opset), ..OperatorSetIdProto::default() };
        let graph = Some(Box::new(self.graph));
        let model = ModelProto { ir_version: Some(10), graph, opset_import: vec![import], ..ModelProto::default() };
        judge(&model, target)
    }
}

struct Case {
    rule: &'static str,
    target: &'static str,
    verdict: Verdict,
    build: fn(&mut Build),
}

const fn case(rule: &'static str, target: &'static str, verdict: Verdict, build: fn(&mut Build)) -> Case {
    Case { rule, target, verdict, build }
}

const ORT: &str = "ort-cpu";
const TRT: &str = "tensorrt";

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("activation-not-quantized", ORT, Verdict::Float, |b| {
        let (a, c) = (b.activation(&[4, 8], U8), b.input(&[4, 8]));
        let value = b.node("Add", TARGET, &[&a, &c], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("weight-not-quantized", ORT, Verdict::Float, |b| {
        let (x, w) = (b.activation(&[4, 8], U8), b.tensor(FLOAT, &[8, 8], 1));
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
    case("weight-only", ORT, Verdict::Unfused, |b| {
        let (x, w) = (b.input(&[1, 8, 9, 9]), b.weight(&[8, 8, 3, 3], S8_CHANNELS, 0));
        let value = b.node("Conv", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
    case("no-integer-kernel", ORT, Verdict::Unfused, |b| {
        let x = b.activation(&[4, 8], U8);
        let value = b.node("Tanh", TARGET, &[&x], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("output-not-quantized", ORT, Verdict::Unfused, |b| {
        let value = b.conv(U8, S8_CHANNELS, None);
        b.finish(&value);
    }),
    case("output-has-other-readers", ORT, Verdict::Unfused, |b| {
        let value = b.conv(U8, S8_CHANNELS, None);
        b.finish(&value);
        b.finish_quantized(&value, U8);
    }),
    case("product-has-other-readers", ORT, Verdict::Unfused, |b| {
        let value = b.matmul(U8, S8_CHANNELS);
        b.output(&value);
        b.finish_quantized(&value, U8);
    }),
    case("activation-function-between", ORT, Verdict::Unfused, |b| {
        let value = b.conv(S8, S8_CHANNELS, None);
        let value = b.node("Relu", "", &[&value], &[]);
        b.finish_quantized(&value, S8);
    }),
    case("weight-only-with-relu", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[64, 8], S8_CHANNELS, 1);
        let value = b.weight_only("MatMul", &w, None, &[]);
        let value = b.node("Relu", "", &[&value], &[]);
        b.finish(&value);
    }),
    case("weight-only-with-quantized-output", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[64, 8], S8_CHANNELS, 1);
        let value = b.weight_only("MatMul", &w, None, &[]);
        b.finish_quantized(&value, U8);
    }),
    case("type-mix", ORT, Verdict::Unfused, |b| {
        let value = b.matmul(U8, S8_CHANNELS);
        b.finish_quantized(&value, Grid(UINT16, &[], 0));
    }),
    case("types-differ", ORT, Verdict::Unfused, |b| {
        // A DequantizeLinear of int8 codes that another takes too stays int8.
        let (a, c) = (b.activation(&[4, 8], U8), b.activation(&[4, 8], S8));
        let value = b.node("Add", TARGET, &[&a, &c], &[]);
        b.finish_quantized(&value, U8);
        b.finish(&c);
    }),
    case("int8-stays-signed", ORT, Verdict::Unfused, |b| {
        let x = b.activation(&[4, 8], S8);
        let w = b.weight(&[8, 8], S8_CHANNELS, 1);
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish(&value);
        b.finish(&x);
    }),
    case("sixteen-bits", ORT, Verdict::Unfused, |b| {
        let value = b.conv(Grid(UINT16, &[], 0), S8_CHANNELS, None);
        b.finish_quantized(&value, Grid(UINT16, &[], 0));
    }),
    case("four-bits", ORT, Verdict::Unfused, |b| {
        let value = b.matmul(U8, Grid(INT4, &[8], 0));
        b.finish(&value);
    }),
    case("bias-in-float", ORT, Verdict::Unfused, |b| {
        let bias = b.tensor(FLOAT, &[8], 1);
        let value = b.gemm(Some(&bias));
        b.finish(&value);
    }),
    case("bias-type", ORT, Verdict::Unfused, |b| {
        let bias = b.weight(&[8], S8, 0);
        let value = b.gemm(Some(&bias));
        b.finish(&value);
    }),
    case("bias-shape", ORT, Verdict::Refused, |b| {
        let codes = b.tensor(INT32, &[1, 8], 0);
        let bias = b.dequantize(&codes, Grid(INT32, &[], 0), &[]);
        let value = b.gemm(Some(&bias));
        b.finish(&value);
    }),
    case("alpha-beta", ORT, Verdict::Unfused, |b| {
        let codes = b.tensor(INT32, &[8], 0);
        let bias = b.dequantize(&codes, Grid(INT32, &[], 0), &[]);
        let value = b.gemm(Some(&bias));
        b.set_float("beta", 0.5);
        b.finish(&value);
    }),
    case("weight-axis", ORT, Verdict::Unfused, |b| {
        let (x, w) = (b.activation(&[4, 8], U8), b.weight(&[8, 8], S8_CHANNELS, 0));
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("weight-axis-ignored", ORT, Verdict::Inexact, |b| {
        let (x, w) = (b.activation(&[4, 8], U8), b.weight(&[8, 8], S8_CHANNELS, 0));
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
    case("zero-point-missing", ORT, Verdict::Unfused, |b| {
        let x = b.activation(&[4, 8], U8);
        let (codes, scale) = (b.tensor(INT8, &[8, 8], 3), b.tensor(FLOAT, &[8], 500));
        let w = b.node("DequantizeLinear", "", &[&codes, &scale], &[("axis", 1)]);
        let value = b.node("Gemm", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
    case("parameters-differ", ORT, Verdict::Unfused, |b| {
        let x = b.activation(&[1, 8, 9, 9], U8);
        let value = b.node("Flatten", TARGET, &[&x], &[]);
        b.finish_quantized(&value, Grid(UINT8, &[], 0));
    }),
    case("weight-only-scale", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[64, 8], Grid(INT8, &[1], 0), 1);
        let value = b.weight_only("MatMul", &w, None, &[]);
        b.finish(&value);
    }),
    case("weight-only-transposed", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[8, 64], S8, 0);
        let value = b.weight_only("Gemm", &w, None, &[("transB", 1)]);
        b.finish(&value);
    }),
    case("weight-only-bias", ORT, Verdict::Unfused, |b| {
        let (w, bias) = (b.weight(&[64, 8], S8_CHANNELS, 1), b.tensor(FLOAT, &[1, 8], 1));
        let value = b.weight_only("Gemm", &w, Some(&bias), &[]);
        b.finish(&value);
    }),
    case("weight-only-tied", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[64, 8], S8_CHANNELS, 1);
        let value = b.weight_only("MatMul", &w, None, &[]);
        b.finish(&value);
        b.finish(&w);
    }),
    case("weight-only-rank", ORT, Verdict::Unfused, |b| {
        let w = b.weight(&[2, 64, 8], S8, 1);
        let value = b.weight_only("MatMul", &w, None, &[]);
        b.finish(&value);
    }),
    case("weight-zero-points-differ", ORT, Verdict::Refused, |b| {
        let x = b.activation(&[1, 2, 9, 9], U8);
        let codes = b.tensor(INT8, &[2, 2, 3, 3], 3);
        let (scale, zero_points) = (b.tensor(FLOAT, &[2], 1), "different".to_owned());
        b.graph.initializer.push(TensorProto::raw(zero_points.clone(), INT8, &[2], vec![0, 1]));
        let w = b.node("DequantizeLinear", "", &[&codes, &scale, &zero_points], &[("axis", 0)]);
        let value = b.node("Conv", TARGET, &[&x, &w], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("activation-per-channel", ORT, Verdict::Refused, |b| {
        let value = b.conv(Grid(UINT8, &[8], 128), S8_CHANNELS, None);
        b.finish_quantized(&value, U8);
    }),
    case("bias-scale", ORT, Verdict::Unfused, |b| {
        let (codes, scale) = (b.tensor(INT32, &[8], 0), b.tensor(FLOAT, &[], 500));
        let bias = b.node("DequantizeLinear", "", &[&codes, &scale], &[]);
        let value = b.conv(U8, S8_CHANNELS, Some(&bias));
        b.finish_quantized(&value, U8);
    }),
    case("bias-scale-ignored", ORT, Verdict::Inexact, |b| {
        let (codes, scale) = (b.tensor(INT32, &[8], 0), b.tensor(FLOAT, &[], 500));
        let bias = b.node("DequantizeLinear", "", &[&codes, &scale], &[]);
        let value = b.gemm(Some(&bias));
        b.finish(&value);
    }),
    case("scale-list-of-one", ORT, Verdict::Unfused, |b| {
        let (a, c) = (b.activation(&[4, 8], U8), b.activation(&[4, 8], Grid(UINT8, &[1], 128)));
        let value = b.node("Mul", TARGET, &[&a, &c], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("pool-scale-list-of-one", ORT, Verdict::Refused, |b| {
        let x = b.activation(&[1, 8, 9, 9], Grid(UINT8, &[1], 128));
        let value = b.node("AveragePool", TARGET, &[&x], &[]);
        b.finish_quantized(&value, U8);
    }),
    case("int8-moved", ORT, Verdict::Refused, |b| {
        let x = b.activation(&[1, 8, 9, 9], S8);
        let value = b.node("MaxPool", TARGET, &[&x], &[]);
        b.finish(&value);
    }),
    case("opset", "any", Verdict::Refused, |b| {
        let value = b.conv(U8, S8_CHANNELS, None);
        b.finish_quantized(&value, U8);
        b.opset = 12;
    }),
    case("parameters-not-constant", TRT, Verdict::Refused, |b| {
        let (x, scale) = (b.input(&[4, 8]), b.input(&[]));
        let zero_point = b.tensor(INT8, &[], 0);
        let codes = b.node("QuantizeLinear", "", &[&x, &scale, &zero_point], &[]);
        let x = b.node("DequantizeLinear", "", &[&codes, &scale, &zero_point], &[]);
        let w = b.weight(&[8, 8], S8_CHANNELS, 1);
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
    case("zero-point", TRT, Verdict::Refused, |b| {
        let value = b.matmul(Grid(INT8, &[], 3), S8_CHANNELS);
        b.finish(&value);
    }),
    case("codes-not-int8", TRT, Verdict::Refused, |b| {
        let value = b.matmul(Grid(UINT8, &[], 0), S8_CHANNELS);
        b.finish(&value);
    }),
    case("bias-quantized", TRT, Verdict::Refused, |b| {
        let codes = b.tensor(INT32, &[8], 0);
        let bias = b.dequantize(&codes, Grid(INT32, &[], 0), &[]);
        let value = b.conv(S8, S8_CHANNELS, Some(&bias));
        b.finish(&value);
    }),
    case("operator-on-codes", TRT, Verdict::Refused, |b| {
        let (x, w) = (b.tensor(UINT8, &[4, 8], 1), b.tensor(INT8, &[8, 8], 1));
        let x = b.node("Identity", "", &[&x], &[]);
        let x = b.node("MatMulInteger", TARGET, &[&x, &w, "given"], &[]);
        b.output(&x);
    }),
    case("saturation", "ort-cpu-avx2", Verdict::Inexact, |b| {
        let x = b.activation(&[4, 8], U8);
        let codes = b.tensor(INT8, &[8, 8], 65);
        let w = b.dequantize(&codes, S8_CHANNELS, &[("axis", 1)]);
        let value = b.node("MatMul", TARGET, &[&x, &w], &[]);
        b.finish(&value);
    }),
];

fn target_of(build: fn(&mut Build), target: &str) -> NodeVerdict {
    let mut graph = Build::new();
    build(&mut graph);
    graph.judge(target).into_iter().find(|node| node.node == TARGET).expect("the node has a verdict")
}

#[test]
fn every_rule_is_broken_by_its_graph_alone() {
    for Case { rule, target, verdict, build } in CASES {
        let found = target_of(*build, target);
        let broken: Vec<&str> = found.findings.iter().map(|finding| finding.rule).collect();
        assert_eq!(broken, [*rule], "{:?}", found.findings);
        assert_eq!(found.verdict, *verdict, "{rule}");
        assert_eq!(found.kernel.is_some(), matches!(verdict, Verdict::Refused | Verdict::Inexact), "{rule}");
    }
}

#[test]
fn every_rule_has_a_graph_and_a_line_of_documentation() {
    let documented = include_str!("../../docs/lint.md");
    let cases: BTreeSet<&str> = CASES.iter().map(|case| case.rule).collect();
    let rules: BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(cases, rules);
    assert_eq!(rules.len(), RULES.len());
    for rule in RULES {
        assert!(documented.contains(&format!("| `{}` |", rule.name)), "{}", rule.name);
    }
}

#[test]
fn targets_are_those_of_quantize() {
    for name in LINT_TARGETS {
        assert!(crate::target::TARGETS.iter().any(|target| target.name == *name), "{name}");
    }
}

#[test]
fn what_breaks_no_rule_computes_in_integers() {
    type Case = (&'static str, fn(&mut Build));
    let good: &[Case] = &[
        ("QLinearConv", |b| {
            let bias = b.tensor(FLOAT, &[8], 1);
            let value = b.conv(U8, S8_CHANNELS, Some(&bias));
            let value = b.node("Relu", "", &[&value], &[]);
            b.finish_quantized(&value, Grid(UINT8, &[], 0));
        }),
        ("QLinearMatMul", |b| {
            let value = b.matmul(S8, S8_CHANNELS);
            b.finish_quantized(&value, S8);
        }),
        ("MatMulIntegerToFloat", |b| {
            let value = b.matmul(U8, Grid(UINT8, &[], 3));
            b.finish(&value);
        }),
        ("QGemm", |b| {
            let value = b.gemm(None);
            b.finish(&value);
        }),
        ("QGemm", |b| {
            // A bias that is added is that of a Gemm.
            let bias = b.tensor(FLOAT, &[8], 1);
            let value = b.matmul(U8, S8_CHANNELS);
            let value = b.node("Add", "", &[&bias, &value], &[]);
            b.finish_quantized(&value, U8);
        }),
        ("MatMulNBits", |b| {
            let codes = b.tensor(INT4, &[64, 8], 0);
            let scale = b.tensor(FLOAT, &[2, 8], 1);
            let w = b.node("DequantizeLinear", "", &[&codes, &scale], &[("axis", 0), ("block_size", 32)]);
            let value = b.weight_only("MatMul", &w, None, &[]);
            b.finish(&value);
        }),
        ("QLinearAdd", |b| {
            let (a, c) = (b.activation(&[4, 8], U8), b.activation(&[4, 8], Grid(UINT8, &[], 3)));
            let value = b.node("Add", TARGET, &[&a, &c], &[]);
            b.finish_quantized(&value, U8);
        }),
        ("MaxPool", |b| {
            // Its output gets the parameters of its input.
            let x = b.activation(&[1, 8, 9, 9], U8);
            let value = b.node("MaxPool", TARGET, &[&x], &[]);
            b.finish(&value);
        }),
    ];
    for (kernel, build) in good {
        let found = target_of(*build, ORT);
        assert_eq!((found.kernel.as_deref(), found.verdict), (Some(*kernel), Verdict::Integer), "{:?}", found.findings);
    }
}

#[test]
fn values_that_many_are_made_of_are_looked_at_once() {
    let mut b = Build::new();
    let mut value = b.tensor(FLOAT, &[], 1);
    for _ in 0..60 {
        value = b.node("Add", "", &[&value, &value], &[]);
    }
    let x = b.input(&[4, 8]);
    let w = b.node("Mul", "", &[&value, &x], &[]);
    b.node("MatMul", TARGET, &[&w, &w], &[]);
    assert_eq!(b.judge(ORT).len(), 1);
}
