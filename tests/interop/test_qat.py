"""Does a QAT state dict become what `torch.ao.quantization.convert` makes of the module, bit for bit?"""

import copy
import json
import subprocess
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.nn.quantized.modules.utils import _quantize_weight
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
from safetensors.torch import load_file, save_file

from conftest import BINARY, Output, assert_bits, assert_equal, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Net(nn.Module):
    """Convolution with and without batch normalization, Linear with and without a ReLU, and a sum."""

    def __init__(self, bias=True):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()
        self.hidden, self.relu3 = nn.Linear(96, 50), nn.ReLU()
        self.out = nn.Linear(50, 10)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.relu2(self.conv2(x)).flatten(1)
        return self.dequant(self.out(self.relu3(self.hidden(x))))


FUSED = [["conv", "bn", "relu"], ["conv2", "relu2"], ["hidden", "relu3"]]
LAYERS = ["conv", "conv2", "hidden", "out"]


def train(model, steps=6, size=(4, 3, 8, 8), rate=0.05):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for step in range(steps):
        x = torch.randn(size, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def eager(qconfig, bias=True, seed=0):
    torch.manual_seed(seed)
    model = Net(bias).train()
    # Normalization that folds into something else than it is at first.
    nn.init.uniform_(model.bn.weight, -1.5, 1.5)
    model = tq.fuse_modules_qat(model, FUSED)
    model.qconfig = qconfig
    model = tq.prepare_qat(model)
    train(model)
    return model


def quantize_state(quantize, tmp_path, model, *options, prefix=""):
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, path)
    return quantize(path, *options)


def params_of(weight):
    """Scales and zero points of a quantized tensor."""
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return weight.q_per_channel_scales().to(torch.float32).numpy(), weight.q_per_channel_zero_points().numpy()
    return np.array([weight.q_scale()], np.float32), np.array([weight.q_zero_point()])


def assert_weight(out, name, weight, what=""):
    scales, zero_points = params_of(weight)
    assert out.records[name]["observer"] == {"name": "trained"} or out.records[name]["observer"] == "trained"
    assert_bits(out.scales(name), scales, f"{what} {name} scales")
    assert np.array_equal(out.zero_points(name), zero_points), f"{what} {name} zero points"
    assert_equal(out.codes(name), weight.int_repr(), f"{what} {name} codes")


def assert_converted(out, converted, prefix="", layers=LAYERS, activations=("quant", *LAYERS)):
    """Everything is as in the converted module."""
    modules = dict(converted.named_modules())
    for layer in layers:
        assert_weight(out, f"{prefix}{layer}.weight", modules[layer].weight())
        assert_bits(out.stored[f"{prefix}{layer}.bias"].numpy(), modules[layer].bias().detach().numpy(), f"{layer} bias")
    assert set(out.document["activations"]) == {prefix + name for name in activations}
    for name in activations:
        record = out.document["activations"][prefix + name]
        assert np.float32(record["scale"]) == np.float32(float(modules[name].scale)), name
        assert record["zero_point"] == int(modules[name].zero_point), name
    left = [name for name in out.stored if "fake_quant" in name or "post_process" in name or ".bn." in name or "parametrizations" in name]
    assert not left


def plain(weight_min=-128, weight_max=127, per_channel=True, scheme="symmetric", reduce_range=False, observer=None):
    """FakeQuantize, not fused."""
    kind = tq.MovingAveragePerChannelMinMaxObserver if per_channel else tq.MovingAverageMinMaxObserver
    qscheme = getattr(torch, f"per_{'channel' if per_channel else 'tensor'}_{scheme}")
    return tq.QConfig(
        activation=tq.FakeQuantize.with_args(observer=observer or tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, reduce_range=reduce_range),
        weight=tq.FakeQuantize.with_args(observer=kind, quant_min=weight_min, quant_max=weight_max, dtype=torch.qint8, qscheme=qscheme),
    )


def fused(weight_min, weight_max, scheme):
    return tq.QConfig(
        activation=tq.default_fused_act_fake_quant,
        weight=tq.FusedMovingAvgObsFakeQuantize.with_args(
            observer=tq.MovingAveragePerChannelMinMaxObserver, quant_min=weight_min, quant_max=weight_max, dtype=torch.qint8, qscheme=scheme
        ),
    )


