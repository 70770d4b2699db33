"""`qtool dequantize` gives what PyTorch's `.dequantize()` gives, in the model's own types, names and order."""

import json

import pytest
import torch
from safetensors.torch import load_file

import checkpoints
from conftest import FIXTURE, header_of, run, tensor_bytes
from test_torch import ALL, SCHEMES, reference, scheme_options


def dequantize(output):
    back = output.weights.with_suffix(".float.safetensors")
    run("dequantize", output.weights, "-o", back, "--quiet")
    return back


def check(output, back, tensors, expected):
    found = load_file(back)
    assert list(found) and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        wanted = expected(name).to(tensor.dtype) if name in output.records else tensor
        assert tensor_bytes(found[name]) == tensor_bytes(wanted), name


@pytest.mark.parametrize("dtype", checkpoints.FLOATS + checkpoints.EIGHT_BITS)
@pytest.mark.parametrize("weights, symmetric, axis", SCHEMES)
def test_values_are_those_of_pytorch(tmp_path, quantize, dtype, weights, symmetric, axis):
    tensors = checkpoints.mixed(dtype)
    model = checkpoints.write(tmp_path / "m.safetensors", tensors)
    output = quantize(model, *ALL, *scheme_options(weights, symmetric, axis))
    back = dequantize(output)
    check(output, back, tensors, lambda name: reference(tensors[name].float(), weights, symmetric, axis)[2].dequantize())
    names = lambda path: [name for name in header_of(path) if name != "__metadata__"]
    assert names(back) == names(model)


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("symmetry", ["--symmetric", "--asymmetric"])
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel", "per-group:32", "per-group:7"])
def test_values_are_codes_less_zero_point_times_scale(tmp_path, quantize, weights, symmetry, granularity):
    tensors = checkpoints.mixed("F16")
    model = checkpoints.write(tmp_path / "m.safetensors", tensors)
    output = quantize(model, *ALL, "--weights", weights, symmetry, "--granularity", granularity)

    def expected(name):
        record, codes = output.records[name], output.codes(name).float()
        last = record["shape"][-1]

        def spread(numbers):
            numbers = torch.from_numpy(numbers.copy()).float()
            if granularity == "per-tensor":
                return numbers
            if granularity == "per-channel":
                return numbers.reshape([-1] + [1] * (codes.dim() - 1))
            return numbers.reshape(*record["shape"][:-1], -1).repeat_interleave(record["group_size"], -1)[..., :last]

        return (codes - spread(output.zero_points(name))) * spread(output.scales(name))

    check(output, dequantize(output), tensors, expected)


def test_trained_model_from_its_sidecar(quantize):
    output = quantize(FIXTURE, "--asymmetric")
    back = output.weights.with_name("back.safetensors")
    run("dequantize", output.sidecar, "-o", back)
    tensors = load_file(FIXTURE)
    check(output, back, tensors, lambda name: reference(tensors[name], "int8", False, 0)[2].dequantize())


def test_sharded_directory(tmp_path):
    model, out, back = tmp_path / "model", tmp_path / "out", tmp_path / "back"
    model.mkdir()
    tensors = checkpoints.mixed("BF16")
    names = list(tensors)
    weight_map = {}
    for shard, members in {"a.safetensors": names[:9], "b.safetensors": names[9:]}.items():
        checkpoints.write(model / shard, {name: tensors[name] for name in members})
        weight_map |= dict.fromkeys(members, shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    run("quantize", model, "-o", out, "--quiet", "--granularity", "per-group:32", "--asymmetric")
    run("dequantize", out, "-o", back, "--quiet")
    quantized = json.loads((out / "qtool.json").read_text())["tensors"]
    assert json.loads((back / "model.safetensors.index.json").read_text())["weight_map"] == weight_map
    found = load_file(back / "a.safetensors") | load_file(back / "b.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        if name not in quantized:
            assert tensor_bytes(found[name]) == tensor_bytes(tensor), name


def test_another_scheme_is_noticed(tmp_path, quantize):
    """The comparison above can fail."""
    tensors = checkpoints.mixed("F32")
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", tensors), *ALL, "--convention", "ort")
    with pytest.raises(AssertionError):
        check(output, dequantize(output), tensors, lambda name: reference(tensors[name], "int8", True, 0)[2].dequantize())
