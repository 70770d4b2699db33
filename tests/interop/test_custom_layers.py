"""Layers that a recipe declares: the ONNX example of docs/recipes.md, computed by a node of another domain."""

import json
import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from conftest import ROOT, run


class ScaledLinear(OpRun):
    """The user's own operator: a product with a weight `[out, in]`, times a number."""

    op_domain = "com.example"

    def _run(self, x, weight, factor=1.0):
        return ((x @ weight.T * np.float32(factor)).astype(np.float32),)


def model(path, random):
    weight = random.normal(size=(48, 32)).astype(np.float32) * np.logspace(-2, 0, 48, dtype=np.float32)[:, None]
    head = random.normal(size=(48, 64)).astype(np.float32)
    nodes = [
        helper.make_node("ScaledLinear", ["x", "own.weight"], ["h"], domain="com.example", name="own", factor=0.5),
        helper.make_node("MatMul", ["h", "head.weight"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
        [numpy_helper.from_array(weight, "own.weight"), numpy_helper.from_array(head, "head.weight")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return weight


def sidecar(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_weight_of_an_operator_of_another_domain(tmp_path):
    random = np.random.default_rng(3)
    weight = model(tmp_path / "m.onnx", random)
    text = (ROOT / "docs/recipes.md").read_text()
    recipe = re.search(r'```toml title="onnx-layers.toml"\n(.*?)```', text, re.DOTALL).group(1)
    (tmp_path / "layers.toml").write_text(recipe)
    run("quantize", tmp_path / "m.onnx", "--mode", "weight-only", "-o", tmp_path / "without.onnx")
    assert "own.weight" in sidecar(tmp_path / "without.onnx")["kept"]

    run("quantize", tmp_path / "m.onnx", "--mode", "weight-only", "--recipe", tmp_path / "layers.toml", "-o", tmp_path / "q.onnx")
    quantized = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(quantized)
    record = sidecar(tmp_path / "q.onnx")["tensors"]["own.weight"]
    scale = np.array(record["scale"], np.float32)
    np.testing.assert_allclose(scale, np.abs(weight).max(1) / 127, rtol=0.01)
    codes = np.clip(np.rint(weight / scale[:, None]), -128, 127)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    assert any(array.dtype == np.int8 and np.array_equal(array, codes) for array in stored.values())

    x = random.normal(size=(7, 32)).astype(np.float32)
    (expected,) = ReferenceEvaluator(str(tmp_path / "m.onnx"), new_ops=[ScaledLinear]).run(None, {"x": x})
    (found,) = ReferenceEvaluator(quantized, new_ops=[ScaledLinear]).run(None, {"x": x})
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)) > 35

    # A rule may then be about the operator, too.
    (tmp_path / "keep.toml").write_text(recipe + '\n[[rule]]\nop = "com.example::ScaledLinear"\nweights = "keep"\n')
    run("quantize", tmp_path / "m.onnx", "--recipe", tmp_path / "keep.toml", "-o", tmp_path / "kept.onnx")
    assert "own.weight" in sidecar(tmp_path / "kept.onnx")["kept"]