CONFIGS = {
    "x86": tq.get_default_qat_qconfig("x86"),
    "fbgemm": tq.get_default_qat_qconfig("fbgemm"),
    "qnnpack": tq.get_default_qat_qconfig("qnnpack"),
    "onednn": tq.get_default_qat_qconfig("onednn"),
    "x86-0": tq.get_default_qat_qconfig("x86", version=0),
    "qnnpack-0": tq.get_default_qat_qconfig("qnnpack", version=0),
    "narrow": plain(-127, 127),
    "fused-narrow": fused(-127, 127, torch.per_channel_symmetric),
    "fused-affine": fused(-128, 127, torch.per_channel_affine),
    "affine": plain(scheme="affine"),
    "affine-tensor": plain(scheme="affine", per_channel=False, reduce_range=True),
    "four-bits": plain(-8, 7),
    "fused-four-bits": fused(-8, 7, torch.per_channel_symmetric),
    "histogram": plain(observer=tq.HistogramObserver),
}


@pytest.mark.parametrize("observing", [True, False], ids=["observing", "observed"])
@pytest.mark.parametrize("config", CONFIGS)
def test_eager(quantize, tmp_path, config, observing):
    """Every configuration of PyTorch, and others; observers still on or switched off before the last steps."""
    model = eager(CONFIGS[config])
    if not observing:
        model.apply(tq.disable_observer)
        train(model, 2)
    out = quantize_state(quantize, tmp_path, model)
    converted = tq.convert(copy.deepcopy(model).eval())
    assert_converted(out, converted)
    expected = {"narrow": -127, "fused-narrow": -127, "four-bits": -8, "fused-four-bits": -8}.get(config, -128)
    assert out.records["out.weight"]["qmin"] == expected


def test_the_comparison_would_notice(quantize, tmp_path):
    """Scales as stored in the file, or as observed, are others than those of convert."""
    model = eager(CONFIGS["x86"])
    stored = model.out.weight_fake_quant.scale.clone().numpy()
    out = quantize_state(quantize, tmp_path, model)
    observed = quantize(tmp_path / "model.safetensors", "--ignore-qat", "--min-elements", "0")
    converted, _ = params_of(tq.convert(copy.deepcopy(model).eval()).out.weight())
    assert (stored != converted).any() and (observed.scales("out.weight") != converted).any()
    assert_bits(out.scales("out.weight"), converted, "out.weight")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_and_a_folded_bias(quantize, tmp_path, prefix):
    """Names of wrappers stay; a convolution without bias gets that of its batch normalization."""
    model = eager(CONFIGS["x86"], bias=False)
    out = quantize_state(quantize, tmp_path, model, prefix=prefix)
    assert_converted(out, tq.convert(copy.deepcopy(model).eval()), prefix)
    run("verify", out.weights)


