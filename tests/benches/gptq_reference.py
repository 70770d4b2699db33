"""Seconds of qtool's GPTQ beside the published algorithm in PyTorch, on the same recorded inputs of the same layers.

    python tests/benches/gptq_reference.py MODEL_DIR INPUTS.safetensors [GROUP]

The reference follows the paper (Frantar et al. 2022, algorithm 1, with activation order): Gram matrix, Cholesky factor of the damped
inverse, columns in blocks of 128, symmetric int4 scales of groups from minimum and maximum of the original weights. Both read the inputs
from the file, and neither runs the model. Runs alternate; the best of three counts.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("QTOOL", ROOT / "target/release/qtool")
BLOCK, DAMPING = 128, 0.01


@torch.no_grad()
def gptq(weight, inputs, group):
    """Dequantized weights."""
    weight, features = weight.clone(), weight.shape[1]
    inputs = inputs.reshape(-1, features)
    hessian = inputs.T @ inputs * (2 / len(inputs))
    scales = weight.reshape(len(weight), -1, group).abs().amax(-1) / 7.5
    order = hessian.diagonal().argsort(descending=True)
    weight, hessian, groups = weight[:, order], hessian[order][:, order], (order // group).tolist()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    quantized = torch.zeros_like(weight)
    for start in range(0, features, BLOCK):
        end = min(start + BLOCK, features)
        block, errors, factor = weight[:, start:end].clone(), torch.zeros(len(weight), end - start), inverse[start:end, start:end]
        for i in range(end - start):
            scale = scales[:, groups[start + i]]
            column = block[:, i]
            rounded = (column / scale).round().clamp(-8, 7) * scale
            quantized[:, start + i] = rounded
            error = (column - rounded) / factor[i, i]
            block[:, i:] -= error[:, None] * factor[i, i:]
            errors[:, i] = error
        weight[:, end:] -= errors @ inverse[start:end, end:]
    return quantized[:, order.argsort()]


def reference(model, inputs, group):
    started = time.perf_counter()
    with safe_open(inputs, "pt") as recorded, safe_open(model / "model.safetensors", "pt") as weights:
        by_layer = {name.removesuffix(".input"): name for name in recorded.keys()}
        count = 0
        for name in weights.keys():
            layer = name.removesuffix(".weight")
            if layer in by_layer and layer != "lm_head":
                weight = weights.get_tensor(name).float()
                gptq(weight, recorded.get_tensor(by_layer[layer]).float(), group if weight.shape[1] % group == 0 else weight.shape[1])
                count += 1
    return time.perf_counter() - started, count


def ours(model, inputs, group):
    with tempfile.TemporaryDirectory() as directory:
        command = [BINARY, "quantize", model, "--scheme", "w4a16", "--granularity", f"per-group:{group}", "--rounding", "gptq"]
        started = time.perf_counter()
        subprocess.run([*map(str, command), "--samples", inputs, "-o", f"{directory}/q", "--quiet", "--durability", "none"], check=True)
        return time.perf_counter() - started


def main():
    model, inputs, group = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 128
    torch.set_num_threads(os.cpu_count())
    found = [(*reference(model, inputs, group), ours(model, inputs, group)) for _ in range(3)]
    theirs, mine = min(row[0] for row in found), min(row[2] for row in found)
    print(f"{found[0][1]} layers: reference {theirs:.2f} s, qtool {mine:.2f} s: {theirs / mine:.1f} times")


main()
