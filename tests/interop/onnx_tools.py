"""What the ONNX tests share: quantized models, ONNX Runtime sessions, figures of merit."""

import collections
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import onnx_models
from conftest import run

INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8


def session(model, optimize=True, save_as=None, profile=None):
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if save_as:
        options.optimized_model_filepath = str(save_as)
    model = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def outputs(model, feeds, **options):
    """Float outputs for every feed: a list for each output."""
    opened = session(model, **options)
    taken = {value.name for value in opened.get_inputs()}
    names = [value.name for value in opened.get_outputs() if "float" in value.type or "double" in value.type]
    rows = [opened.run(names, {name: array for name, array in feed.items() if name in taken}) for feed in feeds]
    return dict(zip(names, zip(*rows)))


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
