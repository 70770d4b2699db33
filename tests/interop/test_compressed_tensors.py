"""`--convention compressed-tensors` is the arithmetic of that library, in the weight's own type."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize as reference_quantize
from compressed_tensors.quantization.utils import calculate_qparams

import checkpoints
from conftest import assert_bits, assert_equal
from test_torch import ALL

STRATEGIES = {"tensor": "per-tensor", "channel": "per-channel", "group": "per-group:32"}


def reference(values, bits, symmetric, strategy):
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=32 if strategy == "group" else None)
    grouped = {"tensor": values.reshape(1, -1), "channel": values, "group": values.unflatten(-1, (-1, 32)) if strategy == "group" else None}[strategy]
    low, high = (end.reshape(1) if strategy == "tensor" else end for end in (grouped.amin(-1), grouped.amax(-1)))
    if strategy == "channel":
        low, high = low[:, None], high[:, None]
    scales, zero_points = calculate_qparams(low, high, args)
    return scales, zero_points, reference_quantize(values, scales, zero_points, args, dtype=torch.int8)


def check(output, name, expected):
    scales, zero_points, codes = expected
    assert_bits(output.scales(name), scales.float().flatten().numpy(), f"{name} scales")
    assert_equal(torch.from_numpy(output.zero_points(name).copy()), zero_points.flatten(), f"{name} zero points")
    assert_equal(output.codes(name), codes, f"{name} codes")


def matrices(dtype, strategy):
    tensors = {name: tensor.to(checkpoints.DTYPES[dtype]) for name, tensor in checkpoints.weights().items() if tensor.dim() == 2}
    return {name: tensor for name, tensor in tensors.items() if strategy != "group" or tensor.shape[-1] % 32 == 0}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_calculate_qparams_and_quantize(tmp_path, quantize, dtype, bits, symmetric, strategy):
    tensors = matrices(dtype, strategy)
    model = checkpoints.write(tmp_path / "m.safetensors", tensors)
    symmetry = "--symmetric" if symmetric else "--asymmetric"
    options = ("--convention", "compressed-tensors", "--weights", f"int{bits}", symmetry, "--granularity", STRATEGIES[strategy])
    output = quantize(model, *ALL, *options)
    assert output.records.keys() == tensors.keys() and tensors
    for name, tensor in tensors.items():
        check(output, name, reference(tensor, bits, symmetric, strategy))


def test_another_convention_is_noticed(tmp_path, quantize):
    """In bf16 the library rounds twice, which PyTorch's arithmetic in f32 does not."""
    tensors = matrices("BF16", "channel")
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, "--convention", "torch")
    with pytest.raises(AssertionError):
        check(output, "linear.weight", reference(tensors["linear.weight"], 8, True, "channel"))