def test_linear_with_batch_norm(quantize, tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(tq.QuantStub(), nn.Linear(40, 30), nn.BatchNorm1d(30)).train()
    model = tq.fuse_modules_qat(model, [["1", "2"]])
    model.qconfig = CONFIGS["x86"]
    model = tq.prepare_qat(model)
    train(model, size=(16, 40))
    out = quantize_state(quantize, tmp_path, model)
    assert_converted(out, tq.convert(copy.deepcopy(model).eval()), layers=["1"], activations=["0", "1"])


def test_fx(quantize, tmp_path):
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    torch.manual_seed(2)
    model = prepare_qat_fx(Net().train(), tq.get_default_qat_qconfig_mapping("x86"), (torch.randn(1, 3, 8, 8),))
    train(model)
    out = quantize_state(quantize, tmp_path, model)
    converted = convert_fx(copy.deepcopy(model).eval())
    modules = dict(converted.named_modules())
    for layer in LAYERS:
        assert_weight(out, f"{layer}.weight", modules[layer].weight())
        assert_bits(out.stored[f"{layer}.bias"].numpy(), modules[layer].bias().detach().numpy(), f"{layer} bias")
    expected = {name: module.calculate_qparams() for name, module in model.named_modules() if name.startswith("activation_post_process_") and "." not in name}
    assert expected and set(out.document["activations"]) == set(expected)
    for name, (scale, zero_point) in expected.items():
        record = out.document["activations"][name]
        assert np.float32(record["scale"]) == scale.item() and record["zero_point"] == zero_point.item(), name


@pytest.mark.parametrize("learning", [True, False], ids=["learned", "static"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channels", "tensor"])
def test_learned_step_size(quantize, tmp_path, per_channel, scheme, learning):
    """Scales and zero points that are parameters."""
    kind = tq.MovingAveragePerChannelMinMaxObserver if per_channel else tq.MovingAverageMinMaxObserver
    qscheme = getattr(torch, f"per_{'channel' if per_channel else 'tensor'}_{scheme}")
    weight = _LearnableFakeQuantize.with_args(
        observer=kind, quant_min=-128, quant_max=127, dtype=torch.qint8, qscheme=qscheme, scale=0.1, zero_point=0.0,
        use_grad_scaling=True, channel_len=32 if per_channel else -1,
    )
    activation = _LearnableFakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8, qscheme=torch.per_tensor_affine, scale=0.1, zero_point=0.0,
        use_grad_scaling=True,
    )
    torch.manual_seed(3)
    model = nn.Sequential(tq.QuantStub(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32)).train()
    model.qconfig = tq.QConfig(activation=activation, weight=weight)
    model = tq.prepare_qat(model)
    quantizers = [module for module in model.modules() if isinstance(module, _LearnableFakeQuantize)]
    for quantizer in quantizers:
        quantizer.enable_static_estimate()
    train(model, size=(16, 40))
    if learning:
        for quantizer in quantizers:
            quantizer.enable_param_learning()
        train(model, size=(16, 40))
    out = quantize_state(quantize, tmp_path, model)
    converted = tq.convert(copy.deepcopy(model).eval())
    assert_converted(out, converted, layers=["1", "3"], activations=["0", "1", "2", "3"] if hasattr(converted[2], "scale") else ["0", "1", "3"])


def test_a_transposed_convolution(quantize, tmp_path):
    """Channels along the second axis."""
    torch.manual_seed(4)
    model = nn.Module()
    model.up = nn.ConvTranspose2d(6, 10, 3)
    model.up.weight_fake_quant = tq.default_per_channel_weight_fake_quant(ch_axis=1)
    with torch.no_grad():
        model.up.weight_fake_quant(model.up.weight)
        model.up.weight.mul_(1.25)
    out = quantize_state(quantize, tmp_path, model)
    quantizer = copy.deepcopy(model.up.weight_fake_quant)
    quantizer(model.up.weight)
    assert out.records["up.weight"]["axis"] == 1
    assert_weight(out, "up.weight", _quantize_weight(model.up.weight.float(), quantizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(quantize, tmp_path, dtype):
    torch.manual_seed(5)
    model = nn.Module()
    model.fc = nn.Linear(64, 48).to(dtype)
    model.fc.weight_fake_quant = tq.default_per_channel_weight_fake_quant()
    model.fc.weight_fake_quant(model.fc.weight.float())
    out = quantize_state(quantize, tmp_path, model)
    model.fc.weight_fake_quant(model.fc.weight.float())
    assert_weight(out, "fc.weight", _quantize_weight(model.fc.weight.float(), model.fc.weight_fake_quant))


def test_a_fake_quantizer_as_parametrization(quantize, tmp_path):
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    for layer in (model[0], model[2]):
        nn.utils.parametrize.register_parametrization(layer, "weight", tq.default_per_channel_weight_fake_quant())
    train(model, size=(8, 64))
    assert "0.parametrizations.weight.original" in model.state_dict()
    out = quantize_state(quantize, tmp_path, model)
    for name in "02":
        parametrization = model[int(name)].parametrizations.weight
        quantizer = copy.deepcopy(parametrization[0])
        quantizer(parametrization.original)
        assert_weight(out, f"{name}.weight", _quantize_weight(parametrization.original.detach(), quantizer))


def refused(path, *parts, options=()):
    """The model is refused with a message that has these parts, and nothing is written."""
    before = sorted(path.parent.iterdir())
    done = subprocess.run([BINARY, "quantize", path, "--quiet", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    for part in parts:
        assert part in done.stderr, done.stderr
    assert sorted(path.parent.iterdir()) == before


def test_other_parametrizations_are_refused(tmp_path):
    model = eager(CONFIGS["x86"])
    nn.utils.parametrizations.weight_norm(model.out)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    refused(path, "out.parametrizations.weight.original0", "remove_parametrizations")
    run("quantize", path, "-o", tmp_path / "anew.safetensors", "--ignore-qat", "--quiet")


W, A = "out.weight_fake_quant", "out.activation_post_process"
NAN, INF = float("nan"), float("inf")


def filled(value):
    return lambda tensor: torch.full_like(tensor, value)


DAMAGE = {
    "scale-nan": (f"{W}.scale", filled(NAN), "scale"),
    "scale-zero": (f"{W}.scale", filled(0), "scale"),
    "scale-negative": (f"{A}.scale", filled(-0.5), "scale"),
    "scale-infinite": (f"{A}.scale", filled(INF), "scale"),
    "scale-of-others": (f"{W}.scale", lambda t: t * 1.01, "scale"),
    "scale-integers": (f"{W}.scale", lambda t: t.to(torch.int32), "scale"),
    "scale-missing": (f"{W}.scale", lambda t: None, "scale"),
    "scale-short": (f"{W}.scale", lambda t: t[:-1], "zero_point"),
    "zero-point-short": (f"{W}.zero_point", lambda t: t[:-1], "zero_point"),
    "zero-point-float": (f"{W}.zero_point", lambda t: t.float(), "zero_point"),
    "zero-point-large": (f"{W}.zero_point", filled(300), W),
    "zero-point-of-activation": (f"{A}.zero_point", filled(300), A),
    "zero-point-missing": (f"{W}.zero_point", lambda t: None, W),
    "min-short": (f"{W}.activation_post_process.min_val", lambda t: t[:-1], "max_val"),
    "min-nan": (f"{W}.activation_post_process.min_val", filled(NAN), "min_val"),
    "min-above-max": (f"{A}.activation_post_process.min_val", filled(1e9), "min_val"),
    "min-missing": (f"{W}.activation_post_process.min_val", lambda t: None, "max_val"),
    "eps-zero": (f"{W}.activation_post_process.eps", filled(0), "eps"),
    "switch": (f"{W}.observer_enabled", filled(7), "observer_enabled"),
    "weight-missing": ("out.weight", lambda t: None, "out.weight"),
    "weight-of-other-shape": ("out.weight", lambda t: t[:7], W),
    "variance-negative": ("conv.bn.running_var", filled(-1), "running_var"),
    "mean-missing": ("conv.bn.running_mean", lambda t: None, "running_mean"),
    "gamma-short": ("conv.bn.weight", lambda t: t[:5], "conv.bn.weight"),
    "weight-nan": ("out.weight", filled(NAN), "out.weight"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_malformed_state_is_refused(tmp_path, damage):
    model = eager(CONFIGS["x86"])
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    name, change, part = DAMAGE[damage]
    changed = change(state.pop(name))
    if changed is not None:
        state[name] = changed.contiguous()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    refused(path, part)


def test_codes_that_do_not_hold_what_was_trained_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in eager(CONFIGS["x86"]).state_dict().items()}, path)
    refused(path, "--weights int8", options=("--weights", "int4"))


def test_layers_that_are_kept(quantize, tmp_path):
    """Float weights stay, without the state of their fake quantizers; the rest is as trained."""
    model = eager(CONFIGS["x86"])
    out = quantize_state(quantize, tmp_path, model, "--exclude", "hidden")
    assert torch.equal(out.stored["hidden.weight"], model.hidden.weight) and "hidden.weight" in out.document["kept"]
    assert_weight(out, "out.weight", tq.convert(copy.deepcopy(model).eval()).out.weight())
    assert not [name for name in out.stored if "fake_quant" in name]


def test_it_is_said_and_can_be_ignored(tmp_path):
    model = eager(CONFIGS["x86"])
    path = tmp_path / "model.safetensors"
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, path)
    report = json.loads(run("quantize", path, "-o", tmp_path / "a.safetensors", "--json", "--quiet"))
    assert any("4 weights and 5 activations" in note for note in report["notes"])
    report = json.loads(run("quantize", path, "-o", tmp_path / "b.safetensors", "--json", "--quiet", "--ignore-qat"))
    assert not any("quantization-aware" in note for note in report.get("notes", []))
    ignored = Output(tmp_path / "b.safetensors")
    assert set(ignored.stored) == set(state) and ignored.document["recipe"]["ignore_qat"] is True
    again = tmp_path / "again.safetensors"
    run("quantize", path, "-o", again, "--recipe", ignored.sidecar, "--quiet")
    assert again.read_bytes() == ignored.weights.read_bytes()
