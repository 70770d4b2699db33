#!/usr/bin/env python3
"""Fills seeds/ from fixtures/ and from outputs of qtool: `make_seeds.py QTOOL`, QTOOL being the program."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "../../fixtures")
LARGEST = 4096


def unpack(content):
    out = b""
    for piece in content:
        if isinstance(piece, str):
            out += piece.encode()
        elif "hex" in piece:
            out += bytes.fromhex(piece["hex"])
        elif "repeat" in piece:
            out += bytes.fromhex(piece["repeat"]) * piece["times"]
        else:
            return None
    return out


def seed(target, name, content):
    if content is None or len(content) > LARGEST:
        return
    os.makedirs(os.path.join(HERE, "seeds", target), exist_ok=True)
    with open(os.path.join(HERE, "seeds", target, name.replace("/", "_")), "wb") as file:
        file.write(content)


def safetensors(tensors):
    """A file of tensors of floats: name, shape, values."""
    header, data = {}, b""
    for name, shape, values in tensors:
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def from_corpus():
    corpus = json.load(open(os.path.join(FIXTURES, "corpus/corpus.json")))
    for path, content in corpus["files"].items():
        if not isinstance(content, list):
            continue
        kind, name = path.split("/")[0], "_".join(path.split("/")[1:])
        if kind in ("st", "base") and path.endswith(".safetensors"):
            seed("safetensors", name, unpack(content))
        elif path.endswith("index.json"):
            seed("index", name, unpack(content))
        elif path.endswith(".onnx"):
            seed("onnx", name, unpack(content))
            seed("onnx_round_trip", name, unpack(content))

    samples = json.load(open(os.path.join(FIXTURES, "samples/corpus.json")))
    for path, packed in samples["deflated"].items():
        content = zlib.decompress(bytes.fromhex(packed), -15) if packed else b""
        extension = path.rsplit(".", 1)[1]
        target = {"npy": "npy", "npz": "npz", "pb": "tensor_proto"}.get(extension)
        if target and len(packed) < 2 * LARGEST:
            seed(target, os.path.basename(path), content)
    for name in os.listdir(os.path.join(FIXTURES, "samples/typed")):
        seed("tensor_proto", "typed_" + name, open(os.path.join(FIXTURES, "samples/typed", name), "rb").read())
    for name in ("rows.npy", "scalar.npy"):
        seed("npy", name, open(os.path.join(FIXTURES, "samples", name), "rb").read())
    for folder, _, names in os.walk(os.path.join(FIXTURES, "onnx")):
        for name in names:
            if name.endswith(".onnx"):
                content = open(os.path.join(folder, name), "rb").read()
                seed("onnx", name, content)
                seed("onnx_round_trip", name, content)


TOML = {
    "default": '[default]\nweights = "int4"\ngranularity = "per-group:4"\nobserver = "mse"\nsymmetric = false\n',
    "rules": '[[rule]]\nmatch = "a*"\nweights = "keep"\nreason = "x"\n\n[[rule]]\nop = "Conv"\nshape = [4, 8]\nweights = "uint8"\nobserver = "percentile:99"\n',
    "activations": 'mode = "static"\nmin_elements = 0\n[activations]\ndtype = "int8"\nobserver = "entropy:128"\nsymmetric = true\n',
    "layers": '[[layer]]\nmatch = "*.weight"\naxis = 1\n[[fake_quantizer]]\nname = "q0"\nweight = "a.weight"\n',
    "observer": '[[observer]]\nname = "mine"\ncommand = ["./x"]\ninput = "npy"\ntimeout = 3\n[default]\nobserver = "mine"\n',
    "patterns": 'include = ["re:a.*", "{a,b}*"]\nexclude = ["[!c]?"]\ntransforms = ["smooth-quant:0.5"]\nop_types = ["Conv"]\nmin_sqnr = 20.0\n',
}

RANGES = {
    "cache": "TRT-8501-EntropyCalibration2\nx: 3c010a14\nr: 3c010a14\n",
    "pairs": '{"x": [-1.5, 2.0], "r": [0.0, 3.0]}',
    "data": '{"x": {"CLS": "TensorData", "lowest": -1.5, "highest": {"CLS": "numpy.array", "dtype": "float32", "data": [2.0]}}, "r": [0, 1]}',
    "wrapped": '{"CLS": "TensorsData", "data": {"x": [-1, 2], "r": [0, 1, [1, 2], [3]]}, "calibration_method": {"CLS": "CalibrationMethod"}}',
}


def of_program(program):
    for name, text in TOML.items():
        seed("recipe", name, text.encode())
    for name, text in RANGES.items():
        seed("ranges", name, text.encode())
    seed("index", "good", b'{"metadata": {"total_size": 32}, "weight_map": {"v": "b.safetensors", "w": "a.safetensors"}}')
    values = [((i * 37 + 11) % 101) / 50.0 - 1.0 for i in range(47)]
    model = safetensors([("a.weight", [4, 8], values[:32]), ("b.weight", [3, 4], values[32:44]), ("b.bias", [3], values[44:])])
    recorded = safetensors([("a", [5, 8], [v / 3 for v in values[:40]]), ("b.input", [2, 2, 4], values[:16])])
    seed("recorded", "good", recorded)
    seed("safetensors", "checkpoint", model)
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments):
            subprocess.run([program, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)

        def write(name, content):
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "wb").write(content)

        def read(name):
            return open(os.path.join(folder, name), "rb").read()

        write("model.safetensors", model)
        write("recorded.safetensors", recorded)
        rules = '{"min_elements": 0, "rule": [{"match": "a.weight", "weights": "int4", "granularity": "per-group:4"}]}'
        write("r.json", rules.encode())
        seed("recipe", "json", rules.encode())
        run("quantize", "model.safetensors", "--recipe", "r.json", "-o", "out.safetensors")
        # In one line, as the mutator writes it.
        seed("sidecar", "good", json.dumps(json.loads(read("out.json")), separators=(",", ":")).encode())
        seed("recipe", "sidecar", read("out.json"))
        for name, options in {"gram": [], "ranges": ["--ranges-only"], "average": ["--activation-observer", "moving-average:0.1"]}.items():
            run("calibrate", "model.safetensors", "--samples", "recorded.safetensors", "-o", name + ".stats", *options)
            seed("stats", name, read(name + ".stats"))
        write("float/model.safetensors", model)
        write("float/config.json", b"{}")
        for scheme, options in {"w8a8": [], "w4a16": ["--granularity", "per-group:4"], "w4a16-asym": ["--granularity", "per-group:4"]}.items():
            run("quantize", "float", "--scheme", scheme, *options, "--min-elements", "0", "-o", scheme)
            config = json.loads(read(scheme + "/config.json"))
            seed("compressed_config", scheme, json.dumps(config, separators=(",", ":")).encode())
            seed("compressed_tensors", scheme, read(scheme + "/model.safetensors"))
        run("quantize", "float", "--scheme", "w8a8-static-asym", "--samples", "recorded.safetensors", "--min-elements", "0", "-o", "static")
        seed("compressed_tensors", "static", read("static/model.safetensors"))
    seed("compressed_config", "float", b'{"model_type": "llama", "tie_word_embeddings": true, "quantization_config": null}')
    for target in ("checkpoint", "kernels", "onnx_graph"):
        for number in range(8):
            # Bytes that are drawn from; any will do.
            state, content = number * 7919 + 1, []
            for _ in range(512):
                state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
                content.append(state >> 56)
            seed(target, f"noise_{number}", bytes(content))


from_corpus()
of_program(os.path.abspath(sys.argv[1]))
