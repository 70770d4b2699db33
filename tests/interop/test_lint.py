"""Verdicts of `qtool lint` are what ONNX Runtime's optimizer does."""

import collections
import logging

import onnx
import pytest
from onnxruntime import quantization

import lint_graphs
import onnx_models
import onnx_real
from conftest import run
from lint_tools import ALL, EXTENDED, KERNELS, differences, expected, lint, optimized, refusal
from onnx_tools import Quantizer, write_samples
from test_onnx_real import Feeds, onnxruntime_quantizes, silence

# How many graphs are drawn.
SEEDS = 1300

# Where verdicts and runtime do not agree, and why: docs/lint.md says so too.
EXPLAINED = {
    ("magika", "weight-only"): ["MatMulNBits: expected 1, found 2"],
    ("magika", "static"): ["MatMulIntegerToFloat: expected 1, found 2"],
    ("tied-embedding", "weight-only-per-tensor"): ["MatMulNBits: expected 0, found 1"],
}

RUNNABLE = [name for name in onnx_models.CASES if onnx_models.CASES[name]().runs]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return Quantizer(tmp_path_factory.mktemp("lint"))


@pytest.mark.parametrize("kind", range(len(lint_graphs.KINDS)), ids=[f"{kind.__name__}-{i}" for i, kind in enumerate(lint_graphs.KINDS)])
def test_drawn_graphs(tmp_path, kind):
    wrong, judged = {}, collections.Counter()
    for seed in range(kind, SEEDS, len(lint_graphs.KINDS)):
        model, _ = lint_graphs.graph(seed)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        found = differences(path)
        if found is None:
            # What ONNX Runtime does not load must not be called good.
            verdicts = {node["node"]: node["verdict"] for node in lint(path)["nodes"]}
            found = [f"not refused: {verdicts}"] if set(verdicts.values()) <= {"integer"} else []
        if found:
            wrong[seed] = found
        judged.update(node["verdict"] for node in lint(path)["nodes"] if node["node"].startswith(lint_graphs.TARGET))
    assert not wrong
    assert judged["integer"] and judged.total() > 90, judged


def test_drawn_graphs_break_every_rule_of_fusion(tmp_path):
    seen = set()
    for seed in range(SEEDS):
        path = tmp_path / "model.onnx"
        onnx.save(lint_graphs.graph(seed)[0], path)
        seen |= {finding["rule"] for node in lint(path)["nodes"] for finding in node.get("findings", [])}
    of_other_targets = {"saturation", "zero-point", "codes-not-int8", "bias-quantized", "operator-on-codes", "parameters-not-constant"}
    text = (onnx_real.ROOT / "docs/lint.md").read_text()
    rules = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and line.count("|") == 6}
    # Those need weights or biases that no drawn graph has.
    rare = {"weight-zero-points-differ", "weight-only-rank", "bias-shape"}
    assert rules - seen <= of_other_targets | rare | {"opset", "activation-per-channel"}, rules - seen


MODES = {
    "weight-only": ("--mode", "weight-only"),
    "weight-only-int4": ("--mode", "weight-only", "--weights", "int4", "--granularity", "per-group:32"),
    "weight-only-per-tensor": ("--mode", "weight-only", "--granularity", "per-tensor"),
    "dynamic": ("--mode", "dynamic"),
    "static": ("--mode", "static"),
    "static-int8": ("--mode", "static", "--activations", "int8"),
    "static-int8-symmetric": ("--mode", "static", "--activations", "int8", "--activation-symmetry", "symmetric"),
    "static-uint16": ("--mode", "static", "--activations", "uint16"),
    "static-qoperator": ("--mode", "static", "--format", "qoperator"),
    "static-avx2": ("--mode", "static", "--target", "ort-cpu-avx2"),
    "static-tensorrt": ("--mode", "static", "--target", "tensorrt"),
}


@pytest.mark.parametrize("mode", MODES)
def test_models_of_qtool(quantized, mode):
    wrong = {}
    for name in RUNNABLE:
        if "static" in MODES[mode] and not onnx_models.CASES[name]().calibrates:
            continue
        found = differences(quantized(name, *MODES[mode], "--no-lint"))
        if found != EXPLAINED.get((name, mode), []):
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator", "QDQ-int8", "QDQ-per-channel"])
def test_models_of_onnxruntime(quantized, tmp_path, kind):
    wrong, done = {}, 0
    for name in RUNNABLE:
        case, path = onnx_models.CASES[name](), tmp_path / f"{name}.onnx"
        types = {"activation_type": quantization.QuantType.QInt8} if kind == "QDQ-int8" else {}
        logging.disable(logging.WARNING)
        try:
            with silence():
                if kind == "dynamic":
                    quantization.quantize_dynamic(quantized.source(name), path)
                else:
                    form = quantization.QuantFormat[kind.split("-")[0]]
                    feeds = Feeds([case.feeds(seed) for seed in range(2)])
                    per_channel = kind.endswith("per-channel")
                    quantization.quantize_static(quantized.source(name), path, feeds, quant_format=form, per_channel=per_channel, **types)
        except Exception:  # noqa: BLE001 its quantizer fails for some
            continue
        done += 1
        if found := differences(path):
            wrong[name] = found
    assert not wrong
    assert done > 30


@pytest.fixture(scope="module")
def models():
    onnx_real.download()
    return {name: model.path() for name, model in onnx_real.MODELS.items()}


@pytest.fixture(scope="module")
def samples(models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples")
    return {name: write_samples(directory / name, onnx_real.MODELS[name].samples(1, 4, path)) for name, path in models.items()}


@pytest.mark.parametrize("mode", ["auto", "weight-only", "static"])
@pytest.mark.parametrize("name", onnx_real.MODELS)
def test_real_models_of_qtool(models, samples, tmp_path, name, mode):
    path = tmp_path / "quantized.onnx"
    extra = ("--samples", samples[name], "--min-sqnr", "0") if mode == "static" else ()
    run("quantize", models[name], "-o", path, "--quiet", "--durability", "none", "--mode", mode, *extra, timeout=300)
    assert differences(path) == EXPLAINED.get((name, mode), [])


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("name", onnx_real.MODELS)
def test_real_models_of_onnxruntime(models, tmp_path, name, mode):
    feeds = list(onnx_real.MODELS[name].samples(1, 4, models[name]))
    path, error = onnxruntime_quantizes(models[name], tmp_path, feeds, mode)
    if error:
        pytest.skip(error)
    if refusal(path):
        # Its nodes are no longer in topological order within a body, and qtool reads no such model.
        assert "topological order" in refusal(path)
        return
    assert not differences(path)


@pytest.mark.parametrize("name", onnx_real.MODELS)
def test_float_models_are_left_alone(models, name):
    document = lint(models[name])
    assert document["total"]["failed"] == 0 and document["nodes"], document["total"]
    assert not differences(models[name])


@pytest.mark.parametrize("name", ["conv-classifier", "gemm-mlp", "matmul-attention"])
def test_all_optimizations_change_no_kernel(quantized, name):
    """Beyond the extended ones, only layouts change."""
    path = quantized(name, "--mode", "static")
    counts = [expected(optimized(path, level))[0] for level in (EXTENDED, ALL)]
    assert counts[0] == counts[1] and counts[0].keys() <= KERNELS
