"""Models that people use, quantized beside ONNX Runtime's own quantizer: valid, in integers, and at least as accurate.

`pytest -s` prints the table.
"""

import contextlib
import io
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnx_real
from conftest import run
from onnx_models import graphs
from onnx_real import MODELS
from onnx_tools import cosine, outputs, session, sqnr, write_samples

CALIBRATION = 16
# Samples to judge by: more where they are small. Of lines the right way up and upside down only a few are uncertain, and
# those alone decide: with 150 samples the SQNR of one model was between 26 and 46 dB.
TEST = {"ocr-direction": 600, "silero": 100, "silero-if": 100, "magika": 100, "ocr-detection": 32, "captcha-detection": 12}
FEW = 20
# What chance makes of the comparison with ONNX Runtime's quantizer, in dB: of 600 lines, eight undecided ones hold nearly
# all noise of the direction's probability, and which of the two comes out ahead depends on the processor's float sums.
CHANCE = {("ocr-direction", "static"): 1.0}
MODES = ("auto", "static")


@dataclass
class Floor:
    """What a quantized model must reach: a little less than it did when this was written, with these samples."""

    # Mean over samples, of the worst output.
    cosine: float
    # Share of places where the largest output is the same one; `None` for outputs that are no scores.
    agreement: float | None
    # Share of multiplications by constant weights that integer kernels do.
    integers: float = 0.0


FLOORS = {
    ("ocr-recognition", "auto"): Floor(0.93, 0.90),
    ("ocr-recognition", "static"): Floor(0.95, 0.93, 0.89),
    ("ocr-direction", "auto"): Floor(0.999, 0.99),
    ("ocr-direction", "static"): Floor(0.995, 0.97, 0.99),
    ("ocr-detection", "auto"): Floor(0.99, None),
    ("ocr-detection", "static"): Floor(0.985, None, 0.9),
    ("silero", "auto"): Floor(0.999, None),
    ("silero", "static"): Floor(0.995, None, 0.99),
    ("silero-if", "auto"): Floor(0.999, None),
    ("silero-if", "static"): Floor(0.995, None),
    ("magika", "auto"): Floor(0.999, 0.97),
    ("magika", "static"): Floor(0.98, 0.90, 0.99),
    ("minilm", "auto"): Floor(0.99, None, 0.99),
    ("minilm", "static"): Floor(0.99, None, 0.9),
    ("captcha", "auto"): Floor(0.998, 0.97),
    ("captcha", "static"): Floor(0.995, 0.97, 0.99),
    ("captcha-detection", "auto"): Floor(0.999, None),
    ("captcha-detection", "static"): Floor(0.995, None, 0.9),
}


@pytest.fixture(scope="module")
def models():
    onnx_real.download()
    return {name: model.path() for name, model in MODELS.items()}


def agreement(expected, found):
    """Share of runs and places where the largest value of the last axis is at the same index."""
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for name in expected for a, b in zip(expected[name], found[name])]
    return np.concatenate(same).mean()


# Where each operator has its weight.
WEIGHT_INPUT = dict.fromkeys(["Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"], 1)
WEIGHT_INPUT_OF_INTEGERS = {
    **dict.fromkeys(["ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"], 1),
    **dict.fromkeys(["QLinearConv", "QLinearMatMul", "QGemm"], 3),
}


