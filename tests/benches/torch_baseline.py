"""int8 per channel in PyTorch + safetensors, as a script does it: torch_baseline.py IN OUT [THREADS]

Symmetric, scale = absmax / 127.5, weights of rank 2 and more. Prints the seconds of the work; importing is not counted.
"""

import sys
import time

import torch
from safetensors.torch import load_file, save_file


def quantize(tensor):
    rows = tensor.float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127.5).clamp(min=2.0**-23)
    codes = (rows / scale[:, None]).round().clamp(-128, 127).to(torch.int8)
    return codes.reshape(tensor.shape), scale


def main(source, out, threads="2"):
    torch.set_num_threads(int(threads))
    start = time.perf_counter()
    result = {}
    for name, tensor in load_file(source).items():
        if tensor.dim() >= 2:
            result[name], result[name + ".scale"] = quantize(tensor)
        else:
            result[name] = tensor
    save_file(result, out, metadata={"format": "pt"})
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
