"""Do changes to float ONNX models leave what they compute, and lose less when quantized, as ONNX Runtime computes it?"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import BINARY, run
from onnx_tools import outputs, sqnr, write_samples

SAMPLES = 16


class Builder:
    """Nodes and constants of a model of one input and one output, whose channels are as uneven as `spread` says."""

    def __init__(self, spread):
        self.rng, self.spread, self.nodes, self.constants = np.random.default_rng(7), spread, [], []

    def constant(self, values):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def normal(self, *shape, size=None):
        return self.rng.standard_normal(shape) * (size or np.prod(shape[1:]) ** -0.5)

    def uneven(self, count):
        return 2.0 ** self.rng.uniform(-self.spread, self.spread, count) if self.spread else np.ones(count)

    def node(self, kind, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def model(self, output, shape):
        self.nodes[-1].output[0] = output
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * len(shape))]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(spread):
    """Channels go through Relu, pools, PRelu, a depthwise and a grouped convolution, a sum of two branches."""
    b = Builder(spread)
    up = [b.uneven(count) for count in (32, 32, 32, 24)]

    def conv(value, out_scales, in_scales, out, per_group, kernel, bias=True, **attributes):
        groups = attributes.get("group", 1)
        weight = b.normal(out, per_group, kernel, kernel)
        by_input = np.repeat(in_scales.reshape(groups, -1), out // groups, axis=0)[..., None, None]
        weight = weight * out_scales[:, None, None, None] / by_input
        inputs = [value, b.constant(weight)] + ([b.constant(b.normal(out, size=0.1) * out_scales)] if bias else [])
        return b.node("Conv", *inputs, pads=[kernel // 2] * 4, **attributes)

    value = b.node("Relu", conv("x", up[0], np.ones(3), 32, 3, 3))
    value = b.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = b.node("LeakyRelu", conv(value, up[1], up[0], 32, 1, 3, group=32), alpha=0.1)
    left = conv(value, up[2], up[1], 32, 8, 1, group=4, bias=False)
    value = b.node("PRelu", left, b.constant(b.rng.uniform(0, 0.5, (32, 1, 1))))
    value = b.node("AveragePool", value, kernel_shape=[2, 2], strides=[1, 1])
    value = b.node("Mul", conv(value, up[3], up[2], 24, 32, 3), b.constant(1.5))
    conv(b.node("Relu", value), np.ones(16), up[3], 16, 24, 3, bias=False)
    return b.model("y", [None, 3, 24, 24]), lambda rng: rng.standard_normal((1, 3, 24, 24)).astype(np.float32)


def decoder(spread):
    """A LayerNormalization with outliers before two products, a gated product before another."""
    b = Builder(spread)
    norm, hidden = b.uneven(48), b.uneven(96)
    value = b.node("LayerNormalization", "x", b.constant(norm), b.constant(b.normal(48, size=0.1) * norm), axis=-1)
    gate = b.node("MatMul", value, b.constant(b.normal(48, 96) / norm[:, None]))
    gate = b.node("Mul", gate, b.node("Sigmoid", gate))
    up = b.node("MatMul", value, b.constant(b.normal(48, 96) / norm[:, None] * hidden))
    up = b.node("Add", up, b.constant(b.normal(96, size=0.1) * hidden))
    b.node("MatMul", b.node("Mul", gate, up), b.constant(b.normal(96, 40) / hidden[:, None]))
    return b.model("y", [None, 8, 48]), lambda rng: rng.standard_normal((2, 8, 48)).astype(np.float32)


MODELS = {"convolutions": convolutions, "decoder": decoder}
OPTIONS = {
    "static": ["--mode", "static", "--min-sqnr", "0"],
    "static-per-tensor": ["--mode", "static", "--min-sqnr", "0", "--granularity", "per-tensor"],
    "weight-only": ["--mode", "weight-only"],
}
# Least gain in dB where channels are uneven. Conv chains without a norm, or with scales for channels, gain by fewer methods.
GAINS = {
    ("convolutions", "static", "equalize"): 6,
    ("convolutions", "static", "smooth-quant"): 6,
    ("convolutions", "static-per-tensor", "equalize"): 6,
    ("convolutions", "static-per-tensor", "smooth-quant"): 6,
    ("convolutions", "weight-only", "equalize"): 3,
    ("convolutions", "weight-only", "smooth-quant"): 3,
    ("decoder", "static", "smooth-quant"): 6,
    ("decoder", "static-per-tensor", "smooth-quant"): 6,
    ("decoder", "static-per-tensor", "equalize"): 1,
    ("decoder", "weight-only", "smooth-quant"): 3,
}


@pytest.fixture(scope="module", params=[(name, spread) for name in MODELS for spread in (0, 4)], ids=lambda value: f"{value[0]}-{value[1]}")
def case(request, tmp_path_factory):
    name, spread = request.param
    directory = tmp_path_factory.mktemp(name)
    model, make = MODELS[name](spread)
    onnx.save(model, directory / "model.onnx")
    rng = np.random.default_rng(1)
    write_samples(directory / "samples", [{"x": make(rng)} for _ in range(SAMPLES)])
    return name, spread, directory, [{"x": make(rng)} for _ in range(8)]


@pytest.mark.parametrize("options", OPTIONS)
def test_transforms_gain_where_channels_are_uneven_and_never_lose(case, options):
    name, spread, directory, feeds = case
    model = directory / "model.onnx"
    expected = outputs(model, feeds)

    def quantized(*transforms):
        path = directory / "quantized.onnx"
        run("quantize", model, "--samples", directory / "samples", "-o", path, "--force", "--quiet", *OPTIONS[options], *transforms)
        return sqnr(expected, outputs(path, feeds, optimize=False))

    before = quantized()
    for transform in ("equalize", "smooth-quant"):
        after = quantized("--transform", transform)
        print(f"{name} {spread} {options} {transform}: {before:.1f} -> {after:.1f} dB")
        least = GAINS.get((name, options, transform), -0.3) if spread else -0.3
        assert after >= before + least
    assert quantized("--transform", "smooth-quant", "--transform", "equalize", "--transform", "bias-correction") >= before - 0.3


def layers():
    """A layer of each kind that can hold a bias: with one, with one that is shared, without one."""
    b = Builder(0)
    shared = b.constant(b.normal(24, size=0.1))
    b.node("Conv", "x", b.constant(b.normal(24, 6, 3, 3)), shared, pads=[1, 1, 1, 1])
    yield "conv", b.model("y", [None, 6, 10, 10])
    b = Builder(0)
    b.node("Conv", "x", b.constant(b.normal(24, 2, 3, 3)), group=3, strides=[2, 1])
    yield "grouped-without-bias", b.model("y", [None, 6, 10, 10])
    b = Builder(0)
    b.node("Gemm", b.node("Flatten", "x"), b.constant(b.normal(600, 24)), b.constant(b.normal(24, size=0.1)), alpha=0.5, beta=2.0)
    yield "gemm", b.model("y", [None, 6, 10, 10])
    b = Builder(0)
    b.node("Add", b.constant(b.normal(24, size=0.1)), b.node("MatMul", "x", b.constant(b.normal(10, 24, size=0.3))))
    yield "matmul-add", b.model("y", [None, 6, 10, 10])


LAYERS = dict(layers())


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", LAYERS)
def test_bias_correction_takes_the_mean_error_out_of_every_channel(tmp_path, name, rounding):
    source = tmp_path / "model.onnx"
    onnx.save(LAYERS[name], source)
    rng = np.random.default_rng(3)
    feeds = [{"x": (rng.standard_normal((1, 6, 10, 10)) + rng.uniform(0, 2, (1, 6, 1, 1))).astype(np.float32)} for _ in range(SAMPLES)]
    samples = write_samples(tmp_path / "samples", feeds)
    expected = np.stack(outputs(source, feeds, optimize=False)["y"])

    def mean_errors(*transforms):
        path = tmp_path / "quantized.onnx"
        options = ["--mode", "weight-only", "--weights", "int4", "--min-elements", "0", "--rounding", rounding]
        run("quantize", source, "--samples", samples, "-o", path, "--force", "--quiet", *options, *transforms)
        errors = np.stack(outputs(path, feeds, optimize=False)["y"]).astype(np.float64) - expected
        by_channel = np.moveaxis(errors, 2, -1) if name in ("conv", "grouped-without-bias") else errors
        flat = by_channel.reshape(-1, by_channel.shape[-1])
        return np.abs(flat.mean(0)).max(), np.square(flat).mean()

    (worst, squares), (corrected, corrected_squares) = mean_errors(), mean_errors("--transform", "bias-correction")
    assert worst > 1e-4 and corrected < 1e-5
    assert corrected_squares < squares


def refusal(*arguments):
    import subprocess

    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


def test_what_has_nothing_to_fold_into_is_refused(tmp_path):
    b = Builder(0)
    b.node("MatMul", "x", b.constant(b.normal(64, 32)))
    source = tmp_path / "model.onnx"
    onnx.save(b.model("y", [None, 4, 64]), source)
    samples = write_samples(tmp_path / "samples", [{"x": np.ones((1, 4, 64), np.float32)}])
    for transform in ("smooth-quant", "equalize"):
        error = refusal("quantize", source, "--samples", samples, "-o", tmp_path / "out.onnx", "--transform", transform)
        assert f"{transform}: expected" in error and "found none" in error
    stats = tmp_path / "stats.qcal"
    run("calibrate", source, "--samples", samples, "-o", stats, "--quiet")
    error = refusal("quantize", source, "--stats", stats, "-o", tmp_path / "out.onnx", "--transform", "bias-correction")
    assert "expected --samples" in error
    assert not (tmp_path / "out.onnx").exists()