def share_of_integers(model, feed):
    """Of all multiplications by constant weights in one run, the share that is done by integer kernels.

    Counted in the graph that ONNX Runtime makes, with the shapes that its profiler sees. Recurrent layers are left out.
    """
    with tempfile.TemporaryDirectory() as directory:
        opened = session(model, save_as=f"{directory}/optimized.onnx", profile=f"{directory}/profile")
        taken = {value.name for value in opened.get_inputs()}
        opened.run(None, {name: array for name, array in feed.items() if name in taken})
        events = json.loads(Path(opened.end_profiling()).read_text())
        made = onnx.load(f"{directory}/optimized.onnx")
    nodes = {node.name: node for graph in graphs(made) for node in graph.node}
    producers = {output: node for node in nodes.values() for output in node.output}
    shapes = {tensor.name: tensor.dims for graph in graphs(made) for tensor in graph.initializer}
    counts = {True: 0, False: 0}
    for event in events:
        name, what = event["name"].removesuffix("_kernel_time"), event.get("args", {})
        if name == event["name"] or name not in nodes:
            continue
        node = nodes[name]
        integer = node.op_type in WEIGHT_INPUT_OF_INTEGERS
        place = {**WEIGHT_INPUT, **WEIGHT_INPUT_OF_INTEGERS}.get(node.op_type)
        if place is None:
            continue
        weight = node.input[place]
        while weight in producers and producers[weight].op_type in ("DequantizeLinear", "Cast", "ReorderInput"):
            weight = producers[weight].input[0]
        if weight not in shapes:
            continue
        shape = shapes[weight]
        (size,) = (np.prod(dims) for dims in what["output_type_shape"][0].values())
        if node.op_type == "ConvTranspose":
            (size,) = (np.prod(dims) for dims in what["input_type_shape"][0].values())
        if "Conv" in node.op_type:
            inner = np.prod(shape[1:])
        else:
            transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
            inner = shape[-1] if transposed else shape[-2]
        counts[integer] += int(size * inner)
    return counts[True] / max(1, sum(counts.values()))


