"""--fake-quant gives what PyTorch's fake quantizers give, to the bit, and in ONNX models changes weights only."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import onnx_models
import onnx_tools
from conftest import assert_bits, run

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
        # PyTorch's minus zero is a zero.
        assert torch.equal(found[name], expected), f"{name}: {(found[name] != expected).sum()} differ"


def constants(model):
    """Float constants by the name of the value, in whatever way they are stored, also in bodies."""
    found = {}

    def collect(graph):
        for tensor in graph.initializer:
            found[tensor.name] = tensor
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    found[node.output[0]] = attribute.t
                for body in [attribute.g, *attribute.graphs]:
                    collect(body)

    collect(model.graph)
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def without_values(model):
    """The model with all values of constants cleared."""
    model = onnx.ModelProto.FromString(model.SerializeToString())

    def clear(graph):
        tensors = list(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                tensors.append(attribute.t)
                for body in [attribute.g, *attribute.graphs]:
                    clear(body)
        for tensor in tensors:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)

    clear(model.graph)
    return model


def test_onnx_graphs_stay_and_weights_are_fake_quantized(tmp_path):
    model = onnx_models.every_weight() if hasattr(onnx_models, "every_weight") else onnx_models.model()
    path, out = tmp_path / "model.onnx", tmp_path / "fake.onnx"
    onnx.save(model, path)
    run("quantize", path, "--fake-quant", "-o", out)
    fake = onnx.load(out)
    onnx.checker.check_model(fake, full_check=True)
    assert without_values(model) == without_values(fake)
    records = json.loads(out.with_suffix(".json").read_text())["tensors"]
    before, after = constants(model), constants(fake)
    assert set(before) == set(after) and len(records) > 10
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    for name in changed:
        record = next(record for shown, record in records.items() if shown.split("/")[-1] == name)
        axis = record.get("axis", 0)
        shape = [-1 if i == axis and len(record["scale"]) > 1 else 1 for i in range(before[name].ndim)]
        scale = np.array(record["scale"], np.float32).reshape(shape)
        codes = np.clip(np.rint(before[name].astype(np.float32) / scale), record["qmin"], record["qmax"]).astype(np.float32)
        assert_bits(after[name] + 0, (codes * scale).astype(before[name].dtype) + 0, name)
    onnx_tools.session(fake)
