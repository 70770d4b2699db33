"""What the ONNX tests share: quantized models, ONNX Runtime sessions, figures of merit."""

import collections
import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import onnx_models
from conftest import run

# What multiplies uint8 by int8 as it stands in a model.
SATURATING = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM"}

INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8


def session(model, optimize=True, save_as=None, profile=None, exact=False):
    """A session on the CPU; `exact` keeps kernels from saturating sums of pairs where processors have no VNNI."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if save_as:
        options.optimized_model_filepath = str(save_as)
    model = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def outputs(model, feeds, optimize=True):
    """Float outputs for every feed, from exact sums where ONNX Runtime has a way to them: a list for each output."""
    opened = exact_session(model, optimize)
    taken = {value.name for value in opened.get_inputs()}
    names = [value.name for value in opened.get_outputs() if "float" in value.type or "double" in value.type]
    rows = [opened.run(names, {name: array for name, array in feed.items() if name in taken}) for feed in feeds]
    return dict(zip(names, zip(*rows)))


@functools.cache
def saturates():
    """Whether products of uint8 and int8 saturate here, where ONNX Runtime does not rewrite them: 2 x 255 x 127 exceeds 16 bits."""
    inputs = [helper.make_tensor_value_info("a", UINT8, [1, 4])]
    output = [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 4])]
    b = numpy_helper.from_array(np.full((4, 4), 127, np.int8), "b")
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "g", inputs, output, [b])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (found,) = session(model, optimize=False).run(None, {"a": np.full((1, 4), 255, np.uint8)})
    return int(found[0, 0]) != 4 * 255 * 127


def rewritten(model):
    """A session whose kernels take int8 weights as uint8, so that no sum saturates; `None` where ONNX Runtime fails to make it.

    1.32 fails for many models whose nodes share initializers: "Attempt to replace the existing tensor".
    """
    try:
        return session(model, exact=True)
    except Fail as error:
        if "Attempt to replace the existing tensor" not in str(error):
            raise
        return None


def exact_session(model, optimize):
    """A session whose sums do not saturate, if there is one: QDQ models do without fusions where they must."""
    if not (optimize and saturates()):
        return session(model, optimize)
    return rewritten(model) or session(model, optimize=bool(saturating(model)))


def saturating(model, bodies_only=False):
    """Operators of a model whose sums saturate as they stand in it; bodies are never rewritten."""
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(model, load_external_data=False)
    return {node.op_type for graph in onnx_models.graphs(model)[bodies_only:] for node in graph.node} & SATURATING


def is_exact(path, optimize):
    """Whether ONNX Runtime computes a model without saturation on this machine."""
    return not saturates() or not saturating(path, bodies_only=optimize and rewritten(path) is not None)


def sqnr(expected, found):
    """Signal to quantization noise in dB over all runs, of the worst output."""

    def of(expected, found):
        signal = sum(np.square(array, dtype=np.float64).sum() for array in expected)
        noise = sum(np.square(a.astype(np.float64) - b.astype(np.float64)).sum() for a, b in zip(expected, found))
        return 10 * np.log10(signal / noise) if noise else np.inf

    assert expected.keys() == found.keys()
    return min(of(expected[name], found[name]) for name in expected)


def cosine(expected, found):
    """The mean over runs, of the worst output."""

    def of(a, b):
        a, b = a.flatten().astype(np.float64), b.flatten().astype(np.float64)
        return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)

    return min(np.mean([of(a, b) for a, b in zip(expected[name], found[name])]) for name in expected)


def optimized(model):
    """The graph that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimized.onnx"
        session(model, save_as=path)
        return onnx.load(path)


def operators(model):
    """How often each operator occurs, bodies included."""
    return collections.Counter(node.op_type for graph in onnx_models.graphs(model) for node in graph.node)


def write_samples(directory, feeds):
    """A file for each sample."""
    directory.mkdir(parents=True)
    for i, feed in enumerate(feeds):
        np.savez(directory / f"{i:03}.npz", **feed)
    return directory


class Quantizer:
    """Quantizes cases, each in each way once, in one directory."""

    # How many samples ranges come from, and seeds that no test of outputs uses.
    SAMPLES = range(1000, 1016)

    def __init__(self, directory):
        self.directory = directory
        self.done = {}

    def source(self, name):
        """The file of a float model."""
        path = self.directory / name / "model.onnx"
        if not path.exists():
            path.parent.mkdir()
            onnx.save(onnx_models.CASES[name]().proto, path)
        return path

    def samples(self, name):
        path = self.source(name).with_name("samples")
        if not path.exists():
            case = onnx_models.CASES[name]()
            write_samples(path, [case.feeds(seed) for seed in self.SAMPLES])
        return path

    def __call__(self, name, *options):
        """The file of a quantized model. `--mode static` brings its samples along."""
        if (name, options) not in self.done:
            source = self.source(name)
            path = source.with_name(f"{len(self.done)}.onnx")
            extra = ("--samples", self.samples(name)) if "static" in options else ()
            run("quantize", source, "-o", path, "--quiet", "--durability", "none", *options, *extra)
            self.done[name, options] = path
        return self.done[name, options]
