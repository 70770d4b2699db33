#!/usr/bin/env python3
"""qtool against ONNX Runtime's quantizer on ONNX models, side by side: time, memory, size, and latency of what they make.

    cargo build --release --locked
    target/interop-venv/bin/python tests/benches/models.py                       # models of tests/interop and a generated one of 403 MB
    target/interop-venv/bin/python tests/benches/models.py --models mlp --rounds 1 --quantize-rs ~/.cargo/bin/quantize-rs

Each job is a process of its own; ONNX Runtime's includes its import and, before static, its preprocessing (FACTS: as its
documentation says). Processor seconds are those of the whole process; memory is the peak of resident pages, and for qtool also without
pages of mapped files. Latency is the median of interleaved runs of one sample, after a first one, with one thread.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import measure
from measure import ROOT, table

sys.path.insert(0, str(ROOT / "tests/interop"))
MODES = ("weight-only", "dynamic", "static")
SAMPLES = 16
# Preprocesses and quantizes; arguments: mode, model, output, directory of samples.
THEIRS = """
import glob, logging, sys, numpy as np
logging.disable(logging.WARNING)
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process
mode, model, out, samples = sys.argv[1:]
class Feeds(q.CalibrationDataReader):
    def __init__(self): self.feeds = iter([dict(np.load(p)) for p in sorted(glob.glob(samples + "/*.npz"))])
    def get_next(self): return next(self.feeds, None)
if mode == "dynamic":
    q.quantize_dynamic(model, out, per_channel=True)
else:
    quant_pre_process(model, out + ".pre", skip_symbolic_shape=True)
    q.quantize_static(out + ".pre", out, Feeds(), quant_format=q.QuantFormat.QDQ)
"""


def mlp(directory):
    """24 products of 1024 by 4096 with Relu: 403 MB of floats."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = directory / "mlp.onnx"
    rng, nodes, weights, value = np.random.default_rng(0), [], [], "x"
    for i in range(24):
        rows, columns = (1024, 4096) if i % 2 == 0 else (4096, 1024)
        weights.append(numpy_helper.from_array((rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32), f"w{i}"))
        nodes += [helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]), helper.make_node("Relu", [f"m{i}"], [f"r{i}"])]
        value = f"r{i}"
    kind = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1024])
    graph = helper.make_graph(nodes, "mlp", [kind("x")], [kind(value)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, [{"x": rng.standard_normal((8, 1024)).astype(np.float32)} for _ in range(SAMPLES)]


def load(name, directory):
    """The model's file and samples."""
    if name == "mlp":
        return mlp(directory)
    from onnx_real import MODELS, download

    download()
    path = MODELS[name].path()
    return path, list(MODELS[name].samples(1, SAMPLES, path))


def latency(paths, feed, rounds):
    """Milliseconds of one run, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = {}
    for name, path in paths.items():
        try:
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            sessions[name].run(None, feed)
        except Exception:
            sessions.pop(name, None)
    times = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def jobs(mode, model, samples, directory, options):
    """Names and commands; the first is ours."""
    extra = ["--samples", samples] if mode == "static" else []
    ours = [options.qtool, "quantize", model, "--mode", mode, "-o", directory / f"ours-{mode}.onnx", "--force", "--quiet", "--durability", "none"]
    yield "qtool", ours + extra
    if mode == "static":
        yield "qtool --min-sqnr 0", ours[:6] + [directory / "plain.onnx"] + ours[7:] + extra + ["--min-sqnr", "0"]
    if mode != "weight-only":
        yield "ONNX Runtime", [sys.executable, "-c", THEIRS, mode, model, directory / f"theirs-{mode}.onnx", samples]
    if mode == "weight-only" and options.quantize_rs:
        yield "quantize-rs", [options.quantize_rs, "quantize", model, "-o", directory / "rs.onnx"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="ocr-recognition,ocr-direction,ocr-detection,silero,magika,minilm,captcha,captcha-detection,mlp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--qtool", default=ROOT / "target/release/qtool")
    parser.add_argument("--quantize-rs", help="that program, to be compared with")
    options = parser.parse_args()
    options.qtool = measure.qtool(options.qtool)
    rows, latencies = [], []
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as temporary:
        print("\n".join(measure.machine(temporary)))
        for name in options.models.split(","):
            directory = Path(temporary) / name
            (directory / "samples").mkdir(parents=True)
            model, feeds = load(name, directory)
            for i, feed in enumerate(feeds):
                np.savez(directory / f"samples/{i:03}.npz", **feed)
            measure.warm(model)
            for mode in MODES:
                for job, command in jobs(mode, model, directory / "samples", directory, options):
                    measure.status(f"{name} {mode} {job}")
                    try:
                        runs = [measure.run(command) for _ in range(options.rounds)]
                    except SystemExit as error:
                        rows.append([name, mode, job, "fails", "", "", str(error).strip().splitlines()[-1][:60]])
                        continue
                    cpu, wall = measure.median(runs, "cpu"), measure.median(runs, "wall")
                    memory = f"{measure.median(runs, 'resident'):.0f} ({measure.median(runs, 'anonymous'):.0f})"
                    outputs = [Path(part) for part in command if str(part).endswith(".onnx") and Path(part) != Path(model)]
                    size = sum(path.stat().st_size for path in outputs if path.exists()) / 1e6
                    rows.append([name, mode, job, f"{cpu:.2f}", f"{wall:.2f}", memory, f"{size:.2f}"])
            made = {"float": model, **{path.stem: path for path in sorted(directory.glob("*.onnx")) if path != Path(model)}}
            found = latency(made, feeds[0], 5 * options.rounds)
            latencies.append([name, ", ".join(f"{kind} {ms:.2f}" for kind, ms in found.items())])
    print(table(["model", "mode", "job", "CPU s", "wall s", "peak MiB (anonymous)", "MB"], rows))
    print(table(["model", "latency in ONNX Runtime, ms, one thread"], latencies))


if __name__ == "__main__":
    main()
