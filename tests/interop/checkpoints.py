"""Checkpoints to quantize: seeded values with the shapes and the accidents of real ones."""

import json

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ["F32", "F16", "BF16", "F64"]
EIGHT_BITS = ["F8_E4M3", "F8_E5M2"]


def heavy(shape, random):
    """Student's t with 3 degrees of freedom: far outliers."""
    normal = torch.randn((4,) + shape, generator=random)
    return normal[0] / (normal[1:].square().sum(0) / 3).sqrt()


def weights():
    """Float32 tensors of rank 2 and more, by name."""
    random = torch.Generator().manual_seed(20240229)
    normal = lambda *shape: torch.randn(shape, generator=random)
    rows = torch.stack([torch.zeros(40), torch.full((40,), 0.75), torch.full((40,), -3.5), -normal(40).abs(), normal(40).abs(), normal(40)])
    return {
        "z.last.in.name.first.in.file": normal(33, 65) * 0.02,
        "linear.weight": normal(96, 200) * 0.05,
        "heavy.weight": heavy((64, 333), random) * 0.1,
        "conv1d.weight": normal(24, 7, 5),
        "conv2d.weight": heavy((32, 16, 3, 3), random),
        "conv3d.weight": normal(3, 5, 2, 3, 4),
        "depthwise.weight": normal(48, 1, 3, 3),
        "embed_tokens.weight": normal(1000, 48) * 0.5,
        "odd.weight": normal(7, 13),
        "row.weight": normal(1, 129),
        "column.weight": normal(129, 1),
        "long_rows.weight": normal(2, 70001),
        "rows.weight": rows,
        "zero.weight": torch.zeros(4, 9),
        "ties.weight": torch.arange(-255, 257).reshape(16, 32) / 2 / 128,
        "small.weight": normal(8, 31) * 2.0**-13,
        "offset.weight": normal(12, 50) * 0.01 + 5,
        "channels.weight": normal(20, 64) * torch.logspace(-3, 2, 20)[:, None],
    }


def kept():
    """Tensors that are copied."""
    random = torch.Generator().manual_seed(7)
    return {
        "linear.bias": torch.randn(96, generator=random),
        "norm.weight": torch.randn(5, generator=random).half(),
        "step": torch.tensor(17),
        "scalar": torch.tensor(0.1),
        "mask": torch.rand(3, 3, generator=random) > 0.5,
        "empty": torch.zeros(0, 4),
    }


def write(path, tensors, metadata=None):
    """Writes a safetensors file in the order given, which the library's writer does not keep."""
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return path


def mixed(dtype):
    """Weights in a type, with the tensors that are kept between them."""
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights().items()}
    tensors = dict(list(tensors.items())[:5] + list(kept().items()) + list(tensors.items())[5:])
    return tensors
