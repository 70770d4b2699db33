"""`--convention ort` is the arithmetic of ONNX Runtime's quantization tool."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import quant_utils
from safetensors.torch import load_file

import checkpoints
from conftest import FIXTURE, assert_bits, assert_equal
from test_torch import ALL

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int4": TensorProto.INT4, "uint4": TensorProto.UINT4}
SCHEMES = [(weights, symmetric) for weights in TYPES for symmetric in (True, False)]


def options(weights, symmetric, granularity, axis=0):
    return ("--convention", "ort", "--weights", weights, "--symmetric" if symmetric else "--asymmetric", "--granularity", granularity, "--axis", axis)


def check(output, name, scales, zero_points, codes):
    assert_bits(output.scales(name), np.asarray(scales).astype(np.float32).reshape(-1), f"{name} scales")
    assert output.zero_points(name).tolist() == np.asarray(zero_points).astype(np.int64).reshape(-1).tolist(), f"{name} zero points"
    assert_equal(output.codes(name), torch.from_numpy(np.asarray(codes).astype(np.int16)), f"{name} codes")


def reference(values, weights, symmetric, axis):
    """Scales, zero points and codes of quantize_data, channel by channel as the tool calls it."""
    parts = [values] if axis is None else [values.take(i, axis) for i in range(values.shape[axis])]
    zero_points, scales, codes = zip(*(quant_utils.quantize_data(part.flatten(), TYPES[weights], symmetric) for part in parts))
    codes = [np.asarray(part_codes).astype(np.int16).reshape(part.shape) for part_codes, part in zip(codes, parts)]
    return scales, zero_points, codes[0] if axis is None else np.stack(codes, axis)


@pytest.mark.parametrize("weights, symmetric", SCHEMES)
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", ["trained", "F32", "F16"])
def test_quantize_data(tmp_path, quantize, dtype, weights, symmetric, axis):
    if dtype == "trained":
        model, tensors = FIXTURE, load_file(FIXTURE)
    else:
        tensors = checkpoints.mixed(dtype)
        model = checkpoints.write(tmp_path / "m.safetensors", tensors)
    granularity = "per-tensor" if axis is None else "per-channel"
    output = quantize(model, *ALL, *options(weights, symmetric, granularity, axis or 0))
    for name in output.records:
        check(output, name, *reference(tensors[name].numpy(), weights, symmetric, axis))


@pytest.mark.parametrize("weights, symmetric", SCHEMES)
@pytest.mark.parametrize("size", [32, 7])
def test_blocks(tmp_path, quantize, weights, symmetric, size):
    tensors = {name: tensor for name, tensor in checkpoints.weights().items() if tensor.dim() == 2 and tensor.numel() < 30_000}
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, *options(weights, symmetric, f"per-group:{size}"))
    for name, tensor in tensors.items():
        values = tensor.numpy()
        zero_points, scales = quant_utils.compute_scale_zp_blocked(values, TYPES[weights], 1, size, symmetric)
        initializer = numpy_helper.from_array(values, name)
        codes = quant_utils.quantize_onnx_initializer(initializer, TYPES[weights], zero_points, scales, axis=1, block_size=size)
        check(output, name, scales, zero_points, numpy_helper.to_array(codes))


def test_another_convention_is_noticed(quantize):
    output = quantize(FIXTURE, "--convention", "torch")
    for name, tensor in load_file(FIXTURE).items():
        if name in output.records:
            with pytest.raises(AssertionError, match="scales"):
                check(output, name, *reference(tensor.numpy(), "int8", True, 0))
