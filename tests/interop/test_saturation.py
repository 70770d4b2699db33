"""Pairs of int8 weights that saturate without VNNI: are they those that `quantize` finds, and are none left after `--saturation nudge`?"""

import itertools
import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import without_vnni
from conftest import run
from onnx_tools import saturates

INT16 = (-(2**15), 2**15 - 1)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """kernels(model, feeds, optimize) are outputs of kernels that saturate: this machine's, or those that it does not choose itself."""
    directory = tmp_path_factory.mktemp("without_vnni")
    environment = dict(os.environ) if saturates() else without_vnni.prepare(directory)
    if environment is None:
        pytest.skip("this machine's kernels do not saturate, and others cannot be had without a C compiler and objdump")
    return lambda model, feeds, optimize=True: without_vnni.outputs(environment, directory, model, feeds, optimize)


def write(path, nodes, constants, shape):
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None)))
    if nodes[-1].op_type in ("MatMul", "Gemm"):
        outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph(nodes, "g", [inputs], [outputs], [numpy_helper.from_array(value, name) for name, value in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def codes_of(path):
    """The int8 constants of rank 2 and more of a model."""
    constants = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.int32) for tensor in constants}


# Which pairs


def all_pairs(k):
    """A row for each pair of k weights: both are the largest that there is, and all others 0."""
    pairs = list(itertools.combinations(range(k), 2))
    rows = np.zeros((len(pairs), k), np.float32)
    for row, pair in zip(rows, pairs):
        row[list(pair)] = 127
    return rows


def layer(op, weight, **attributes):
    """One layer, the shape that it takes, and its weight."""
    bias = {} if op == "MatMul" else {"b": np.zeros(weight.shape[1 if op == "Gemm" and not attributes.get("transB") else 0], np.float32)}
    nodes = [helper.make_node(op, ["x", "w", *bias], ["y"], **attributes)]
    if op == "Conv":
        shape = [1, weight.shape[1] * attributes.get("group", 1), *(dim + 1 for dim in weight.shape[2:])]
    else:
        shape = [3, weight.shape[1 if attributes.get("transB") else 0]]
    return nodes, {"w": weight, **bias}, shape


def convolution(*dims, group=1):
    """A convolution with a row for each pair, in every group."""
    rows = all_pairs(int(np.prod(dims)))
    return layer("Conv", np.tile(rows, (group, 1)).reshape(-1, *dims), group=group)


