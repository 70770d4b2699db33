"""Runs the binary and reads what it wrote: QTOOL, or target/release/qtool."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("QTOOL", ROOT / "target/release/qtool")).resolve()
FIXTURE = ROOT / "fixtures/silero_vad_16k.safetensors"

torch.set_num_threads(2)


def run(*arguments, status=0, timeout=60):
    """Standard output of the binary, which must exit with `status`."""
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def header_of(path):
    """Header of a safetensors file, members in the order of the file."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


class Output:
    """A file of codes with its sidecar."""

    def __init__(self, weights):
        self.weights = Path(weights)
        self.sidecar = self.weights.with_suffix(".json")
        self.document = json.loads(self.sidecar.read_text())
        self.records = self.document["tensors"]
        self.stored = load_file(self.weights)

    def codes(self, name):
        """Codes of a tensor in its shape, those of four bits unpacked as docs/sidecar.md says."""
        record, stored = self.records[name], self.stored[name]
        if record["dtype"] not in ("int4", "uint4"):
            return stored
        flat = stored.flatten()
        codes = torch.stack([flat & 0xF, flat >> 4], dim=1).flatten()[: int(np.prod(record["shape"]))].to(torch.int16)
        if record["dtype"] == "int4":
            codes = torch.where(codes >= 8, codes - 16, codes)
        return codes.reshape(record["shape"])

    def numbers(self, name, field, dtype):
        """Scales or zero points as an array, in the order of the groups."""
        found = self.records[name][field]
        if isinstance(found, dict):
            return self.stored[found["tensor"]].flatten().numpy().astype(dtype)
        return np.array(found, dtype)

    def scales(self, name):
        return self.numbers(name, "scale", np.float32)

    def zero_points(self, name):
        """One for each scale."""
        return np.broadcast_to(self.numbers(name, "zero_point", np.int64), self.scales(name).shape)


@pytest.fixture
def quantize(tmp_path):
    """quantize(model, options…) runs `qtool quantize` on a file and gives its Output."""
    count = iter(range(10**6))

    def quantized(model, *options):
        out = tmp_path / f"quantized-{next(count)}.safetensors"
        run("quantize", model, "-o", out, "--quiet", "--durability", "none", *options)
        return Output(out)

    return quantized


@pytest.fixture(scope="session")
def observers():
    """Names of the observers that `quantize` offers."""
    text = run("quantize", "--help")
    return text.split("How the range is chosen:")[1].split("[default: min-max]")[0]


def assert_bits(found, expected, what):
    """Two float arrays are equal to the bit; -0.0 is not 0.0."""
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape, f"{what}: {found.dtype} {found.shape}, {expected.dtype} {expected.shape}"
    differ = np.flatnonzero(found.view(f"u{found.itemsize}") != expected.view(f"u{found.itemsize}"))
    assert differ.size == 0, f"{what}: {differ.size} of {found.size} differ, first at {differ[0]}: {found.flat[differ[0]]!r}, expected {expected.flat[differ[0]]!r}"


def assert_equal(found, expected, what):
    """Two integer tensors are equal."""
    assert found.shape == expected.shape, f"{what}: {found.shape}, {expected.shape}"
    differ = (found.to(torch.int64) != expected.to(torch.int64)).flatten().nonzero()
    assert len(differ) == 0, f"{what}: {len(differ)} of {found.numel()} differ, first at {int(differ[0])}"


def tensor_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
