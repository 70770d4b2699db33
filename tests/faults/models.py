"""Models made on the spot, and the forms of output that they are turned into.

A form is a directory with an input in it and a command that writes an output. The harness runs the command once undisturbed, which
gives the new state, and then again and again with a fault in it.
"""

import json
import math
import random
import struct


def safetensors(tensors):
    """The bytes of a safetensors file; `tensors` maps names to (shape, bytes of F32)."""
    header, data = {}, b""
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


#: Highest bytes of floats between 2^-7 and 2^-5, of either sign.
EXPONENTS = bytes(byte & 0x80 | 0x3C for byte in range(256))


def weights(seed, shape):
    """A tensor of values about as large as weights are: its shape and the bytes of F32 in row-major order."""
    content = bytearray(random.Random(seed).randbytes(4 * math.prod(shape)))
    content[3::4] = content[3::4].translate(EXPONENTS)
    return shape, bytes(content)


def layers(seed, count, shape):
    """The tensors of `count` layers with a bias each."""
    tensors = {}
    for i in range(count):
        tensors[f"layers.{i}.proj.weight"] = weights(seed + i, shape)
        tensors[f"layers.{i}.proj.bias"] = weights(seed - i - 1, shape[:1])
    return tensors


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    """A field of a protocol buffer that holds an integer."""
    return varint(field << 3) + varint(value)


def block(field, content):
    """A field of a protocol buffer that holds bytes."""
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def onnx(seed, count, width, location=None):
    """A chain of matrix products as an ONNX model; and the values of its constants, if they are to be in the file `location`."""
    data, nodes, constants = b"", b"", b""
    for i in range(count):
        shape, content = weights(seed + i, [width, width])
        tensor = b"".join(number(1, dim) for dim in shape) + number(2, 1) + block(8, f"w{i}")
        if location:
            entries = {"location": location, "offset": str(len(data)), "length": str(len(content))}
            tensor += b"".join(block(13, block(1, key) + block(2, value)) for key, value in entries.items()) + number(14, 1)
            data += content
        else:
            tensor += block(9, content)
        constants += block(5, tensor)
        nodes += block(1, block(1, f"x{i}") + block(1, f"w{i}") + block(2, f"x{i + 1}") + block(3, f"n{i}") + block(4, "MatMul"))

    def value(field, name):
        dims = block(1, number(1, 1)) + block(1, number(1, width))
        return block(field, block(1, name) + block(2, block(1, number(1, 1) + block(2, dims))))

    graph = nodes + block(2, "g") + constants + value(11, "x0") + value(12, f"x{count}")
    return number(1, 8) + block(7, graph) + block(8, number(2, 17)), data


class Form:
    """A command that writes an output, in a directory of its own.

    `command` writes the output of which `old` wrote an earlier version, if there is one; `output` is what `qtool verify` is given,
    `None` for outputs without a sidecar. `again` is how a run is repeated over what may be there. `extras` are files that are written
    once the output is complete; `without` is what the file system cannot do, of `without.ABILITIES`.
    """

    def __init__(self, name, make, command, old=None, output=None, again="--force", in_place=False, extras=(), without=()):
        self.name, self.make, self.output, self.in_place, self.extras = name, make, output, in_place, extras
        self.without = without
        self.command, self.old = command.split(), old and old.split()
        self.again = self.command + ([again] if again and again not in self.command else [])


def file_model(seed=1, count=2, shape=(32, 48)):
    def make(where):
        (where / "model.safetensors").write_bytes(safetensors(layers(seed, count, list(shape))))

    return make


def directory_model(seed=2, count=2, shape=(32, 48)):
    """Two shards, their index, and files that go with them."""

    def make(where):
        (where / "m" / "extra").mkdir(parents=True)
        weight_map = {}
        for shard in range(2):
            name = f"model-{shard + 1:05}-of-00002.safetensors"
            tensors = {key.replace("layers.", f"layers.{shard}"): tensor for key, tensor in layers(seed + 9 * shard, count, list(shape)).items()}
            (where / "m" / name).write_bytes(safetensors(tensors))
            weight_map.update(dict.fromkeys(tensors, name))
        (where / "m" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (where / "m" / "config.json").write_text('{"model_type": "llama"}')
        (where / "m" / "extra" / "tokenizer.json").write_text("{}" * 400)

    return make


def onnx_model(seed=3, count=2, width=40, external=False):
    def make(where):
        model, data = onnx(seed, count, width, "values.bin" if external else None)
        (where / "m.onnx").write_bytes(model)
        if external:
            (where / "values.bin").write_bytes(data)

    return make


def forms(count=2, shape=(32, 48), width=40):
    """Every form of output, new and over an old one, and some on file systems that can do less; larger models give longer runs."""
    one, many = file_model(1, count, shape), directory_model(2, count, shape)
    graph, external = onnx_model(3, count, width), onnx_model(4, count, width, external=True)
    file = "quantize model.safetensors -o q.safetensors"
    folder, compressed = "quantize m -o q", "quantize m -o q --scheme w8a8"
    as_onnx = "quantize m.onnx -o q.onnx"
    return [
        Form("file", one, file, None, "q.safetensors"),
        Form("file, replaced", one, file + " --force", file + " --weights uint8", "q.safetensors"),
        Form("directory", many, folder, None, "q"),
        Form("directory, replaced", many, folder + " --force", folder + " --weights uint8", "q"),
        Form("compressed-tensors", many, compressed, None, "q"),
        Form("compressed-tensors, replaced", many, compressed + " --force", "quantize m -o q --scheme w4a16 --granularity per-group:16", "q"),
        Form("ONNX", graph, as_onnx, None, "q.onnx"),
        Form("ONNX, replaced", graph, as_onnx + " --force", as_onnx + " --mode weight-only", "q.onnx"),
        Form("ONNX, external", external, as_onnx, None, "q.onnx"),
        Form("ONNX, external, replaced", external, as_onnx + " --force", as_onnx + " --mode weight-only --weights int4", "q.onnx"),
        Form("file, in place", one, "quantize model.safetensors --in-place", None, "model.safetensors", None, True),
        Form("directory, in place", many, "quantize m --in-place", None, "m", None, True),
        Form("ONNX, in place", graph, "quantize m.onnx --in-place", None, "m.onnx", None, True),
        Form("dequantize", one, "dequantize q.safetensors -o f.safetensors --force", "quantize model.safetensors -o q.safetensors"),
        Form("report and recipe", one, file + " --force --report r.html --emit-recipe r.toml", file + " --weights uint8", "q.safetensors", extras=("r.html", "r.toml")),
        Form("file, unnamed files missing", one, file, None, "q.safetensors", without=["unnamed"]),
        Form("file, replaced, unnamed files missing", one, file + " --force", file + " --weights uint8", "q.safetensors", without=["unnamed"]),
        Form("file, replaced, exchange missing", one, file + " --force", file + " --weights uint8", "q.safetensors", without=["exchange"]),
        Form("directory, unnamed files and allocation missing", many, folder, None, "q", without=["unnamed", "allocation"]),
        Form("ONNX, external, replaced, unnamed files and exchange missing", external, as_onnx + " --force", as_onnx + " --mode weight-only --weights int4", "q.onnx", without=["unnamed", "exchange"]),
        Form("file, replaced, as on FAT", one, file + " --force", file + " --weights uint8", "q.safetensors", without=["unnamed", "exchange", "links", "allocation"]),
    ]
