#!/usr/bin/env python3
"""qtool against `cp` and against PyTorch, side by side, as ratios.

    cargo build --release --locked
    python3 tests/benches/speed.py                         # 1.6 GiB F32 and the same in BF16, 7 rounds
    python3 tests/benches/speed.py --layers 1 --rounds 2   # a quick look

Makes two checkpoints with the shapes of a Llama model (make_checkpoint.py, which needs NumPy), reads them into the page cache, and
then runs all jobs in turn, round after round, so that a slow moment of the machine hits all alike. Outputs are removed
between runs, untimed. "synced" means that the output is on the disk: `cp` with `sync FILE`, qtool with its default
`--durability fsync`. PyTorch runs if an interpreter has it (--python, default: the environment of the interop tests); its
time leaves out importing, qtool's and `cp`'s are those of the whole process.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from measure import ROOT, median

HERE = Path(__file__).parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where checkpoints and outputs go; checkpoints that are there are used, and stay (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=2, help="size of the checkpoints: 2 are 1.6 GiB in F32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--qtool", default=ROOT / "target/release/qtool")
    parser.add_argument("--python", default=ROOT / "target/interop-venv/bin/python", help="an interpreter that has torch and safetensors, and numpy if this one has not")
    return parser.parse_args()


def has(python, module):
    return shutil.which(python) and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def jobs(model, out, options, torch):
    """Names and commands for one checkpoint; the first is what the others are compared with."""
    quantize = [options.qtool, "quantize", model, "-o", out, "--quiet", "--threads", options.threads]
    lazy = ["--durability", "none"]
    yield "cp", ["cp", model, out]
    yield "qtool", quantize + lazy
    yield "qtool, mse", quantize + lazy + ["--observer", "mse"]
    yield "cp, synced", ["sh", "-c", 'cp "$0" "$1" && sync "$1"', model, out]
    yield "qtool, synced", quantize
    if torch:
        yield "PyTorch", [options.python, HERE / "torch_baseline.py", model, out, options.threads]


def measure_all(models, out, options, torch):
    """Runs of every job, by checkpoint and name."""
    runs = {}
    for round in range(options.rounds):
        for dtype, model in models.items():
            measure.warm(model)
            for name, command in jobs(model, out, options, torch):
                measure.status(f"round {round + 1} of {options.rounds}: {dtype} {name}")
                run = measure.run(command)
                if name == "PyTorch":
                    run.wall = float(run.output)
                runs.setdefault(dtype, {}).setdefault(name, []).append(run)
                for written in (out, out.with_suffix(".json")):
                    written.unlink(missing_ok=True)
                os.sync()
    measure.status("")
    return runs


def rows(dtype, runs):
    fastest = lambda name: min(run.wall for run in runs[name])
    for name, found in runs.items():
        against = "cp, synced" if "synced" in name else "cp"
        spread = statistics.quantiles([run.wall for run in found], n=4) if len(found) > 1 else [found[0].wall] * 3
        yield [
            dtype,
            name,
            f"{median(found, 'wall'):.3f}",
            f"{fastest(name):.3f}",
            f"{spread[2] - spread[0]:.3f}",
            f"{median(found, 'wall') / median(runs[against], 'wall'):.2f}",
            f"{fastest(name) / fastest(against):.2f}",
            f"{median(found, 'cpu'):.2f}",
            f"{max(run.resident for run in found):.0f}",
            f"{max(run.anonymous for run in found):.0f}",
        ]


def ratios(dtype, runs):
    ratio = lambda a, b: median(runs[a], "wall") / median(runs[b], "wall")
    wanted = {"F32": 0.5, "BF16": 0.8}[dtype]
    yield f"{dtype}: qtool / cp = {ratio('qtool', 'cp'):.2f} (wanted: at most {wanted})"
    yield f"{dtype}: qtool, synced / cp, synced = {ratio('qtool, synced', 'cp, synced'):.2f} (wanted: at most {wanted})"
    yield f"{dtype}: mse / min-max = {ratio('qtool, mse', 'qtool'):.2f} (wanted: at most 3)"
    if "PyTorch" in runs:
        yield f"{dtype}: PyTorch / qtool = {ratio('PyTorch', 'qtool'):.1f}" + (" (wanted: at least 8)" if dtype == "F32" else "")


def main():
    options = arguments()
    options.qtool = measure.qtool(options.qtool)
    torch = has(options.python, "torch, safetensors")
    maker = sys.executable if has(sys.executable, "numpy") else options.python
    with tempfile.TemporaryDirectory(prefix="qtool-speed-") as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        models = {dtype: directory / f"llama-{options.layers}-{dtype.lower()}.safetensors" for dtype in ("F32", "BF16")}
        for dtype, model in models.items():
            if not model.exists():
                subprocess.run([maker, HERE / "make_checkpoint.py", model, dtype, str(options.layers)], check=True)
        os.sync()
        print(*measure.machine(directory), sep="\n")
        print(subprocess.run([options.qtool, "--version"], capture_output=True, text=True, check=True).stdout.strip())
        for dtype, model in models.items():
            print(f"{dtype}: {model.stat().st_size / 2**30:.2f} GiB, {options.layers} layers")
        print(f"{options.rounds} rounds, {options.threads} threads" + ("" if torch else "; no PyTorch: no such interpreter") + "\n")
        runs = measure_all(models, directory / "output.safetensors", options, torch)
        head = ["source", "job", "median s", "min s", "IQR s", "ratio to cp", "of minima", "CPU s", "RSS MiB", "anonymous MiB"]
        print(measure.table(head, [row for dtype, found in runs.items() for row in rows(dtype, found)]) + "\n")
        print(*(line for dtype, found in runs.items() for line in ratios(dtype, found)), sep="\n")


main()
