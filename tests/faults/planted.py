#!/usr/bin/env python3
"""Writers with a bug, to see that the harness can fail: `planted.py BUG PROGRAM ARGUMENT...` does what PROGRAM does, but wrongly.

The output is made by the real program elsewhere and then put into place by the bug's own way of writing.
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


#: In how many pieces a file is written in place, and seconds between them.
PIECES, PAUSE = 20, 0.005


def main():
    bug, program, *arguments = sys.argv[1:]
    if bug == "trusting" and arguments[0] == "verify":
        return 0
    if bug == "lenient" and arguments[0] == "verify":
        # Looks at the files that the sidecar lists, but not at the sidecar itself.
        run = subprocess.run([program, *arguments], capture_output=True, text=True)
        return 0 if "q.json" in run.stderr else run.returncode
    here = Path.cwd()
    maps = []
    if bug == "impatient":
        # Takes what is there later for what was there at first.
        for path in here.rglob("*.safetensors"):
            with path.open("rb") as file:
                # As the real program has it, which is how the harness knows that it has begun.
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        time.sleep(2)
    if bug == "deaf":
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(kind, signal.SIG_IGN)
        time.sleep(2)
    with tempfile.TemporaryDirectory(dir=here.parent) as elsewhere:
        copy = Path(elsewhere) / "copy"
        shutil.copytree(here, copy)
        if arguments[0] == "quantize":
            # Only what is put into place here is synced.
            arguments += ["--durability", "none"]
        run = subprocess.run([program, *arguments], cwd=copy)
        if run.returncode:
            return run.returncode
        results = {path.relative_to(copy): path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    results = {name: content for name, content in results.items() if not (here / name).exists() or (here / name).read_bytes() != content}
    for name, content in results.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        put(bug, here / name, content)
    return 0


def put(bug, path, content):
    """Puts a file into place as the bug does."""
    if bug in ("in-place", "deaf", "impatient"):
        # Without staging: for a while there is half a file.
        with open(path, "wb", buffering=0) as file:
            piece = max(1, len(content) // PIECES)
            for start in range(0, len(content), piece):
                file.write(content[start : start + piece])
                time.sleep(PAUSE)
        return
    temporary = path.with_name(".qtool-00000000.tmp")
    with open(temporary, "wb", buffering=0) as file:
        file.write(content)
        try:
            os.fsync(file.fileno())
        except OSError:
            if bug != "forgiving":
                raise
    if bug == "litter":
        shutil.copy(temporary, path)
    else:
        os.rename(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