def depthwise(*dims, multiplier=1):
    rows = all_pairs(int(np.prod(dims)))
    rows = rows[: len(rows) // multiplier * multiplier]
    return layer("Conv", rows.reshape(-1, 1, *dims), group=len(rows) // multiplier)


LAYERS = {
    "matmul": lambda: layer("MatMul", all_pairs(8).T.copy()),
    "matmul-odd": lambda: layer("MatMul", all_pairs(9).T.copy()),
    "gemm": lambda: layer("Gemm", all_pairs(7).T.copy()),
    "gemm-transB": lambda: layer("Gemm", all_pairs(7), transB=1),
    "conv": lambda: convolution(4, 2, 2),
    "conv-odd": lambda: convolution(3, 2, 2),
    "conv-one-channel": lambda: convolution(1, 3, 3),
    "conv-pointwise": lambda: convolution(7, 1, 1),
    "conv-1d": lambda: convolution(3, 3),
    "conv-groups": lambda: convolution(3, 1, 3, group=2),
    "conv-groups-even": lambda: convolution(2, 1, 3, group=3),
    "depthwise": lambda: depthwise(2, 3),
    "depthwise-multiplied": lambda: depthwise(2, 3, multiplier=3),
}
STATIC = ["--min-sqnr", "0", "--min-elements", "1"]
DYNAMIC = ["--mode", "dynamic", "--min-elements", "1"]
WAYS = {
    "qdq": STATIC,
    "qdq-int8": [*STATIC, "--activations", "int8"],
    "qoperator": [*STATIC, "--format", "qoperator"],
    "qoperator-int8": [*STATIC, "--format", "qoperator", "--activations", "int8"],
    "dynamic": DYNAMIC,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_what_saturates_is_what_is_found_and_nudged(name, way, kernels, tmp_path):
    nodes, constants, shape = LAYERS[name]()
    if way == "dynamic" and nodes[-1].op_type == "Conv":
        pytest.skip("convolutions are not quantized dynamically")
    model = write(tmp_path / "m.onnx", nodes, constants, shape)
    feed = {"x": np.ones(shape, np.float32)}
    feed["x"].flat[0] = 0.99  # so that a range can be told
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples/0.npz", **feed)
    samples = [] if way == "dynamic" else ["--samples", tmp_path / "samples"]

    def quantized(how):
        path = tmp_path / f"{how}.onnx"
        run("quantize", model, "-o", path, "--quiet", "--saturation", how, *samples, *WAYS[way])
        (codes,) = codes_of(path).values()
        return path, codes, json.loads(path.with_suffix(".json").read_text())["tensors"]["w"].get("saturation")

    # Which outputs are wrong: 2 x 255 x 127 becomes 32767, about half of it.
    path, codes, before = quantized("report")
    (found,), (exact,) = kernels(path, [feed])[0], kernels(model, [feed], False)[0]
    channels = 1 if nodes[-1].op_type == "Conv" else found.ndim - 1
    others = tuple(axis for axis in range(found.ndim) if axis != channels)
    wrong = (np.abs(found - exact) > 0.25 * np.abs(exact).max()).any(axis=others)
    # Which were nudged. Codes are [out, ...] or [in, out].
    nudged, changed, after = quantized("nudge")
    is_first = nodes[-1].op_type == "Conv" or (codes.shape == constants["w"].shape and constants["w"].shape[0] == len(wrong))
    rows = (changed != codes).any(axis=tuple(range(1, codes.ndim)) if is_first else 0)
    assert list(np.flatnonzero(rows)) == list(np.flatnonzero(wrong)), "the rows that were nudged are those that saturate"
    possible = before["possible"] if before else 0
    assert possible == wrong.sum()
    if after:
        assert after["changed"] == 2 * possible and before["changed"] == 0
    # Nothing is wrong any more: what is computed is what the codes say.
    (fused,) = kernels(nudged, [feed])[0]
    expected = np.where(rows, 128 / 254, 1.0).reshape([-1 if axis == channels else 1 for axis in range(fused.ndim)]) * exact
    assert np.allclose(fused, expected, atol=0.02 * np.abs(exact).max())


# What it costs


def network():
    """Layers of all kinds, whose inputs are large together, so that sums do saturate."""
    rng = np.random.default_rng(11)

    def weight(*shape):
        return (0.1 * np.abs(rng.standard_normal(shape)) * rng.choice([1, 1, 1, -1], shape)).astype(np.float32)

    constants = {"c1": weight(16, 3, 3, 3), "c2": weight(24, 16, 3, 3), "m": weight(24, 48), "g": weight(32, 48), "b": np.zeros(32, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["h1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Conv", ["r1", "c2"], ["h2"], strides=[2, 2]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["h3"]),
        helper.make_node("Relu", ["h3"], ["r3"]),
        helper.make_node("Gemm", ["r3", "g", "b"], ["y"], transB=1),
    ]
    feeds = [{"x": (0.7 + 0.3 * rng.random((4, 3, 12, 12))).astype(np.float32)} for _ in range(16)]
    return nodes, constants, [None, 3, 12, 12], feeds


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saturation")
    nodes, constants, shape, feeds = network()
    path = write(directory / "m.onnx", nodes, constants, shape)
    (directory / "samples").mkdir()
    for i, feed in enumerate(feeds[:12]):
        np.savez(directory / f"samples/{i:02}.npz", **feed)
    return path, directory / "samples", feeds[12:]


def error(expected, found):
    """Relative root mean square error."""
    noise = sum(((a.astype(np.float64) - b) ** 2).sum() for (a,), (b,) in zip(expected, found))
    return np.sqrt(noise / sum((a.astype(np.float64) ** 2).sum() for (a,) in expected))


@pytest.mark.parametrize("rounding", ["nearest", "mse", "gptq", "adaround"])
@pytest.mark.parametrize("how", ["report", "nudge", "7bit", "uint8"])
def test_a_fused_model_is_as_good_as_an_unfused_one(how, rounding, model, kernels, tmp_path):
    path, samples, feeds = model
    target = tmp_path / "q.onnx"
    options = ["--observer", "mse"] if rounding == "mse" else ["--rounding", rounding]
    options += ["--target", "ort-cpu-avx2"] if how == "uint8" else ["--saturation", how]
    run("quantize", path, "--samples", samples, "-o", target, "--quiet", *STATIC, *options)
    expected = kernels(path, feeds, False)
    fused, unfused = (error(expected, kernels(target, feeds, optimize)) for optimize in (True, False))
    if how == "report":
        assert fused > 2 * unfused, f"fused {fused:.4f}, unfused {unfused:.4f}"
    else:
        assert fused < 1.1 * unfused + 0.002, f"fused {fused:.4f}, unfused {unfused:.4f}"


def test_a_recurrent_layer_is_the_same_on_processors_with_and_without_vnni(kernels, tmp_path):
    if saturates():
        pytest.skip("this machine's kernels saturate, so there are no exact ones to compare with")
    rng = np.random.default_rng(7)
    inputs, hidden = 31, 33
    constants = {
        "w": np.abs(rng.standard_normal((2, 4 * hidden, inputs)) * 0.05).astype(np.float32),
        "r": np.abs(rng.standard_normal((2, 4 * hidden, hidden)) * 0.05).astype(np.float32),
    }
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], direction="bidirectional", hidden_size=hidden)]
    model = write(tmp_path / "m.onnx", nodes, constants, [5, 2, inputs])
    feeds = [{"x": (0.8 + 0.2 * rng.random((5, 2, inputs))).astype(np.float32)}]
    differ = {}
    for how in ("report", "nudge", "7bit"):
        target = tmp_path / f"{how}.onnx"
        run("quantize", model, "-o", target, "--quiet", "--saturation", how, *DYNAMIC)
        records = json.loads(target.with_suffix(".json").read_text())["tensors"]
        assert records["w"]["saturation"]["pairs"] == 2 * 4 * hidden * (inputs // 2)
        assert records["r"]["saturation"]["pairs"] == 2 * 4 * hidden * (hidden // 2)
        exact = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, feeds[0])
        differ[how] = float(np.abs(kernels(target, feeds)[0][0] - exact[0]).max())
    assert differ["report"] > 0.01 and differ["nudge"] < 1e-5 and differ["7bit"] < 1e-5, differ


# The same without such kernels


def saturating_product(activations, weights):
    """Products [M, K] x [K, N] as kernels without VNNI add them, and how many sums of pairs are off."""
    k = weights.shape[0] // 2 * 2
    products = activations[:, :, None].astype(np.int32) * weights[None]
    pairs = products[:, 0:k:2] + products[:, 1:k:2]
    clipped = pairs.clip(*INT16)
    return clipped.sum(1) + products[:, k:].sum(1), int((clipped != pairs).sum())


@pytest.mark.parametrize("rounding", ["nearest", "mse", "gptq", "adaround"])
def test_no_sum_of_written_codes_saturates_after_nudging(rounding, tmp_path):
    rng = np.random.default_rng(3)
    weight = np.abs(rng.standard_normal((33, 20))).astype(np.float32)
    model = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, [None, 33])
    (tmp_path / "samples").mkdir()
    rows = [rng.random((40, 33)).astype(np.float32) ** 0.5 for _ in range(4)]
    for i, x in enumerate(rows):
        np.savez(tmp_path / f"samples/{i}.npz", x=x)
    errors, off = {}, {}
    for how in ("report", "nudge", "7bit"):
        target = tmp_path / f"{how}.onnx"
        options = ["--observer", "mse"] if rounding == "mse" else ["--rounding", rounding]
        run("quantize", model, "--samples", tmp_path / "samples", "-o", target, "--quiet", "--saturation", how, *STATIC, *options)
        (codes,) = codes_of(target).values()
        document = json.loads(target.with_suffix(".json").read_text())
        activation, record = document["activations"]["x"], document["tensors"]["w"]
        x = np.concatenate(rows)
        quantized = np.clip(np.rint(x / np.float32(activation["scale"])) + activation["zero_point"], 0, 255).astype(np.int32)
        sums, off[how] = saturating_product(quantized, codes)
        scale = activation["scale"] * np.array(record["scale"])
        unsaturated = (quantized - activation["zero_point"]) @ codes * scale
        saturated = (sums - activation["zero_point"] * codes.sum(0)) * scale
        exact = x.astype(np.float64) @ weight
        errors[how] = [np.sqrt(((found - exact) ** 2).mean()) for found in (unsaturated, saturated)]
        found = record["saturation"]
        assert found["pairs"] == 16 * 20 and found["observed_codes"] == [int(quantized.min()), int(quantized.max())]
        if how != "7bit":
            assert found["samples"] == {"saturated": off["report"], "sums": 160 * 16 * 20}, "sums that saturated before codes were changed"
    assert off["report"] > 0 and errors["report"][1] > 2 * errors["report"][0]
    for how in ("nudge", "7bit"):
        assert off[how] == 0 and errors[how][0] == errors[how][1]
