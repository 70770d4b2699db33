"""The figures of `compare` and of sidecars are what PyTorch computes in f64."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import checkpoints
from conftest import FIXTURE, Output, run

OPTIONS = [(), ("--asymmetric", "--granularity", "per-tensor"), ("--weights", "int4", "--granularity", "per-group:32"), ("--axis", "1")]


def figures(values, dequantized):
    x, y = values.double().flatten(), dequantized.double().flatten()
    error, signal = (x - y).square().sum(), x.square().sum()
    return {
        "cosine": ((x * y).sum() / (signal * y.square().sum()).sqrt()).item(),
        "max_abs": (x - y).abs().max().item(),
        "mse": (error / x.numel()).item(),
        "sqnr_db": (10 * torch.log10(signal / error)).item(),
    }


# Sidecars: made in f32 while codes are. A value of 127 scales has 7 bits before the point, its error none.
IN_PASSING = {"max_abs": 1e-3, "mse": 1e-4, "sqnr_db": 1e-4}
EXACT = dict.fromkeys(["cosine", "max_abs", "mse", "sqnr_db"], 1e-9)


def check(found, expected, tolerances, what):
    for figure, tolerance in tolerances.items():
        value = expected[figure]
        close = found[figure] is None if not math.isfinite(value) else found[figure] == pytest.approx(value, rel=tolerance)
        assert close, f"{what} {figure}: {found[figure]}, expected {value}"


@pytest.mark.parametrize("dtype", ["trained"] + checkpoints.FLOATS)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_figures(tmp_path, dtype, options):
    if dtype == "trained":
        model, tensors = FIXTURE, load_file(FIXTURE)
    else:
        tensors = checkpoints.mixed(dtype)
        model = checkpoints.write(tmp_path / "m.safetensors", tensors)
    # Values are compared before they are rounded to the model's type: store them as f32.
    out, back = tmp_path / "q.safetensors", tmp_path / "back.safetensors"
    run("quantize", model, "-o", out, "--quiet", *options)
    output = Output(out)
    floats = {name: tensor.float() if name in output.records else tensor for name, tensor in tensors.items()}
    wide = checkpoints.write(tmp_path / "wide.safetensors", floats)
    run("quantize", wide, "-o", tmp_path / "w.safetensors", "--quiet", *options)
    run("dequantize", tmp_path / "w.safetensors", "-o", back, "--quiet")
    dequantized = load_file(back)

    report = json.loads(run("compare", model, out, "--json"))
    found = {tensor["name"]: tensor for tensor in report["tensors"]}
    compared = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    assert set(found) == set(compared)
    for name in compared:
        tensor = found[name]
        assert tensor["quantized"] == (name in output.records)
        if name in output.records:
            expected = figures(floats[name], dequantized[name])
            check(tensor, expected, EXACT, name)
            check(output.records[name]["error"], expected, IN_PASSING, f"{name} in the sidecar")
        else:
            assert (tensor["mse"], tensor["max_abs"], tensor["sqnr_db"]) == (0, 0, None)
    flat = lambda of: torch.cat([of[name].double().flatten() for name in compared])
    check(report["total"], figures(flat(tensors if dtype != "F64" else floats), flat(dequantized)), EXACT, "total")
    ratios = [tensor["sqnr_db"] for tensor in report["tensors"] if tensor["sqnr_db"] is not None]
    assert ratios == sorted(ratios)


def test_gates(quantize):
    output = quantize(FIXTURE)
    worst = json.loads(run("compare", FIXTURE, output.weights, "--json"))["tensors"][0]
    run("compare", FIXTURE, output.weights, "--min-sqnr", worst["sqnr_db"] - 0.01, "--max-mse", 1)
    run("compare", FIXTURE, output.weights, "--min-sqnr", worst["sqnr_db"] + 0.01, status=3)
    run("compare", FIXTURE, output.weights, "--max-mse", worst["mse"] / 2, status=3)
