"""Every form of output loads with the safetensors library, in the layout that docs/sidecar.md promises."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import checkpoints
from conftest import FIXTURE, Output, header_of, run, tensor_bytes

FORMS = [
    (weights, symmetry, granularity)
    for weights in ("int8", "uint8", "int4", "uint4")
    for symmetry in ("--symmetric", "--asymmetric")
    for granularity in ("per-tensor", "per-channel", "per-group:32", "per-group:7")
]


def check_kept(tensors, stored, records):
    for name in tensors.keys() - records.keys():
        assert stored[name].dtype == tensors[name].dtype and stored[name].shape == tensors[name].shape, name
        assert tensor_bytes(stored[name]) == tensor_bytes(tensors[name]), name


@pytest.mark.parametrize("weights, symmetry, granularity", FORMS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_every_form(tmp_path, quantize, dtype, weights, symmetry, granularity):
    tensors = checkpoints.mixed(dtype)
    model = checkpoints.write(tmp_path / "m.safetensors", tensors, {"author": "test"})
    output = quantize(model, "--weights", weights, symmetry, "--granularity", granularity, "--include", "*", "--min-elements", "0")
    assert set(output.records) == set(checkpoints.weights())
    check_kept(tensors, output.stored, output.records)
    expected = set(tensors)
    for name, record in output.records.items():
        rank, last = len(record["shape"]), record["shape"][-1]
        stored = output.stored[name]
        elements = int(np.prod(record["shape"]))
        assert tuple(record["shape"]) == tuple(tensors[name].shape)
        assert stored.dtype == (torch.int8 if weights == "int8" else torch.uint8)
        assert stored.numel() == (elements if weights.endswith("8") else (elements + 1) // 2)
        codes = output.codes(name)
        assert codes.shape == tensors[name].shape
        assert record["qmin"] <= codes.min() and codes.max() <= record["qmax"]
        if granularity.startswith("per-group"):
            groups = list(record["shape"][:-1]) + [-(-last // record["group_size"])]
            scale = output.stored[record["scale"]["tensor"]]
            assert scale.dtype == torch.float32 and list(scale.shape) == groups and record["axis"] == rank - 1
            expected.add(record["scale"]["tensor"])
            if symmetry == "--asymmetric":
                zero_point = output.stored[record["zero_point"]["tensor"]]
                assert zero_point.dtype == (torch.int8 if weights.startswith("int") else torch.uint8) and list(zero_point.shape) == groups
                expected.add(record["zero_point"]["tensor"])
    assert set(output.stored) == expected
    with safe_open(output.weights, "pt") as file:
        assert set(file.keys()) == expected
        assert file.metadata() == {"author": "test", "format": "pt"}
        assert all(torch.equal(file.get_tensor(name), output.stored[name]) for name in output.records)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
@pytest.mark.parametrize("options", [(), ("--granularity", "per-group:7"), ("--granularity", "per-group:32", "--weights", "int4", "--asymmetric")], ids=" ".join)
def test_tensors_are_aligned_and_without_gaps(tmp_path, quantize, dtype, options):
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", checkpoints.mixed(dtype)), *options)
    header = header_of(output.weights)
    start = 8 + int.from_bytes(output.weights.read_bytes()[:8], "little")
    places = sorted((member["data_offsets"], member["dtype"]) for name, member in header.items() if name != "__metadata__")
    end = 0
    for (begin, stop), stored in places:
        assert begin == end and (start + begin) % {"I64": 8, "F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(stored, 1) == 0
        end = stop
    assert start + end == output.weights.stat().st_size


def test_nibbles_are_packed_low_first(tmp_path, quantize):
    values = torch.tensor([[-7.5, 7.0, -1.0, 0.0, 3.0]])
    output = quantize(checkpoints.write(tmp_path / "m.safetensors", {"w": values}), "--weights", "int4", "--include", "*")
    assert output.scales("w").tolist() == [1.0]
    assert output.stored["w"].tolist() == [0x78, 0x0F, 0x03]
    assert output.codes("w").tolist() == [[-8, 7, -1, 0, 3]]


def test_sharded_directory(tmp_path):
    """The layout of Hugging Face: shards, an index, and files that go with them."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    tensors = checkpoints.mixed("BF16")
    names = list(tensors)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for shard, members in shards.items():
        checkpoints.write(model / shard, {name: tensors[name] for name in members}, {"format": "pt"})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    (model / "config.json").write_text('{"model_type": "llama"}')
    run("quantize", model, "-o", out, "--quiet", "--granularity", "per-group:32", "--include", "*", "--exclude", "embed_tokens")
    document = json.loads((out / "qtool.json").read_text())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert (out / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert "embed_tokens.weight" in document["kept"]
    stored = {}
    for shard, members in shards.items():
        loaded = load_file(out / shard)
        assert set(members) <= set(loaded)
        assert all(index["weight_map"][name] == shard for name in loaded)
        stored |= loaded
    assert set(index["weight_map"]) == set(stored)
    assert index["metadata"]["total_size"] == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    check_kept(tensors, stored, document["tensors"])
    run("verify", out)
    whole = checkpoints.write(tmp_path / "whole.safetensors", tensors)
    run("quantize", whole, "--quiet", "--granularity", "per-group:32", "--include", "*", "--exclude", "embed_tokens")
    one = Output(tmp_path / "whole.int8.safetensors")
    assert one.records == document["tensors"]
    for name in one.stored:
        assert tensor_bytes(one.stored[name]) == tensor_bytes(stored[name]), name


def test_the_first_command_of_a_newcomer(tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(FIXTURE.read_bytes())
    run("quantize", model)
    output = Output(tmp_path / "model.int8.safetensors")
    tensors = load_file(model)
    assert set(output.stored) == set(tensors)
    for name, record in output.records.items():
        values = output.codes(name).float() * torch.from_numpy(output.scales(name)).reshape([-1] + [1] * (len(record["shape"]) - 1))
        # Half a step, and the largest code is half a step short of the largest value.
        steps = (values - tensors[name]).abs().flatten(1).max(1).values / torch.from_numpy(output.scales(name))
        assert steps.max() <= 0.5 + 1e-4
