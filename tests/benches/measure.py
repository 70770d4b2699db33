"""Runs a command and says what it took: wall time, processor time, peak memory."""

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVERY = 0.005
"""Seconds between two looks at a process's memory."""


@dataclass
class Run:
    """Seconds and MiB. `anonymous` leaves out pages of mapped files, which the kernel can drop."""

    wall: float
    cpu: float
    resident: float
    anonymous: float
    output: str


def run(command):
    """Runs `command`, which must succeed; its memory is sampled from /proc, as long as it lasts."""
    command = [str(part) for part in command]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    anonymous = resident = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            wall = time.perf_counter() - start
            break
        try:
            fields = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            fields = ""
        if "RssAnon:" in fields:
            anonymous = max(anonymous, int(fields.split("RssAnon:")[1].split()[0]))
            # Not that of rusage, which begins with the memory of the process that was forked.
            resident = max(resident, int(fields.split("VmHWM:")[1].split()[0]))
        time.sleep(EVERY)
    process.returncode = os.waitstatus_to_exitcode(status)
    output = process.stdout.read()
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{output}")
    return Run(wall, usage.ru_utime + usage.ru_stime, resident / 1024, anonymous / 1024, output)


def median(runs, field):
    return statistics.median(getattr(run, field) for run in runs)


def warm(*paths):
    """Reads files, so that they are in the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def status(text):
    """Says what is going on, to a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}".ljust(70), end="\r", file=sys.stderr, flush=True)


def machine(directory):
    """Lines that say what was measured on."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    memory = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) / 2**20
    disk = subprocess.run(["df", "--output=fstype,avail", "-h", directory], capture_output=True, text=True).stdout.split()
    yield f"machine: {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
    yield f"file system: {disk[-2]}, {disk[-1]} free; load before: {os.getloadavg()[0]:.2f}"


def qtool(path):
    """The binary, checked."""
    path = Path(path).resolve()
    if not path.exists():
        raise SystemExit(f"{path}: no such file; cargo build --release --locked makes it, or pass --qtool")
    return path


def table(head, rows):
    """Lines of a Markdown table."""
    rows = [head, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