class Feeds(quantization.CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


@contextlib.contextmanager
def silence():
    """ONNX Runtime's quantizer logs and prints."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
    logging.disable(logging.NOTSET)


def onnxruntime_quantizes(source, directory, feeds, mode):
    """ONNX Runtime's own quantizer with its defaults, as its documentation says to use it; None if it fails or its model does."""
    prepared, path = directory / "prepared.onnx", directory / f"onnxruntime-{mode}.onnx"
    try:
        # Its preprocessing leaves files where it runs.
        with silence(), contextlib.chdir(directory):
            if not prepared.exists():
                try:
                    quant_pre_process(source, prepared)
                except Exception:
                    quant_pre_process(source, prepared, skip_symbolic_shape=True)
            if mode == "static":
                quantization.quantize_static(prepared, path, Feeds(feeds), quant_format=quantization.QuantFormat.QDQ)
            else:
                quantization.quantize_dynamic(prepared, path)
        session(path)
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return path, None


@pytest.fixture(scope="module")
def quantized(models, tmp_path_factory):
    """quantized(model, mode) gives the file, and how long it took; made once."""
    directory, done = tmp_path_factory.mktemp("real"), {}

    def made(name, mode):
        if (name, mode) not in done:
            own = directory / name
            samples = own / "samples"
            if not samples.exists():
                write_samples(samples, MODELS[name].samples(1, CALIBRATION, models[name]))
            path = own / f"{mode}.onnx"
            extra = ("--samples", samples) if mode == "static" else ()
            started = time.monotonic()
            run("quantize", models[name], "-o", path, "--quiet", "--durability", "none", "--mode", mode, *extra, timeout=300)
            done[name, mode] = path, time.monotonic() - started
        return done[name, mode]

    return made


@dataclass
class Measured:
    """A quantized model, and how far its outputs are from those of the float model."""

    path: Path
    sqnr: float
    cosine: float
    agreement: float
    integers: float
    # What ONNX Runtime's quantizer makes of the float model; `None` if it fails, or quantizes nothing.
    theirs: Path | None
    their_sqnr: float


@pytest.fixture(scope="module")
def measured(models, quantized):
    """measured(model, mode): everything about it, found once and printed."""
    done = {}

    def measure(name, mode):
        path, seconds = quantized(name, mode)
        feeds = list(MODELS[name].samples(2, TEST.get(name, FEW), models[name]))
        expected, found = outputs(models[name], feeds), outputs(path, feeds)
        calibration = MODELS[name].samples(1, CALIBRATION, models[name])
        started = time.monotonic()
        theirs, failure = onnxruntime_quantizes(models[name], path.parent, calibration, mode)
        their_seconds = time.monotonic() - started
        their_sqnr = sqnr(expected, outputs(theirs, feeds)) if theirs else -np.inf
        if their_sqnr == np.inf:
            theirs, failure, their_sqnr = None, "quantizes nothing", -np.inf
        figures = Measured(
            path, sqnr(expected, found), cosine(expected, found), agreement(expected, found), share_of_integers(path, feeds[0]), theirs, their_sqnr
        )
        unoptimized = sqnr(expected, outputs(path, feeds, optimize=False))

        def size(path):
            return f"{path.stat().st_size / 1e6:5.2f} MB"

        them = f"{size(theirs)} in {their_seconds:4.1f} s, {their_sqnr:4.1f} dB" if theirs else failure
        print(
            f"\n{name:17} {mode:6} {size(models[name])} → {size(path)} in {seconds:4.1f} s, SQNR {figures.sqnr:4.1f} dB, unoptimized {unoptimized:4.1f};"
            f" cosine {figures.cosine:.5f}, agreement {figures.agreement:.4f}, in integers {figures.integers:.1%}; ONNX Runtime's quantizer: {them}"
        )
        return figures

    def cached(name, mode):
        if (name, mode) not in done:
            done[name, mode] = measure(name, mode)
        return done[name, mode]

    return cached


def every_model():
    """All models in both modes."""
    return pytest.mark.parametrize("name, mode", [(name, mode) for name in MODELS for mode in MODES])


@every_model()
def test_valid(quantized, name, mode):
    path, _ = quantized(name, mode)
    onnx.checker.check_model(path, full_check=True)


@every_model()
def test_outputs(measured, name, mode):
    found, floor = measured(name, mode), FLOORS[name, mode]
    assert found.cosine >= floor.cosine
    assert floor.agreement is None or found.agreement >= floor.agreement


@every_model()
def test_integers(measured, name, mode):
    assert measured(name, mode).integers >= FLOORS[name, mode].integers


@every_model()
def test_at_least_as_accurate_as_onnxruntime(measured, name, mode):
    found = measured(name, mode)
    assert found.sqnr >= found.their_sqnr - CHANCE.get((name, mode), 0)


@every_model()
def test_about_as_small_as_onnxruntime(models, measured, name, mode):
    found = measured(name, mode)
    # Layers that eight bits would ruin stay in float.
    larger = 1.3 if mode == "static" else 1.05
    assert found.path.stat().st_size <= larger * (found.theirs or models[name]).stat().st_size


def test_a_quantized_model_is_left_alone(models, tmp_path):
    source, path = onnx_real.QUANTIZED.path(), tmp_path / "again.onnx"
    text = run("quantize", source, "-o", path)
    assert "quantized already" in text and "quantized 0 of" in text
    before, after = onnx.load(source), onnx.load(path)
    assert after.graph.node == before.graph.node and after.graph.initializer == before.graph.initializer
    feeds = list(onnx_real.QUANTIZED.samples(3, 2, source))
    assert sqnr(outputs(source, feeds), outputs(path, feeds)) == np.inf


def boxes(probabilities):
    """Boxes of the areas above 0.3, as the detector's users find text: [left, top, right, bottom] of all that are 3 pixels or more."""
    left, found = {tuple(place) for place in np.argwhere(probabilities > 0.3)}, []
    while left:
        area, edge = [], [left.pop()]
        while edge:
            y, x = edge.pop()
            area.append((y, x))
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in left:
                    left.remove(place)
                    edge.append(place)
        ys, xs = zip(*area)
        box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        if min(box[2] - box[0], box[3] - box[1]) >= 3 and np.mean([probabilities[place] for place in area]) >= 0.5:
            found.append(box)
    return found


def overlap(a, b):
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared)


def test_the_detector_finds_the_same_text(models, quantized):
    """The task's own measure: of all boxes, the share that both models find, where they overlap by half."""
    path, _ = quantized("ocr-detection", "static")
    feeds = list(MODELS["ocr-detection"].samples(77, 40, models["ocr-detection"]))
    (expected,), (found,) = outputs(models["ocr-detection"], feeds).values(), outputs(path, feeds).values()
    both = total = 0
    for a, b in zip(expected, found):
        a, b = boxes(a[0, 0]), boxes(b[0, 0])
        both += sum(any(overlap(box, other) >= 0.5 for other in b) for box in a) + sum(any(overlap(box, other) >= 0.5 for other in a) for box in b)
        total += len(a) + len(b)
    print(f"\nboxes that both find: {both} of {total}")
    assert total > 300 and both >= 0.99 * total
