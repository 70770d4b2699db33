"""Observers other than min-max: PyTorch's own, and the search for the least squared error."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.ao.quantization.observer import HistogramObserver, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

import checkpoints
from conftest import FIXTURE, assert_bits, assert_equal
from test_torch import ALL, QTYPES


@pytest.fixture
def needs(observers):
    def check(name):
        if name not in observers.replace(",", " ").replace("[", " ").split():
            pytest.skip(f"this qtool has no observer {name}")

    return check


def models(tmp_path):
    yield FIXTURE, load_file(FIXTURE)
    tensors = checkpoints.mixed("F32")
    yield checkpoints.write(tmp_path / "m.safetensors", tensors), tensors


@pytest.mark.parametrize("weights", QTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name, make", [("histogram", HistogramObserver), ("moving-average", MovingAverageMinMaxObserver)])
def test_per_tensor_observers_of_pytorch(tmp_path, quantize, needs, name, make, weights, symmetric):
    needs(name)
    qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    for model, tensors in models(tmp_path):
        options = ("--observer", name, "--granularity", "per-tensor", "--weights", weights, "--symmetric" if symmetric else "--asymmetric")
        output = quantize(model, *ALL, *options)
        for tensor in output.records:
            observer = make(dtype=QTYPES[weights], qscheme=qscheme)
            observer(tensors[tensor])
            scale, zero_point = observer.calculate_qparams()
            codes = torch.quantize_per_tensor(tensors[tensor], scale.item(), int(zero_point), QTYPES[weights]).int_repr()
            assert_bits(output.scales(tensor), scale.numpy().reshape(-1), f"{tensor} scale")
            assert output.zero_points(tensor).tolist() == zero_point.reshape(-1).tolist(), tensor
            assert_equal(output.codes(tensor), codes, f"{tensor} codes")


@pytest.mark.parametrize("symmetric", [True, False])
def test_moving_average_per_channel(quantize, needs, symmetric):
    needs("moving-average")
    output = quantize(FIXTURE, "--observer", "moving-average", "--symmetric" if symmetric else "--asymmetric")
    for name, tensor in load_file(FIXTURE).items():
        if name in output.records:
            qscheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
            observer = MovingAveragePerChannelMinMaxObserver(dtype=torch.qint8, qscheme=qscheme)
            observer(tensor)
            assert_bits(output.scales(name), observer.calculate_qparams()[0].numpy(), name)


def rows_of(tensor, granularity):
    return tensor.reshape(1, -1) if granularity == "per-tensor" else tensor.flatten(1)


def squared_errors(output, name, tensor, granularity):
    codes = rows_of(output.codes(name), granularity).double()
    column = lambda numbers: torch.from_numpy(numbers.astype(np.float64))[:, None]
    values = (codes - column(output.zero_points(name))) * column(output.scales(name))
    return (values - rows_of(tensor, granularity).double()).square().sum(1)


@pytest.mark.parametrize("weights", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("symmetry", ["--symmetric", "--asymmetric"])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_mse_is_never_worse_than_min_max(tmp_path, quantize, needs, weights, symmetry, granularity):
    needs("mse")
    gained = 0
    for model, tensors in models(tmp_path):
        options = (*ALL, "--weights", weights, symmetry, "--granularity", granularity)
        searched, plain = quantize(model, "--observer", "mse", *options), quantize(model, *options)
        for name in plain.records:
            best, most = (squared_errors(output, name, tensors[name], granularity) for output in (searched, plain))
            # Errors that are the rounding of scales to f32 are none: a value alone in its channel.
            rounding = rows_of(tensors[name], granularity).double().square().sum(1) * 2.0**-46
            worse = best > most * (1 + 1e-9) + rounding
            assert not worse.any(), f"{name}: channel {int(worse.nonzero()[0])}: {best[worse][0]} > {most[worse][0]}"
            gained += int((best < most * 0.999).sum())
    assert gained > 0


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_mse_is_never_worse_than_a_fine_grid(quantize, needs, weights):
    """Symmetric, every channel: 400 clipping ranges from a fiftieth of the largest magnitude to all of it."""
    needs("mse")
    output = quantize(FIXTURE, "--observer", "mse", "--weights", weights)
    low, high = (-128, 127) if weights == "int8" else (-8, 7)
    for name, tensor in load_file(FIXTURE).items():
        if name in output.records:
            rows = tensor.flatten(1)
            best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
            for fraction in torch.linspace(0.02, 1, 400):
                scale = (rows.abs().amax(1, keepdim=True) * fraction / ((high - low) / 2)).clamp(min=2.0**-23)
                codes = (rows * (1 / scale)).round().clamp(low, high)
                best = best.minimum((codes.double() * scale.double() - rows.double()).square().sum(1))
            found = squared_errors(output, name, tensor, "per-channel")
            worse = found > best * (1 + 1e-6)
            assert not worse.any(), f"{name}: {int(worse.sum())} of {len(rows)} channels, by up to {(found / best)[worse].max() - 1}"
