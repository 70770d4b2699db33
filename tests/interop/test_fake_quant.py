"""--fake-quant gives what PyTorch's fake quantizers give, to the bit, and in ONNX models changes weights only."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from conftest import assert_bits, run
from onnx_models import CASES, constants, graphs
from onnx_tools import outputs, sqnr

GRIDS = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def numbers(record, field, dtype):
    return torch.tensor(record[field], dtype=dtype)


@pytest.mark.parametrize("symmetry", ["--symmetric", "--asymmetric"])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("weights", GRIDS)
def test_values_are_those_of_fake_quantize(tmp_path, weights, granularity, symmetry):
    torch.manual_seed(3)
    tensors = {name: (torch.randn(24, 130) * 10 ** torch.linspace(-3, 1, 24)[:, None]).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    out = tmp_path / "fake.safetensors"
    run("quantize", tmp_path / "model.safetensors", "--fake-quant", "-o", out, "--weights", weights, "--granularity", granularity, symmetry)
    records, found = json.loads(out.with_suffix(".json").read_text())["tensors"], load_file(out)
    for name, values in tensors.items():
        scale, zero_point = numbers(records[name], "scale", torch.float32), numbers(records[name], "zero_point", torch.int32)
        values, grid = values.float(), GRIDS[weights]
        if granularity == "per-channel":
            expected = torch.fake_quantize_per_channel_affine(values, scale, zero_point.expand(len(scale)), 0, *grid)
        else:
            expected = torch.fake_quantize_per_tensor_affine(values, scale.item(), zero_point.item(), *grid)
        assert found[name].dtype == DTYPES[name]
        expected = expected.to(DTYPES[name])
        assert torch.equal(found[name], expected), f"{name}: {(found[name] != expected).sum()} differ"


def tensors(model):
    """Every constant of every graph, in whatever way it is stored."""
    for graph in graphs(model):
        yield from graph.initializer
        yield from (node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value")


def without_values(model):
    """The model's bytes with all values of constants cleared."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in tensors(model):
        for field in ("raw_data", "float_data", "int32_data", "double_data"):
            tensor.ClearField(field)
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", CASES)
def test_onnx_graphs_stay_and_weights_are_fake_quantized(tmp_path, name):
    case = CASES[name]()
    path, out = tmp_path / "model.onnx", tmp_path / "fake.onnx"
    onnx.save(case.proto, path)
    run("quantize", path, "--fake-quant", "-o", out)
    run("verify", out)
    fake = onnx.load(out)
    onnx.checker.check_model(fake)
    assert without_values(fake) == without_values(case.proto)
    records = json.loads(out.with_suffix(".json").read_text())["tensors"]
    before, after = ({name: numpy_helper.to_array(tensor) for name, tensor in constants(model).items()} for model in (case.proto, fake))
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    shown = {known.split("/")[-1]: record for known, record in records.items()}
    assert changed <= set(shown)
    for name in changed:
        record = shown[name]
        assert (list(before[name].shape), record["scheme"]) == (record["shape"], "symmetric")
        shape = [-1 if i == record.get("axis") else 1 for i in range(before[name].ndim)]
        scale = np.array(record["scale"], np.float32).reshape(shape)
        codes = np.clip(np.rint(before[name].astype(np.float32) / scale), record["qmin"], record["qmax"]).astype(np.float32)
        # A code of 0 is a zero without a sign.
        values = (codes * scale).astype(before[name].dtype)
        assert_bits(after[name], values + values.dtype.type(0), name)
    if not case.runs:
        return
    feeds = [case.feeds(seed) for seed in range(4)]
    assert sqnr(outputs(case.proto, feeds), outputs(fake, feeds)) > 27
