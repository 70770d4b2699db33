"""Are ONNX models from quantization-aware training taken over exactly, and do they run in integers?

A model is judged by ONNX Runtime with optimizations off, where QuantizeLinear and DequantizeLinear are computed as they are written:
outputs differ from those of the trained model only by biases, which become int32. Optimized, it shows which operators run on codes.
"""

import io
import json
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from conftest import BINARY, run
from onnx_tools import operators, optimized, session, sqnr, write_samples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

FLOAT, INT8, UINT8 = TensorProto.FLOAT, np.int8, np.uint8

INTEGER = ["QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "QLinearAdd", "QLinearGlobalAveragePool", "QLinearConcat"]


class Builder:
    """A graph in the making. Values are names; every method gives the name of what it makes."""

    def __init__(self, shape, opset=17, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.opset = [], [], opset
        self.input = helper.make_tensor_value_info("x", FLOAT, shape)

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, output=None, **attributes):
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def pair(self, value, scale, zero_point, dtype=UINT8, axis=None, shape=()):
        """`value` through QuantizeLinear and DequantizeLinear."""
        scale = np.broadcast_to(np.asarray(scale, np.float32), shape or np.shape(scale))
        name = f"{value}_{len(self.nodes)}"
        params = [self.constant(f"{name}_s", scale), self.constant(f"{name}_z", np.full(scale.shape, zero_point, dtype))]
        attributes = {} if axis is None else {"axis": axis}
        codes = self.node("QuantizeLinear", [value, *params], f"{name}_q", **attributes)
        return self.node("DequantizeLinear", [codes, *params], f"{name}_dq", **attributes)

    def weight(self, name, shape, axis=None, dtype=INT8, zero_point=0, spread=0.3):
        """A weight through a pair, with scales for which some values saturate and some lie half-way between codes."""
        array = self.rng.normal(0, spread, shape).astype(np.float32)
        count = 1 if axis is None else shape[axis]
        scale = self.rng.uniform(0.6, 1.2, count).astype(np.float32) * np.float32(spread * 3 / 127)
        flat = array.reshape(-1)
        flat[::7] = np.float32(2.5) * scale[0]
        self.constant(name, array)
        return self.pair(name, scale if axis is not None else scale[0], zero_point, dtype, axis)

    def model(self, output, shape):
        outputs = [helper.make_tensor_value_info(output, FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "g", [self.input], outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_relu(zero_point=0, dtype=UINT8):
    """Convolutions per channel with ReLU in between, whose codes end at 0 if the zero point is the smallest one."""
    b = Builder([1, 3, 10, 10])
    x = b.pair("x", 0.02, 120 if dtype == UINT8 else -8, dtype)
    for i, (cin, cout) in enumerate([(3, 8), (8, 6)]):
        w = b.weight(f"w{i}", [cout, cin, 3, 3], axis=0)
        bias = b.constant(f"b{i}", b.rng.normal(0, 0.3, cout).astype(np.float32))
        x = b.node("Relu", [b.node("Conv", [x, w, bias])], f"relu{i}")
        x = b.pair(x, 0.03, zero_point, dtype)
    return b.model(x, [1, 6, 6, 6])


def linear(transposed):
    """Two layers as exporters write Linear: Gemm with transB, or MatMul of a transposed weight and the Add of its bias."""
    b = Builder([4, 32])
    x = b.pair("x", 0.02, 128)
    for i, (cin, cout) in enumerate([(32, 24), (24, 10)]):
        w = b.weight(f"w{i}", [cout, cin], axis=0)
        bias = b.constant(f"b{i}", b.rng.normal(0, 0.3, cout).astype(np.float32))
        if transposed:
            y = b.node("MatMul", [x, b.node("Transpose", [w], perm=[1, 0])])
            x = b.node("Add", [y, bias])
        else:
            x = b.node("Gemm", [x, w, bias], transB=1)
        x = b.pair(b.node("Relu", [x], f"relu{i}"), 0.04, 0)
    return b.model(x, [4, 10])


def matmul():
    """A product of three dimensions with a weight whose scales are along its columns, per tensor the second; uint8 weights the third."""
    b = Builder([2, 5, 16])
    x = b.pair("x", 0.03, 100)
    x = b.pair(b.node("MatMul", [x, b.weight("w0", [16, 12], axis=-1)]), 0.05, 128)
    x = b.pair(b.node("MatMul", [x, b.weight("w1", [12, 16])]), 0.05, 128)
    x = b.pair(b.node("MatMul", [x, b.weight("w2", [16, 8], dtype=UINT8, zero_point=131)]), 0.05, 90)
    return b.model(x, [2, 5, 8])


def residual():
    """A sum of two quantized values, then a pool and a layer at the end without a pair."""
    b = Builder([1, 4, 8, 8])
    x = b.pair("x", 0.02, 128)
    y = b.node("Conv", [x, b.weight("w0", [4, 4, 3, 3], axis=0), b.constant("b0", np.float32([0.1, -0.2, 0.3, 0]))], pads=[1, 1, 1, 1])
    y = b.pair(y, 0.03, 110)
    y = b.pair(b.node("Relu", [b.node("Add", [x, y])], "sum"), 0.025, 0)
    y = b.pair(b.node("GlobalAveragePool", [y]), 0.01, 0)
    y = b.node("Flatten", [y])
    return b.model(b.node("Gemm", [y, b.weight("w1", [5, 4]), b.constant("b1", np.ones(5, np.float32))], transB=1), [1, 5])


def moved():
    """Pairs only where training put them: pooling, joining and reshaping have none of their own."""
    b = Builder([1, 4, 12, 12])
    x = b.pair("x", 0.02, 128)
    branches = [b.node("MaxPool", [b.node("Conv", [x, b.weight(f"w{i}", [4, 4, 3, 3], axis=0)])], kernel_shape=[2, 2], strides=[2, 2]) for i in range(2)]
    y = b.pair(b.node("Concat", branches, axis=1), 0.03, 115)
    y = b.node("MaxPool", [y], kernel_shape=[2, 2])
    y = b.node("Conv", [y, b.weight("w2", [3, 8, 3, 3], axis=0)])
    return b.model(b.pair(y, 0.05, 128), [1, 3, 2, 2])


def shared():
    """Codes that are symmetric around a ReLU, and a value that two layers take through pairs of their own."""
    b = Builder([1, 4, 8, 8], opset=13)
    x = b.pair("x", 0.02, 128, shape=(1,))
    y = b.node("Relu", [b.node("Conv", [x, b.weight("w0", [4, 4, 3, 3], axis=0)])], "relu")
    first, second = b.pair(y, 0.03, 128), b.pair(y, 0.03, 128)
    a = b.pair(b.node("Conv", [first, b.weight("w1", [4, 4, 1, 1], axis=0)]), 0.03, 120)
    c = b.pair(b.node("Conv", [second, b.weight("w2", [4, 4, 1, 1], axis=0)]), 0.03, 120)
    return b.model(b.pair(b.node("Add", [a, c]), 0.05, 130), [1, 4, 6, 6])


def stored():
    """Weights that are codes already, and a bias that is int32 already."""
    b = Builder([1, 3, 6, 6])
    x = b.pair("x", 0.02, 128)
    codes = b.constant("codes", b.rng.integers(-128, 128, [5, 3, 3, 3]).astype(INT8))
    scale = b.constant("codes_s", b.rng.uniform(0.001, 0.01, 5).astype(np.float32))
    w = b.node("DequantizeLinear", [codes, scale, b.constant("codes_z", np.zeros(5, INT8))], axis=0)
    bias_scale = numpy_helper.to_array(b.constants[-2]) * np.float32(0.02)
    bias = b.node("DequantizeLinear", [b.constant("bias", np.int32([1, -900, 70000, 0, 5])), b.constant("bias_s", bias_scale)], axis=0)
    return b.model(b.pair(b.node("Conv", [x, w, bias]), 0.1, 128), [1, 5, 4, 4])


def limited():
    """A weight that is limited before it is quantized, one that is transposed before, and a quantized constant that is added."""
    b = Builder([3, 300])
    x = b.pair("x", 0.02, 128)
    b.constant("w0", b.rng.normal(0, 0.1, [240, 300]).astype(np.float32))
    w = b.pair(b.node("Transpose", ["w0"], perm=[1, 0]), b.rng.uniform(0.001, 0.002, 240), 0, INT8, axis=1)
    x = b.pair(b.node("MatMul", [x, w]), 0.05, 128)
    b.constant("w1", b.rng.normal(0, 0.1, [240, 8]).astype(np.float32))
    limits = [b.constant("low", np.float32(-0.127)), b.constant("high", np.float32(0.127))]
    w = b.pair(b.node("Clip", ["w1", *limits], "w1_clipped"), 0.001, 0, INT8)
    x = b.pair(b.node("MatMul", [x, w]), 0.02, 128)
    added = b.pair(b.constant("added", b.rng.normal(0, 1, [8]).astype(np.float32)), 0.01, 120)
    return b.model(b.pair(b.node("Add", [x, added]), 0.03, 128), [3, 8])


def tied():
    """A table that is looked up in float, and as a weight is quantized in two layers."""
    b = Builder([2, 6])
    w = b.weight("table", [6, 6], axis=1)
    x = b.pair("x", 0.02, 128)
    y = b.pair(b.node("MatMul", [x, w]), 0.05, 128)
    y = b.pair(b.node("MatMul", [y, w]), 0.05, 128)
    row = b.node("Gather", ["table", b.constant("index", np.int64([1, 4]))])
    return b.model(b.node("Add", [y, row]), [2, 6])


def clipped():
    """An output without a pair whose range a Clip tells."""
    b = Builder([1, 3, 8, 8])
    x = b.pair("x", 0.02, 128)
    limits = [b.constant("low", np.float32(0)), b.constant("high", np.float32(6))]
    y = b.node("Clip", [b.node("Conv", [x, b.weight("w0", [4, 3, 3, 3], axis=0)]), *limits], "clip")
    y = b.node("Conv", [y, b.weight("w1", [4, 4, 3, 3], axis=0)])
    return b.model(b.pair(y, 0.05, 128), [1, 4, 4, 4])


def partly():
    """A layer whose input no training quantized, one that it did, and one at the end without pairs."""
    b = Builder([1, 3, 8, 8])
    y = b.node("Conv", ["x", b.weight("w0", [4, 3, 3, 3], axis=0)], "first")
    y = b.pair(y, 0.05, 128)
    y = b.node("Relu", [b.node("Conv", [y, b.weight("w1", [4, 4, 3, 3], axis=0)])], "open")
    return b.model(b.node("Conv", [y, b.weight("w2", [2, 4, 3, 3], axis=0)], "last"), [1, 2, 2, 2])


# Model, and operators on codes in ONNX Runtime's graph of what is written.
CASES = {
    "conv-relu": (conv_relu, {"QLinearConv": 2, "Conv": 0, "Relu": 0}),
    "conv-relu-middle": (lambda: conv_relu(7), {"QLinearConv": 2, "Conv": 0}),
    "conv-relu-int8": (lambda: conv_relu(-128, INT8), {"QLinearConv": 2, "Conv": 0, "Relu": 0}),
    "gemm": (lambda: linear(False), {"QGemm": 2, "Gemm": 0}),
    "matmul-transposed": (lambda: linear(True), {"QGemm": 2, "MatMul": 0, "Gemm": 0, "Transpose": 0}),
    "matmul": (matmul, {"QLinearMatMul": 3, "MatMul": 0}),
    "residual": (residual, {"QLinearConv": 1, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Relu": 0}),
    "moved": (moved, {"QLinearConv": 3, "QLinearConcat": 1, "Conv": 0}),
    "shared": (shared, {"QLinearConv": 3, "QLinearAdd": 1, "Conv": 0}),
    "stored": (stored, {"QLinearConv": 1, "Conv": 0}),
    "partly": (partly, {"QLinearConv": 0}),
    "limited": (limited, {"QLinearMatMul": 2, "QLinearAdd": 1, "MatMul": 0, "Transpose": 0}),
    "tied": (tied, {"QLinearMatMul": 2, "MatMul": 0}),
}


class FakeQuantized(nn.Module):
    """Convolution, ReLU, pool and Linear with fake quantization of everything, as torch.ao leaves it in a graph."""

    def __init__(self, seven_bits=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.conv2, self.linear = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 10)
        self.highest = 127 if seven_bits else 255
        for i, layer in enumerate([self.conv, self.conv2]):
            self.register_buffer(f"scale{i}", layer.weight.detach().flatten(1).abs().amax(1) / 127.5)
            self.register_buffer(f"zero_point{i}", torch.zeros(8, dtype=torch.int32))

    def activation(self, x, scale, zero_point):
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, self.highest)

    def weight(self, layer, scale, zero_point):
        return torch.fake_quantize_per_channel_affine(layer.weight, scale, zero_point, 0, -128, 127)

    def forward(self, x):
        x = self.activation(x, 0.03, 60)
        x = self.activation(torch.relu(nn.functional.conv2d(x, self.weight(self.conv, self.scale0, self.zero_point0), self.conv.bias)), 0.012, 0)
        x = nn.functional.max_pool2d(x, 2)
        x = self.activation(torch.relu(nn.functional.conv2d(x, self.weight(self.conv2, self.scale1, self.zero_point1), self.conv2.bias, groups=2)), 0.01, 0)
        x = self.activation(nn.functional.adaptive_avg_pool2d(x, 1), 0.004, 0).flatten(1)
        w = torch.fake_quantize_per_tensor_affine(self.linear.weight, 0.003, 0, -128, 127)
        return self.activation(nn.functional.linear(x, w, self.linear.bias), 0.01, 64)


def export(module, shape):
    file = io.BytesIO()
    torch.onnx.export(module.eval(), (torch.zeros(shape),), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


CASES["torch"] = (lambda: export(FakeQuantized(), (1, 3, 12, 12)), {"QLinearConv": 2, "QGemm": 1, "Conv": 0, "Gemm": 0})
CASES["torch-7-bits"] = (lambda: export(FakeQuantized(True), (1, 3, 12, 12)), {"QLinearConv": 2, "QGemm": 1, "Conv": 0, "Gemm": 0})


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """taken(name, options…): the trained model, what it became, and its sidecar."""
    directory, done = tmp_path_factory.mktemp("qat"), {}

    def quantized(name, *options):
        if (name, options) not in done:
            source, path = directory / f"{name}.onnx", directory / f"{name}-{len(done)}.int8.onnx"
            if not source.exists():
                onnx.save(CASES[name][0](), source)
            run("quantize", source, "-o", path, "--quiet", "--durability", "none", *options)
            run("verify", path)
            done[name, options] = path
        path = done[name, options]
        return onnx.load(directory / f"{name}.onnx"), onnx.load(path), json.loads(path.with_suffix(".json").read_text())

    return quantized


def every_case(function):
    return pytest.mark.parametrize("name", CASES)(function)


# Cases in which every constant goes to its pair as it is.
DIRECT = [name for name in CASES if name != "limited"]


def constants(model):
    """Every constant, by name: initializers, Constant nodes, and what Identity gives other names."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def producers(model):
    return {name: node for node in model.graph.node for name in node.output}


def axis_of(node):
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def quantize_linear(array, scale, zero_point, axis):
    """Codes that ONNX Runtime computes."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis)],
            "g",
            [helper.make_tensor_value_info("x", FLOAT, array.shape)],
            [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(zero_point.dtype), array.shape)],
            [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero_point, "z")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return session(model, optimize=False).run(None, {"x": array})[0]


def trained_weights(model):
    """Name -> (codes, scale, zero point) of every constant weight that passes through a pair, in the order of its axes."""
    known, made, found = constants(model), producers(model), {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in known and known[node.input[0]].dtype != np.int32:
            found[node.input[0]] = tuple(known[name] for name in node.input)
        quantize = made.get(node.input[0])
        if quantize is not None and quantize.op_type == "QuantizeLinear" and quantize.input[0] in known:
            array, scale, zero_point = (known[name] for name in quantize.input)
            found[quantize.input[0]] = quantize_linear(array, scale, zero_point, axis_of(quantize)), scale, zero_point
    return found


@pytest.mark.parametrize("name", DIRECT)
def test_weights_are_quantized_as_they_were_trained(taken, name):
    trained, ours, sidecar = taken(name)
    known, expected = constants(ours), trained_weights(trained)
    assert sidecar["tensors"].keys() == expected.keys()
    for weight, (codes, scale, zero_point) in expected.items():
        # A weight that a Transpose hands on is stored as it is taken.
        stored = known.get(f"{weight}_quantized", known.get(f"{weight}_transposed_quantized"))
        stored = stored if f"{weight}_quantized" in known else stored.T
        assert stored.dtype == codes.dtype and np.array_equal(stored, codes), weight
        record = sidecar["tensors"][weight]
        assert record["observer"] == "trained"
        assert np.array_equal(np.float32(record["scale"]), np.atleast_1d(scale)), weight
        assert np.array_equal(record["zero_point"], np.atleast_1d(zero_point)), weight
        stored_scale = known[f"{weight}_scale"]
        assert stored_scale.tobytes() == scale.tobytes(), weight
    for node in ours.graph.node:
        assert node.op_type != "QuantizeLinear" or node.input[0] not in known, node


def test_weights_that_are_transposed_or_limited_first(taken):
    trained, ours, sidecar = taken("limited")
    exposed = onnx.ModelProto.FromString(trained.SerializeToString())
    made = producers(trained)
    products = [node for node in trained.graph.node if node.op_type == "MatMul"]
    codes = {name: made[node.input[1]].input[0] for name, node in zip(["w0", "w1_clipped"], products)}
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in codes.values())
    expected = dict(zip(codes, session(exposed, optimize=False).run(list(codes.values()), feeds_of(trained)[0])))
    known = constants(ours)
    assert sidecar["tensors"].keys() == codes.keys()
    assert sidecar["tensors"]["w0"]["axis"] == 0 and len(sidecar["tensors"]["w0"]["scale"]) == 240
    assert np.array_equal(known["w0_transposed_quantized"], expected["w0"])
    assert np.array_equal(known["w1_clipped_quantized"], expected["w1_clipped"])
    assert np.abs(known["w1_clipped_quantized"].astype(int)).max() == 127
    # The constant that is added is codes too.
    assert not any(node.op_type == "QuantizeLinear" and node.input[0] in known for node in ours.graph.node)


def activation_params(model):
    """What QuantizeLinear nodes of values that are no constants say, each once."""
    known = constants(model)
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in known]
    return {(known[node.input[1]].tobytes(), known[node.input[2]].tobytes(), known[node.input[2]].dtype) for node in nodes}


@pytest.mark.parametrize("name", DIRECT)
def test_activations_are_quantized_as_they_were_trained(taken, name):
    trained, ours, sidecar = taken(name)
    assert activation_params(ours) == activation_params(trained)
    recorded = {(np.float32(record["scale"]).tobytes(), record["zero_point"]) for record in sidecar["activations"].values()}
    known = constants(trained)
    for node in trained.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in known:
            assert (known[node.input[1]].tobytes(), int(known[node.input[2]].item())) in recorded
            assert node.input[0] in sidecar["activations"]
    assert all(record["observer"] == "trained" for record in sidecar["activations"].values())


def feeds_of(model, count=8):
    (value,) = model.graph.input
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return [{value.name: np.random.default_rng(seed).normal(0, 1.2, shape).astype(np.float32)} for seed in range(count)]


@every_case
def test_outputs_differ_by_the_rounding_of_biases_only(taken, name):
    trained, ours, _ = taken(name)
    before, after = session(trained, optimize=False), session(ours, optimize=False)
    (output,) = trained.graph.output
    made = producers(trained).get(output.name)
    # Where the last value is quantized, a bias that is rounded otherwise may move it by one code.
    step = float(constants(trained)[made.input[1]]) if made.op_type == "DequantizeLinear" else 1e-4
    for feed in feeds_of(trained):
        (expected,), (found,) = before.run(None, feed), after.run(None, feed)
        assert np.abs(expected - found).max() <= step * 1.0001
        assert np.mean(np.abs(expected - found) > 1e-6 + step / 2) <= 0.02 or made.op_type != "DequantizeLinear"
    if not any(node.op_type in ("Conv", "Gemm", "Add") and len(node.input) > 2 or node.op_type == "Add" for node in trained.graph.node):
        for feed in feeds_of(trained):
            assert np.array_equal(before.run(None, feed)[0], after.run(None, feed)[0])


@every_case
def test_everything_runs_in_integers(taken, name):
    _, ours, _ = taken(name)
    counts = operators(optimized(ours))
    for op_type, expected in CASES[name][1].items():
        assert counts[op_type] == expected, (op_type, counts)


@every_case
def test_the_sidecar_reproduces_it(taken, name, tmp_path):
    trained, ours, sidecar = taken(name)
    source, recipe = tmp_path / "model.onnx", tmp_path / "recipe.json"
    onnx.save(trained, source)
    recipe.write_text(json.dumps(sidecar))
    run("quantize", source, "--recipe", recipe, "-o", tmp_path / "again.onnx", "--quiet")
    again = onnx.load(tmp_path / "again.onnx")
    assert again.SerializeToString() == ours.SerializeToString()


@every_case
def test_it_is_valid_onnx_and_reads_back(taken, name, tmp_path):
    _, ours, _ = taken(name)
    onnx.checker.check_model(ours, full_check=True)
    onnx.save(ours, tmp_path / "ours.onnx")
    run("dequantize", tmp_path / "ours.onnx", "-o", tmp_path / "float.onnx")
    left = operators(onnx.load(tmp_path / "float.onnx"))
    assert not left["DequantizeLinear"]


@every_case
def test_ignored_it_is_a_float_model_like_any_other(taken, name, tmp_path):
    trained, _, _ = taken(name)
    onnx.save(trained, tmp_path / "model.onnx")
    samples = write_samples(tmp_path / "samples", feeds_of(trained))
    path = tmp_path / "anew.onnx"
    run("quantize", tmp_path / "model.onnx", "--ignore-qat", "--samples", samples, "--min-sqnr", 0, "-o", path)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert all(record["observer"] == "min-max" for record in sidecar["tensors"].values()) and sidecar["tensors"]
    assert all(record["observer"] == "min-max" for record in sidecar["activations"].values()) and sidecar["activations"]
    anew = session(path)
    expected = {"y": [session(trained, optimize=False).run(None, feed)[0] for feed in feeds_of(trained)]}
    # Uncalibrated pairs clip what the float model does not, so the two are near, not equal.
    assert sqnr(expected, {"y": [anew.run(None, feed)[0] for feed in feeds_of(trained)]}) > 3


def test_layers_without_ranges_stay_in_float_and_it_is_said(taken, tmp_path):
    trained, ours, _ = taken("partly")
    for feed in feeds_of(trained):
        assert np.array_equal(session(trained, optimize=False).run(None, feed)[0], session(ours, optimize=False).run(None, feed)[0])
    onnx.save(trained, tmp_path / "partly.onnx")
    report = json.loads(run("quantize", tmp_path / "partly.onnx", "--dry-run", "--json"))
    said = "\n".join(report["notes"])
    assert "input" in said and "first_node" in said and "output" in said and "--samples" in said


def test_samples_tell_the_ranges_that_training_did_not(taken, tmp_path):
    trained, _, _ = taken("partly")
    onnx.save(trained, tmp_path / "partly.onnx")
    samples = write_samples(tmp_path / "samples", feeds_of(trained))
    run("quantize", tmp_path / "partly.onnx", "--samples", samples, "-o", tmp_path / "all.onnx")
    sidecar = json.loads((tmp_path / "all.json").read_text())
    observers = {name: record["observer"] for name, record in sidecar["activations"].items()}
    assert observers["first"] == "trained" and observers["x"] == "min-max" and observers["open"] == "min-max"
    assert all(record["observer"] == "trained" for record in sidecar["tensors"].values())
    assert operators(optimized(onnx.load(tmp_path / "all.onnx")))["QLinearConv"] == 3
    # In several steps the same.
    run("calibrate", tmp_path / "partly.onnx", "--samples", samples, "-o", tmp_path / "all.stats")
    run("quantize", tmp_path / "partly.onnx", "--stats", tmp_path / "all.stats", "-o", tmp_path / "stats.onnx")
    assert (tmp_path / "stats.onnx").read_bytes() == (tmp_path / "all.onnx").read_bytes()


def test_a_clip_tells_a_range(tmp_path):
    onnx.save(clipped(), tmp_path / "clipped.onnx")
    run("quantize", tmp_path / "clipped.onnx", "-o", tmp_path / "ours.onnx")
    ours, sidecar = onnx.load(tmp_path / "ours.onnx"), json.loads((tmp_path / "ours.json").read_text())
    assert (sidecar["activations"]["clip"]["min"], sidecar["activations"]["clip"]["max"]) == (0, 6)
    assert "calibration" not in sidecar
    counts = operators(optimized(ours))
    assert counts["QLinearConv"] == 2 and counts["Clip"] == 0
    feeds = feeds_of(ours)
    expected, found = ({"y": [session(model, optimize=False).run(None, feed)[0] for feed in feeds]} for model in (clipped(), ours))
    assert sqnr(expected, found) > 30


def test_as_operators_on_codes(taken):
    for name in ("conv-relu", "gemm", "matmul", "stored"):
        trained, ours, _ = taken(name, "--format", "qoperator")
        feeds = feeds_of(trained)
        expected, found = ({"y": [session(model, optimize=False).run(None, feed)[0] for feed in feeds]} for model in (trained, ours))
        # Kernels round products of scales, not values.
        assert sqnr(expected, found) > 30
    assert operators(ours)["QLinearConv"] == 1


def test_what_cannot_be_done_is_refused(taken, tmp_path):
    trained, _, _ = taken("gemm")
    onnx.save(trained, tmp_path / "model.onnx")
    for options in (["--mode", "dynamic"], ["--mode", "weight-only"], ["--transform", "equalize"], ["--rounding", "adaround"], ["--min-sqnr", "20"]):
        done = subprocess.run([BINARY, "quantize", tmp_path / "model.onnx", *options], capture_output=True, text=True)
        assert done.returncode == 2 and "quantization-aware training" in done.stderr, (options, done.stderr)
