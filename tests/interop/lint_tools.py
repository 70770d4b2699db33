"""Verdicts of `qtool lint` beside what ONNX Runtime's optimizer makes of the same model."""

import collections
import json
import subprocess
import tempfile
from pathlib import Path

import onnx
import onnxruntime

from conftest import BINARY
from onnx_models import graphs

# Operators that compute with codes, by name; others are seen by what they take.
KERNELS = {
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "ConvInteger",
    "MatMulNBits",
    "DynamicQuantizeLSTM",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearWhere",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QLinearLeakyRelu",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
}
# Operators that give codes of what they take codes of.
MOVES = {"Expand", "Flatten", "Gather", "GatherElements", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
INTEGERS = {onnx.TensorProto.DataType.Value(name) for name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4")}
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
EXTENDED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def lint(path, *options):
    """The document that `qtool lint` prints, whatever it finds."""
    done = subprocess.run([BINARY, "lint", path, "--json", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 3), f"{path}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def refusal(path):
    """Why `qtool lint` does not read a model; empty if it does."""
    done = subprocess.run([BINARY, "lint", path, "--quiet"], capture_output=True, text=True, timeout=60)
    return done.stderr if done.returncode == 1 else ""


def optimized(path, level=EXTENDED):
    """The graph that ONNX Runtime runs, or the error that it gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    with tempfile.TemporaryDirectory() as directory:
        options.optimized_model_filepath = str(Path(directory) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 whatever it is
            return str(error)
        return onnx.load(options.optimized_model_filepath)


def on_codes(graph):
    """Names of nodes that take codes, and are no kernels of their own: those that move data."""
    codes = {tensor.name for tensor in graph.initializer if tensor.data_type in INTEGERS}
    codes |= {value.name for value in graph.input if value.type.tensor_type.elem_type in INTEGERS}
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type.startswith("QLinear") and node.op_type in KERNELS):
            codes |= set(node.output)
        elif node.op_type == "QGemm" and len([name for name in node.input if name]) > 7:
            codes |= set(node.output)
        elif node.op_type in MOVES | {"ArgMax"} and node.input[0] in codes:
            codes |= set(node.output) if node.op_type in MOVES else set()
            found[node.name] = node.op_type
    return found


def expected(model):
    """Kernels on codes in ONNX Runtime's graph: how many of each, and the nodes that take codes otherwise."""
    counts, moved = collections.Counter(), {}
    for graph in graphs(model):
        counts.update(node.op_type for node in graph.node if node.op_type in KERNELS)
        moved |= on_codes(graph)
    return counts, moved


def predicted(document):
    """The same by the verdicts."""
    nodes = [node for node in document["nodes"] if "kernel" in node]
    counts = collections.Counter(node["kernel"] for node in nodes if node["kernel"] in KERNELS)
    moved = {node["node"].split("/")[-1]: node["kernel"] for node in nodes if node["kernel"] not in KERNELS}
    return counts, moved


def differences(path, level=EXTENDED):
    """What the verdicts and the runtime's graph do not agree on; `None` if ONNX Runtime takes no such model."""
    document, model = lint(path), optimized(path, level)
    if isinstance(model, str):
        return None
    (counts, moved), (found, found_moved) = expected(model), predicted(document)
    wrong = [f"{kernel}: expected {counts[kernel]}, found {found[kernel]}" for kernel in sorted(counts | found) if counts[kernel] != found[kernel]]
    here = {node.name: node.op_type for graph in graphs(model) for node in graph.node}
    judged = {node["node"].split("/")[-1] for node in document["nodes"]}
    for name in sorted(judged & here.keys()):
        if name and here[name] not in KERNELS and (name in moved) != (name in found_moved):
            wrong.append(f"{name} ({here[name]}): expected {'codes' if name in moved else 'floats'}")
    return wrong
