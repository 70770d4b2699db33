"""Codes, scales and zero points of the default convention are those of PyTorch's observers and quantize functions."""

import numpy as np
import pytest
import torch
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

import checkpoints
from conftest import FIXTURE, assert_bits, assert_equal
from safetensors.torch import load_file

QTYPES = {"int8": torch.qint8, "uint8": torch.quint8}
ALL = ("--include", "*", "--min-elements", "0")


def torch_params(values, qdtype, symmetric, axis, **grid):
    """Scales and zero points of an observer that saw `values` once; per tensor if `axis` is None."""
    kind = "symmetric" if symmetric else "affine"
    if axis is None:
        observer = MinMaxObserver(dtype=qdtype, qscheme=getattr(torch, f"per_tensor_{kind}"), **grid)
    else:
        observer = PerChannelMinMaxObserver(ch_axis=axis, dtype=qdtype, qscheme=getattr(torch, f"per_channel_{kind}"), **grid)
    observer(values)
    return observer.calculate_qparams()


def torch_quantize(values, qdtype, scales, zero_points, axis):
    if axis is None:
        return torch.quantize_per_tensor(values, scales.item(), int(zero_points), qdtype)
    return torch.quantize_per_channel(values, scales, zero_points, axis, qdtype)


def reference(values, weights, symmetric, axis):
    qdtype = QTYPES[weights]
    scales, zero_points = torch_params(values, qdtype, symmetric, axis)
    return scales, zero_points, torch_quantize(values, qdtype, scales, zero_points, axis)


def scheme_options(weights, symmetric, axis):
    granularity = ("--granularity", "per-tensor") if axis is None else ("--granularity", "per-channel", "--axis", axis)
    return ("--weights", weights, "--symmetric" if symmetric else "--asymmetric", *granularity)


SCHEMES = [
    pytest.param(weights, symmetric, axis, id=f"{weights}-{'sym' if symmetric else 'asym'}-{'tensor' if axis is None else f'axis{axis}'}")
    for weights in QTYPES
    for symmetric in (True, False)
    for axis in (None, 0, 1)
]


def check(output, name, values, weights, symmetric, axis):
    scales, zero_points, quantized = reference(values, weights, symmetric, axis)
    assert_bits(output.scales(name), scales.numpy().reshape(-1), f"{name} scales")
    assert_equal(torch.from_numpy(output.zero_points(name).copy()), zero_points.reshape(-1), f"{name} zero points")
    assert_equal(output.codes(name), quantized.int_repr(), f"{name} codes")


@pytest.mark.parametrize("dtype", checkpoints.FLOATS + checkpoints.EIGHT_BITS)
@pytest.mark.parametrize("weights, symmetric, axis", SCHEMES)
def test_generated_weights(tmp_path, quantize, dtype, weights, symmetric, axis):
    tensors = checkpoints.mixed(dtype)
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, *scheme_options(weights, symmetric, axis))
    assert set(output.records) == set(checkpoints.weights())
    for name in output.records:
        check(output, name, tensors[name].float(), weights, symmetric, axis)


@pytest.mark.parametrize("weights, symmetric, axis", SCHEMES)
def test_trained_model(quantize, weights, symmetric, axis):
    tensors = load_file(FIXTURE)
    output = quantize(FIXTURE, *scheme_options(weights, symmetric, axis))
    assert len(output.records) == 7
    for name in output.records:
        check(output, name, tensors[name], weights, symmetric, axis)


def test_defaults_are_int8_symmetric_per_channel(quantize):
    tensors = load_file(FIXTURE)
    output = quantize(FIXTURE)
    for name in output.records:
        check(output, name, tensors[name], "int8", True, 0)


@pytest.mark.parametrize("weights, symmetric", [("int4", True), ("int4", False), ("uint4", False)])
def test_four_bits(tmp_path, quantize, weights, symmetric):
    """PyTorch has no such storage for weights; its observers have the range, and fake quantization the values."""
    low, high = (-8, 7) if weights == "int4" else (0, 15)
    qdtype = torch.qint8 if weights == "int4" else torch.quint8
    tensors = checkpoints.mixed("F32")
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, *scheme_options(weights, symmetric, 0))
    for name in output.records:
        values = tensors[name]
        scales, zero_points = torch_params(values, qdtype, symmetric, 0, quant_min=low, quant_max=high)
        assert_bits(output.scales(name), scales.numpy(), f"{name} scales")
        assert_equal(torch.from_numpy(output.zero_points(name).copy()), zero_points, f"{name} zero points")
        expected = torch.fake_quantize_per_channel_affine(values, scales, zero_points.to(torch.int32), 0, low, high)
        column = lambda numbers: numbers.reshape([-1] + [1] * (values.dim() - 1))
        found = (output.codes(name).float() - column(zero_points)) * column(scales)
        assert_bits(found.numpy() + 0.0, expected.numpy() + 0.0, f"{name} values")


@pytest.mark.parametrize("size", [32, 128, 7])
@pytest.mark.parametrize("weights", QTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_channels_of_the_tensor_cut_into_rows(tmp_path, quantize, weights, symmetric, size):
    tensors = checkpoints.mixed("F32")
    options = ("--weights", weights, "--symmetric" if symmetric else "--asymmetric", "--granularity", f"per-group:{size}")
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, *options)
    for name in output.records:
        values = tensors[name]
        last = values.shape[-1]
        padded = torch.nn.functional.pad(values, (0, -last % size))
        scales, zero_points, quantized = reference(padded.reshape(-1, size), weights, symmetric, 0)
        assert_bits(output.scales(name), scales.numpy(), f"{name} scales")
        assert_equal(torch.from_numpy(output.zero_points(name).copy()), zero_points, f"{name} zero points")
        assert_equal(output.codes(name), quantized.int_repr().reshape(padded.shape)[..., :last], f"{name} codes")


def test_another_convention_is_noticed(quantize):
    """The comparison above can fail: ONNX Runtime's divisor gives other scales and other codes."""
    tensors = load_file(FIXTURE)
    output = quantize(FIXTURE, "--convention", "ort")
    for name in output.records:
        with pytest.raises(AssertionError, match="scales"):
            check(output, name, tensors[name], "int8", True, 0)
        scales, _, quantized = reference(tensors[name], "int8", True, 0)
        with pytest.raises(AssertionError, match="codes"):
            assert_equal(output.codes(name), quantized.int_repr(), "codes")


def test_one_wrong_code_is_noticed(quantize):
    tensors = load_file(FIXTURE)
    output = quantize(FIXTURE)
    output.stored["conv1.weight"][5, 4, 2] ^= 1
    with pytest.raises(AssertionError, match="1 of .* differ"):
        check(output, "conv1.weight", tensors["conv1.weight"], "int8", True, 0)


def test_one_scale_off_by_a_unit_is_noticed(quantize):
    tensors = load_file(FIXTURE)
    output = quantize(FIXTURE)
    scales = output.records["conv1.weight"]["scale"]
    scales[3] = float(np.nextafter(np.float32(scales[3]), np.float32(1)))
    with pytest.raises(AssertionError, match="scales: 1 of 128 differ, first at 3"):
        check(output, "conv1.weight", tensors["conv1.weight"], "int8", True, 0)
