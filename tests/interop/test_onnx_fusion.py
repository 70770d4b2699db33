"""ONNX Runtime makes integer kernels of what `quantize` writes, and leaves no DequantizeLinear of a weight to run every time."""

import pytest

from onnx_models import constants, graphs
from onnx_tools import Quantizer, operators, optimized


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return Quantizer(tmp_path_factory.mktemp("fused"))


@pytest.fixture
def fused(quantized):
    """fused(case, options…) counts the operators that ONNX Runtime runs."""
    return lambda name, *options: operators(optimized(quantized(name, *options)))


# Products of floats; what is left of these after fusion is not computed in integers.
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
FLOAT_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")


def total(counts, *names):
    return sum(counts[name] for name in names)


# Dynamic

DYNAMIC = {
    # case: (products in integers, products of floats)
    "matmul": (1, 0),
    "matmul-3d": (1, 0),
    "matmul-4d": (1, 0),
    "matmul-one-row": (1, 0),
    "matmul-add-relu": (3, 0),
    "matmul-transposed": (1, 0),
    "matmul-identity": (1, 0),
    "matmul-constant-node": (1, 0),
    "matmul-shared": (2, 0),
    "matmul-shared-input": (3, 0),
    "matmul-attention": (4, 2),
    "matmul-mixed-use": (1, 0),
    "gemm": (1, 0),
    "gemm-bias": (1, 0),
    "gemm-bias-2d": (1, 0),
    "gemm-transB": (1, 0),
    "gemm-transB-bias": (1, 0),
    "gemm-transB-bias-2d": (1, 0),
    "gemm-mlp": (3, 0),
    "tied-embedding": (2, 0),
    "if": (5, 0),
    "loop": (2, 0),
    "conv-classifier": (1, 0),
    "contrib-operators": (2, 0),
}


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_dynamic(fused, name, granularity, weights):
    counts = fused(name, "--mode", "dynamic", "--granularity", granularity, "--weights", weights)
    integers, floats = DYNAMIC[name]
    assert total(counts, "DynamicQuantizeMatMul", "MatMulIntegerToFloat") == integers, counts
    assert total(counts, *FLOAT_PRODUCTS) == floats, counts
    assert total(counts, "MatMulInteger", "MatMulNBits") == 0, counts


def test_dynamic_quantizes_a_shared_input_once(fused):
    counts = fused("matmul-shared-input", "--mode", "dynamic")
    assert counts["DynamicQuantizeLinear"] == 1 and counts["MatMulIntegerToFloat"] == 3, counts


@pytest.mark.parametrize("name", ["lstm", "lstm-bidirectional", "lstm-reverse", "lstm-state"])
def test_dynamic_lstm(fused, name):
    counts = fused(name, "--mode", "dynamic")
    assert counts["DynamicQuantizeLSTM"] == 1 and total(counts, "LSTM", "DequantizeLinear") == 0, counts


# Weight-only

# Cases whose products become MatMulNBits, and how many do. Those with Relu behind (FACTS section 2) do not.
WEIGHT_ONLY = {
    "matmul": 1,
    "matmul-3d": 1,
    "matmul-4d": 1,
    "matmul-transposed": 1,
    "matmul-identity": 1,
    "matmul-constant-node": 1,
    "matmul-shared-input": 3,
    "matmul-attention": 4,
    "matmul-mixed-use": 1,
    "gemm": 1,
    "gemm-bias": 1,
    "gemm-transB": 1,
    "gemm-transB-bias": 1,
    "contrib-operators": 2,
}


@pytest.mark.parametrize("name", WEIGHT_ONLY)
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_weight_only(fused, name, granularity):
    counts = fused(name, "--mode", "weight-only", "--granularity", granularity)
    assert counts["MatMulNBits"] == WEIGHT_ONLY[name], counts
    assert counts["DequantizeLinear"] == 0, counts


@pytest.mark.parametrize("name", ["gather", "tied-embedding", "gather-scalar"])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_embeddings_are_looked_up_as_codes(quantized, name, granularity):
    """A table is never dequantized whole, only the rows that were asked for."""
    model = optimized(quantized(name, "--mode", "dynamic", "--granularity", granularity))
    tables = constants(model)
    for node in (node for graph in graphs(model) for node in graph.node):
        assert node.op_type != "DequantizeLinear" or node.input[0] not in tables, node


