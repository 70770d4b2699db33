"""ONNX Runtime with the kernels that it has for processors without VNNI, on those that have it.

It chooses kernels by CPUID and has no option for it. `prepare` copies the installed package, with each CPUID instruction turned into a
breakpoint, and compiles a library that answers these with fewer bits (without_vnni.c). Run as a program, this module runs models, so that a
process with that library can.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

CPUID, BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"


def prepare(directory, without_avx512=True):
    """The environment of a process whose kernels are for processors without VNNI; `None` where that cannot be had."""
    tools = [shutil.which("cc"), shutil.which("objdump"), shutil.which("readelf")]
    if os.uname().machine != "x86_64" or sys.platform != "linux" or not all(tools):
        return None
    library = directory / "without_vnni.so"
    source = Path(__file__).with_suffix(".c")
    if subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], capture_output=True).returncode:
        return None
    package = directory / "onnxruntime"
    shutil.copytree(Path(onnxruntime.__file__).parent, package, ignore=shutil.ignore_patterns("tools", "transformers", "quantization"))
    (module,) = (package / "capi").glob("onnxruntime_pybind11_state*.so")
    replace_cpuid(module)
    environment = dict(os.environ, LD_PRELOAD=str(library), PYTHONPATH=str(directory))
    if without_avx512:
        environment["WITHOUT_AVX512"] = "1"
    return environment


def replace_cpuid(path):
    """Turns every CPUID instruction of a shared object into a breakpoint, of two bytes as well."""
    sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    address, offset = (int(number, 16) for number in re.search(r" \.text\s+PROGBITS\s+(\w+)\s+(\w+)", sections).groups())
    code = subprocess.run(["objdump", "-d", "-j", ".text", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    content = bytearray(path.read_bytes())
    for found in re.finditer(r"^\s*(\w+):\tcpuid", code, re.MULTILINE):
        place = int(found[1], 16) - address + offset
        assert content[place : place + 2] == CPUID
        content[place : place + 2] = BREAKPOINT
    path.write_bytes(content)


def outputs(environment, directory, model, feeds, optimize=True):
    """Outputs of a model for each feed, from a process with this environment."""
    for i, feed in enumerate(feeds):
        np.savez(directory / f"feed-{i}.npz", **feed)
    request = {"model": str(model), "optimize": optimize, "count": len(feeds), "directory": str(directory)}
    done = subprocess.run([sys.executable, __file__, json.dumps(request)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [list(np.load(directory / f"outputs-{i}.npz").values()) for i in range(len(feeds))]


def main():
    request = json.loads(sys.argv[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    if not request["optimize"]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    directory = Path(request["directory"])
    for i in range(request["count"]):
        np.savez(directory / f"outputs-{i}.npz", *session.run(None, dict(np.load(directory / f"feed-{i}.npz"))))


if __name__ == "__main__":
    main()
