"""Do roundings that look at layer inputs keep the outputs of ONNX models closer than the nearest codes, as ONNX Runtime computes them?"""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import run

SAMPLES = 24


def sources(rng, shape, mixing):
    """Values whose last axis mixes fewer sources, so that features depend on each other."""
    return (rng.standard_normal((*shape[:-1], mixing.shape[0])) @ mixing + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def products():
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(shape).astype(np.float32) * 0.2 for shape in ((96, 128), (64, 128))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b"], ["y"], transB=1),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in (("w0", weights[0]), ("w1", weights[1]), ("b", np.zeros(64, np.float32)))]
    mixing = rng.standard_normal((20, 96))
    return nodes, constants, [None, 96], lambda rng: sources(rng, (8, 96), mixing)


def convolutions():
    rng = np.random.default_rng(6)
    shapes = {"w0": (32, 8, 3, 3), "w1": (24, 16, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["h"], pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w1", "b1"], ["y"], group=2, dilations=[1, 2]),
    ]
    constants = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.2, name) for name, shape in shapes.items()]
    constants += [numpy_helper.from_array(np.zeros(shapes[f"w{i}"][0], np.float32), f"b{i}") for i in range(2)]
    mixing = rng.standard_normal((3, 8))
    return nodes, constants, [None, 8, 20, 24], lambda rng: np.ascontiguousarray(np.moveaxis(sources(rng, (1, 20, 24, 8), mixing), -1, 1))


MODELS = {"products": products, "convolutions": convolutions}
# Options, and the methods that are to be better than the nearest codes with the same options.
CASES = {
    "weight-only-int4": (["--mode", "weight-only", "--weights", "int4"], ["gptq", "adaround"]),
    "weight-only-int8": (["--mode", "weight-only"], ["gptq"]),
    "static": (["--mode", "static", "--min-sqnr", "0"], ["gptq"]),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    nodes, constants, shape, make = MODELS[request.param]()
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    path = directory / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (directory / "samples").mkdir()
    rng = np.random.default_rng(1)
    for i in range(SAMPLES):
        np.savez(directory / "samples" / f"{i:02}.npz", x=make(rng))
    return path, [make(rng) for _ in range(12)]


def outputs(path, inputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": x})[0] for x in inputs]


def error(model, target, options):
    path, inputs = model
    run("quantize", path, "--samples", path.parent / "samples", "-o", target, "--force", "--quiet", *options)
    onnx.checker.check_model(target, full_check=True)
    pairs = list(zip(outputs(path, inputs), outputs(target, inputs)))
    return sum(float(((a - b) ** 2).sum()) for a, b in pairs) / sum(float((a**2).sum()) for a, _ in pairs)


@pytest.mark.parametrize("case", CASES)
def test_outputs_that_were_not_seen_change_less(model, tmp_path, case):
    options, methods = CASES[case]
    nearest = error(model, tmp_path / "nearest.onnx", options)
    for method in methods:
        found = error(model, tmp_path / "found.onnx", [*options, "--rounding", method])
        assert found < (0.9 if case == "static" else 0.7) * nearest, f"{method}: {found:.2e}, nearest {nearest:.2e}"


def test_ranges_by_outputs_are_better_than_by_weights(model, tmp_path):
    options = ["--mode", "weight-only", "--weights", "int4"]
    by_weights = error(model, tmp_path / "mse.onnx", [*options, "--observer", "mse"])
    assert error(model, tmp_path / "output.onnx", [*options, "--observer", "output-mse"]) < 0.97 * by_weights


def test_threads_do_not_matter(model, tmp_path):
    for threads in (1, 3):
        run("quantize", model[0], "--samples", model[0].parent / "samples", "--rounding", "gptq", "--observer", "output-mse", "--threads", threads, "-o", tmp_path / f"{threads}.onnx", "--quiet")
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "3.onnx").read_bytes()


def test_too_little_memory_is_refused(model, tmp_path):
    run("quantize", model[0], "--samples", model[0].parent / "samples", "--rounding", "gptq", "--max-memory", "64KiB", "-o", tmp_path / "q.onnx", status=6)
    assert not (tmp_path / "q.onnx").exists()