# Static

# Case: operators that compute in integers. Everything that multiplies by a weight must be among them.
STATIC = {
    "conv1d": {"QLinearConv": 1},
    "conv2d": {"QLinearConv": 1},
    "conv2d-grouped": {"QLinearConv": 1},
    "conv2d-depthwise": {"QLinearConv": 1},
    "conv2d-without-bias": {"QLinearConv": 1},
    "conv2d-strided": {"QLinearConv": 1},
    "conv2d-dilated": {"QLinearConv": 1},
    "conv-relu": {"QLinearConv": 2},
    "conv-relu6": {"QLinearConv": 2},
    "conv-clip-symmetric": {"QLinearConv": 2},
    "conv-leaky-relu": {"QLinearConv": 2},
    "conv-sigmoid": {"QLinearConv": 2},
    "conv-hard-swish": {"QLinearConv": 2},
    "conv-mul-add": {"QLinearConv": 1},
    "conv-batchnorm": {"QLinearConv": 2},
    "conv-two-readers": {"QLinearConv": 3},
    "conv-classifier": {"QLinearConv": 4, "QGemm": 1},
    "matmul": {"MatMulIntegerToFloat": 1},
    "matmul-3d": {"MatMulIntegerToFloat": 1},
    "matmul-4d": {"MatMulIntegerToFloat": 1},
    "matmul-add-3d": {"MatMulIntegerToFloat": 1},
    "matmul-transposed": {"MatMulIntegerToFloat": 1},
    "matmul-transposed-large": {"MatMulIntegerToFloat": 1},
    "matmul-shared": {"MatMulIntegerToFloat": 1, "QLinearMatMul": 1},
    "matmul-shared-input": {"MatMulIntegerToFloat": 3},
    "matmul-attention": {"MatMulIntegerToFloat": 4},
    "gemm": {"QGemm": 1},
    "gemm-bias": {"QGemm": 1},
    "gemm-bias-2d": {"QGemm": 1},
    "gemm-transB": {"QGemm": 1},
    "gemm-transB-bias": {"QGemm": 1},
    "gemm-transB-bias-2d": {"QGemm": 1},
    "gemm-mlp": {"QGemm": 3},
    "tied-embedding": {"MatMulIntegerToFloat": 1, "QLinearMatMul": 1},
    # ONNX Runtime makes a Gemm of these before it looks for quantized operators.
    "matmul-add": {"QGemm": 1},
    "matmul-add-relu": {"QGemm": 3},
}


@pytest.mark.parametrize("options", ["--granularity per-channel", "--granularity per-tensor", "--target ort-cpu-avx2"])
@pytest.mark.parametrize("name", STATIC)
def test_static(quantized, name, options):
    model = optimized(quantized(name, "--mode", "static", *options.split()))
    counts = operators(model)
    for operator, count in STATIC[name].items():
        assert counts[operator] == count, counts
    inner_products = 2 if name == "matmul-attention" else 0
    assert total(counts, *FLOAT_PRODUCTS, *FLOAT_CONVOLUTIONS) == inner_products, counts
    weights = constants(model)
    for node in (node for graph in graphs(model) for node in graph.node):
        assert node.op_type != "DequantizeLinear" or node.input[0] not in weights, node


@pytest.mark.parametrize("name", ["conv-relu", "conv-relu6", "conv-mul-add"])
def test_static_activation_functions_are_absorbed(fused, name):
    counts = fused(name, "--mode", "static")
    assert total(counts, "Relu", "Clip", "Mul", "Add", "BatchNormalization") == 0, counts
    assert counts["QuantizeLinear"] == 1 and counts["DequantizeLinear"] == 1, counts


@pytest.mark.parametrize("name", ["conv2d", "conv-relu", "conv-classifier", "conv-batchnorm", "gemm-mlp"])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_no_stray_pairs(quantized, name, activations):
    """No value is dequantized and quantized again with nothing in between."""
    model = optimized(quantized(name, "--mode", "static", "--activations", activations))
    for graph in graphs(model):
        dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        for node in graph.node:
            assert node.op_type != "QuantizeLinear" or node.input[0] not in dequantized, node
