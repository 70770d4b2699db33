#!/usr/bin/env python3
"""Peak anonymous memory of qtool on a model larger than it may keep.

    cargo build --release --locked
    python3 tests/benches/memory.py                   # 4 GiB of F32, one tensor of 1 GiB; needs 6 GB of disk
    python3 tests/benches/memory.py --mib 256         # a quick look

Runs every scheme with 1, 2 and 8 threads and samples RssAnon of /proc/PID/status every 5 ms: pages of the mapped model and of the
page cache do not count, since the kernel drops them when it needs them. Exits with 1 if a run is over --limit.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np
from measure import ROOT

SCHEMES = {
    "default": [],
    "per-tensor": ["--granularity", "per-tensor"],
    "per-group:128": ["--granularity", "per-group:128"],
    "axis 1": ["--axis", "1"],
    "mse": ["--observer", "mse"],
    "int4 per-group:128": ["--weights", "int4", "--granularity", "per-group:128"],
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the checkpoint and outputs go; a checkpoint that is there is used, and stays (default: a temporary one)")
    parser.add_argument("--mib", type=int, default=4096, help="size of the checkpoint; a quarter of it is one tensor")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--limit", type=float, default=100, help="MiB that no run may be over")
    parser.add_argument("--qtool", default=ROOT / "target/release/qtool")
    return parser.parse_args()


def write_checkpoint(path, mib):
    """One tensor of a quarter of `mib` MiB and 48 that share the rest, all of random values: no sparse file."""
    width = 2048
    rows = mib * 2**20 // 4 // width
    shapes = {"embed_tokens.weight": (rows // 4, width)} | {f"layers.{i}.weight": (rows // 64, width) for i in range(48)}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = shape[0] * shape[1] * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for start in range(0, shape[0], 4096):
                block = random.standard_normal((min(4096, shape[0] - start), width), np.float32)
                file.write((block * np.float32(0.02)).tobytes())


def main():
    options = arguments()
    qtool = measure.qtool(options.qtool)
    with tempfile.TemporaryDirectory(prefix="qtool-memory-") as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        model, out = directory / f"memory-{options.mib}.safetensors", directory / "output.safetensors"
        if not model.exists():
            write_checkpoint(model, options.mib)
        print(*measure.machine(directory), sep="\n")
        print(f"{model.stat().st_size / 2**30:.2f} GiB of F32, one tensor of {options.mib / 4096:.2f} GiB\n")
        rows, worst = [], 0
        for scheme in options.schemes:
            for threads in options.threads:
                measure.status(f"{scheme}, {threads} threads")
                command = [qtool, "quantize", model, "-o", out, "--quiet", "--durability", "none", "--threads", threads, *SCHEMES[scheme]]
                run = measure.run(command)
                worst = max(worst, run.anonymous)
                rows.append([scheme, str(threads), f"{run.anonymous:.1f}", f"{run.resident:.0f}", f"{run.wall:.2f}", f"{run.cpu:.2f}"])
                for written in (out, out.with_suffix(".json")):
                    written.unlink(missing_ok=True)
        measure.status("")
        print(measure.table(["scheme", "threads", "anonymous MiB", "RSS MiB", "wall s", "CPU s"], rows))
        print(f"\nmost anonymous memory: {worst:.1f} MiB, limit {options.limit:.0f} MiB")
        return int(worst > options.limit)


sys.exit(main())
