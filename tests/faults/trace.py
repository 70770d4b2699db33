"""System calls of a run by strace: which there are, and runs in which one of them kills or fails."""

import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import judge

#: Calls that change what is stored, or that guard those that do.
CALLS = """open openat creat write pwrite64 writev pwritev pwritev2 copy_file_range sendfile splice fallocate ftruncate truncate fsync fdatasync
sync_file_range msync rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir chmod fchmod fchmodat fchown
utimensat setxattr fsetxattr flock""".split()

#: Opening these is the business of the loader and the standard library, before there is anything to lose.
ELSEWHERE = re.compile(r'"/(etc|lib|lib64|usr|sys|dev|proc/(?!self/fd)|[^"]*\.(so|pyc?)\b)')


def missing():
    """Why strace cannot be used here; `None` if it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    probe = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", "inject=sync:error=EIO:when=1", "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()[:200]}"


def points(scene, calls=None):
    """Every call of the kinds above, or of these, in a run: (call, n, line), where n counts the calls of that kind by one thread, as strace does."""
    scene.reset()
    with tempfile.NamedTemporaryFile("r") as log:
        run = scene.run(prefix=["strace", "-f", "-qq", "-o", log.name, "-e", "trace=" + ",".join("?" + call for call in calls or CALLS)])
        lines = log.read().splitlines()
    scene.expect(run, 0)
    counts, found, elsewhere = Counter(), {}, set()
    for line in lines:
        match = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if not match or match[2] not in (calls or CALLS):
            continue
        thread, call, rest = match.groups()
        counts[thread, call] += 1
        if call in ("open", "openat", "creat") and ELSEWHERE.search(rest):
            elsewhere.add((call, counts[thread, call]))
            continue
        found.setdefault((call, counts[thread, call]), line[len(thread) :].strip()[:120])
    # A fault at the n-th call of any thread would meet the loader first.
    return [(call, n, line) for (call, n), line in found.items() if (call, n) not in elsewhere]


def injected(scene, call, what, prefix=()):
    """A run with a fault in it, such as `signal=KILL:when=3` at a call; and how often the fault happened."""
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["strace", "-f", "-qq", "-o", log.name, "-e", f"trace={call}", "-e", f"inject={call}:{what}", *prefix]
        run = scene.run(prefix=command)
        landed = log.read().count("(INJECTED)")
    return run, landed


def errors_of(call):
    """The errors that a call meets on a disk that is full, broken or over quota."""
    return ["EIO"] if call in ("fsync", "fdatasync", "msync", "flock", "unlink", "unlinkat", "rmdir") else ["ENOSPC", "EIO", "EDQUOT"]
