"""Do budgets of accuracy hold as ONNX Runtime computes the model, and is what is spared what costs most?"""

import json
import tomllib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import run
from onnx_tools import outputs, sqnr, write_samples

CLASSES = 40


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A classifier whose last layer, of few multiply-adds, has a weight far beyond all others."""
    directory = tmp_path_factory.mktemp("budget")
    rng = np.random.default_rng(11)
    head = rng.standard_normal((128, CLASSES)) * 0.1
    head[5, 7] = 12
    shapes = {"w0": (64, 256), "w1": (256, 256), "w2": (256, 128)}
    constants = [numpy_helper.from_array((rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32), name) for name, shape in shapes.items()]
    constants += [numpy_helper.from_array(head.astype(np.float32), "head"), numpy_helper.from_array(rng.standard_normal(CLASSES).astype(np.float32), "bias")]
    nodes, value = [], "x"
    for name in shapes:
        nodes += [helper.make_node("MatMul", [value, name], [f"{name}_y"]), helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"])]
        value = f"{name}_r"
    nodes.append(helper.make_node("Gemm", [value, "head", "bias"], ["scores"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])]
    found = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, CLASSES])]
    graph = helper.make_graph(nodes, "g", inputs, found, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / "model.onnx")
    feeds = [{"x": rng.standard_normal((64, 64)).astype(np.float32)} for _ in range(8)]
    write_samples(directory / "samples", feeds)
    return directory, feeds


def quantized(case, *options):
    """Findings of `quantize`; SQNR and share of changed decisions as ONNX Runtime computes the result."""
    directory, feeds = case
    path = directory / "q.onnx"
    options = ["--granularity", "per-tensor", "--samples", directory / "samples", "-o", path, "--force", *options]
    report = json.loads(run("quantize", directory / "model.onnx", "--json", *options))
    expected, found = outputs(directory / "model.onnx", feeds), outputs(path, feeds, optimize=False)
    changed = np.mean([a.argmax(1) != b.argmax(1) for a, b in zip(expected["scores"], found["scores"])])
    return report.get("findings"), sqnr(expected, found), changed


def test_few_enough_decisions_change(case):
    everything, _, changed = quantized(case, "--min-sqnr", "0", "--max-drop", "100")
    assert everything["spared"] == [] and changed > 0.1
    assert everything["decisions"]["changed"] == pytest.approx(changed, abs=0.01)
    within, _, changed = quantized(case, "--min-sqnr", "0", "--max-drop", "4")
    assert within["spared"] == ["head"] and changed <= 0.04
    assert within["decisions"]["changed"] <= 0.04


def test_enough_signal_is_left(case):
    _, before, _ = quantized(case, "--min-sqnr", "0")
    findings, after, _ = quantized(case, "--min-sqnr", "28")
    assert before < 24 and after >= 27.5 and findings["spared"] == ["head"]


def test_the_ranking_names_what_is_spared(case):
    directory, _ = case
    (directory / "recipe.toml").write_text('[default]\ngranularity = "per-tensor"\n')
    text = run("analyze", directory / "model.onnx", "--samples", directory / "samples", "--recipe", directory / "recipe.toml", "--json")
    layers = json.loads(text)["layers"]
    assert layers[0]["tensor"] == "head" and layers[0]["multiply_adds"] < 0.05
    assert layers[0]["weight_sqnr_db"] < layers[0]["activation_sqnr_db"]
    assert layers[1]["sqnr_db"] > layers[0]["sqnr_db"] + 6


def test_the_emitted_recipe_is_one(case):
    directory, _ = case
    path = directory / "found.toml"
    quantized(case, "--min-sqnr", "28", "--emit-recipe", path)
    written = (directory / "q.onnx").read_bytes()
    found = tomllib.loads(path.read_text())
    assert any(rule["match"] == "name:head" and rule["weights"] == "keep" for rule in found["rule"])
    run("quantize", directory / "model.onnx", "--samples", directory / "samples", "--recipe", path, "-o", directory / "again.onnx")
    assert (directory / "again.onnx").read_bytes() == written
