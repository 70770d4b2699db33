"""Writes a checkpoint with the shapes of a Llama model and random weights: make_checkpoint.py OUT [F32|BF16|F16] [LAYERS].

Two layers with the shapes of Llama 3 8B (the default) are 1.6 GiB in F32. Uses NumPy only; the values are the same on
every run.
"""

import json
import sys

import numpy as np

WIDTH, HIDDEN, KEY_VALUE = 4096, 14336, 1024


def shapes(layers):
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (WIDTH,)
        for name, rows in (("q", WIDTH), ("k", KEY_VALUE), ("v", KEY_VALUE), ("o", WIDTH)):
            yield f"{layer}self_attn.{name}_proj.weight", (rows, WIDTH)
        yield layer + "mlp.gate_proj.weight", (HIDDEN, WIDTH)
        yield layer + "mlp.up_proj.weight", (HIDDEN, WIDTH)
        yield layer + "mlp.down_proj.weight", (WIDTH, HIDDEN)
        yield layer + "post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)


def stored(values, dtype):
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def main(out, dtype="F32", layers="2"):
    width = 4 if dtype == "F32" else 2
    header, offset = {}, 0
    for name, shape in shapes(int(layers)):
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(out, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shapes(int(layers)):
            rows = shape[0] if len(shape) == 2 else 1
            for start in range(0, rows, 4096):
                block = (min(4096, rows - start),) + shape[1:] if len(shape) == 2 else shape
                file.write(stored(random.standard_normal(block, np.float32) * np.float32(0.02), dtype))


main(*sys.argv[1:])
