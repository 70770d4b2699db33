"""Runs the program in a directory of its own, and judges what is there afterwards."""

import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import without

#: Names that the program gives to what is not finished.
DEBRIS = re.compile(r"(^|/)\.qtool-[0-9a-f]{8}\.tmp(/|$)")

#: Exit codes that the README documents.
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6}

#: Seconds after which a run counts as hanging.
PATIENCE = 60


class Run:
    """How a run ended; `code` is negative for a signal."""

    def __init__(self, code, stdout, stderr, seconds):
        self.code, self.stdout, self.stderr, self.seconds = code, stdout, stderr, seconds

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.2f} s: {self.stderr.strip()[:400]}"


def snapshot(root):
    """Path below `root` → content, for all files; directories map to `None`."""
    found = {}
    for path in sorted(root.rglob("*")):
        # FUSE keeps what is removed while it is open.
        if path.name.startswith(".fuse_hidden"):
            continue
        name = str(path.relative_to(root))
        found[name] = None if path.is_dir() and not path.is_symlink() else path.read_bytes()
    return found


def split(state):
    """A snapshot without what is not finished, and the names of that."""
    return {name: content for name, content in state.items() if not DEBRIS.search(name)}, [name for name in state if DEBRIS.search(name)]


class Scene:
    """A form of output in a directory of its own, which can be set back to what it was before the run."""

    def __init__(self, qtool, form, base=None, settings=("--quiet",), verifier=None):
        self.qtool, self.form, self.settings = qtool, form, list(settings)
        # The verifier is always the real program, also where a planted writer is under test.
        self.verifier = verifier or qtool
        self.refusing = without.refusing(form.without) if form.without else None
        self.top = Path(tempfile.mkdtemp(prefix="faults-", dir=base))
        self.before, self.dir = self.top / "before", self.top / "at"
        self.before.mkdir()
        form.make(self.before)
        if form.old:
            self.expect(self.run(form.old, cwd=self.before, program=self.verifier), 0)
        self.old = snapshot(self.before)
        self.reset()
        self.expect(self.run(form.command, program=self.verifier), 0)
        self.new, debris = split(snapshot(self.dir))
        assert not debris and self.new != self.old, (form.name, debris)
        if form.output:
            self.expect(self.verify(), 0)

    def expect(self, run, code):
        if run.code != code:
            raise SystemExit(f"{self.form.name}: the harness expected exit {code}, found {run}")

    def reset(self):
        for _ in range(100):
            shutil.rmtree(self.dir, ignore_errors=True)
            if not self.dir.exists():
                break
            # What a killed run had open can go only once the system has closed it.
            time.sleep(0.01)
        shutil.copytree(self.before, self.dir)

    def close(self):
        shutil.rmtree(self.top, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def arguments(self, command, program=None):
        # `quantize` alone knows how many threads it is to use and when it is quiet in every version.
        return [*(program or self.qtool), *command, *(self.settings if command[0] != "verify" else [])]

    def start(self, command=None, prefix=(), program=None, cwd=None, **streams):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        arguments = [*prefix, *self.arguments(command or self.form.command, program)]
        return subprocess.Popen(arguments, cwd=cwd or self.dir, stdin=subprocess.DEVNULL, preexec_fn=self.refusing, **streams)

    def run(self, command=None, **options):
        started = time.monotonic()
        return finish(self.start(command, **options), started)

    def verify(self):
        return self.run(["verify", self.form.output], program=self.verifier)

    def state(self):
        """`old`, `new`, `mixed` (each member whole) or `torn` (a member that is neither); and what is not finished."""
        found, debris = split(snapshot(self.dir))
        if found == self.old:
            return "old", debris
        if found == self.new:
            return "new", debris
        sides = lambda name: [side[name] for side in (self.old, self.new) if name in side]
        whole = all(content in sides(name) for name, content in found.items())
        kept = all(name in found for name in self.old)
        return ("mixed" if whole and kept else "torn"), debris

    def after_kill(self):
        """What is wrong after a run that was killed, and the state: old or new, or whole members of both that `verify` refuses; and
        another run makes it new and removes what the killed one left."""
        state, debris = self.state()
        if state == "torn":
            return f"a member is neither old nor new: {sorted(split(snapshot(self.dir))[0])}", state, debris
        if state == "mixed" and self.form.output and self.verify().code == 0 and not (self.of_one_side() or self.old_is_whole()):
            return "verify accepts a mixture", state, debris
        command = self.form.again if state != "new" or not self.form.in_place else None
        if command:
            run = self.run(command, program=self.verifier)
            if run.code != 0:
                return f"another run after {state}: {run}", state, debris
        # What is in place already is not quantized again; the next run that writes here cleans up.
        after, left = self.state()
        if after != "new" or (left and command):
            return f"another run after {state} left {after} and {left}", state, debris
        return None, state, debris

    def after_signal(self, run):
        """What is wrong after a run that a signal ended or missed, and the state: temporaries, or not all of one side. A report comes after
        the output that it is about, which is whole by then."""
        state, debris = self.state()
        if state not in ("old", "new") and not (self.form.extras and self.of_one_side()):
            return f"{state}: {run}", state
        return f"left {debris}: {run}" if debris else None, state

    def of_one_side(self, *sides):
        """Whether everything but the extras is of one side: those are not what `verify` is about."""
        beside = lambda state: {name: content for name, content in state.items() if name not in self.form.extras}
        return beside(split(snapshot(self.dir))[0]) in [beside(side) for side in sides or (self.old, self.new)]

    def old_is_whole(self):
        """Whether an old output is as it was, with new files beside it that it does not refer to: values of an ONNX model that had none."""
        found = snapshot(self.dir)
        return bool(self.form.old) and all(found.get(name) == content for name, content in self.old.items())

    def after_error(self, run, published=False, silent=False):
        """What is wrong after a run that met an error; `published` if the error may have come after the output was complete, `silent` if
        there is nowhere to tell of it."""
        state, debris = self.state()
        if run.code not in DOCUMENTED:
            return f"undocumented {run}"
        if run.code == 0 and state != "new" and not (self.form.extras and self.of_one_side(self.new)):
            return f"success with {state}: {run}"
        if run.code != 0 and "links" in self.form.without and not debris and " is new: " in run.stderr:
            # There is no way back, which the error says; and `verify`, where not all of it is new.
            return None if self.verify().code == (0 if state == "new" else 3) else f"verify of {state}: {self.verify()}"
        if run.code != 0 and state != "old" and not (published and state == "new") and not (self.form.extras and self.of_one_side()):
            return f"{state} after {run}"
        if debris:
            return f"left {debris} after {run}"
        if run.code != 0 and "qtool: error: " not in run.stderr and not silent:
            return f"no message: {run}"
        return None


def finish(child, started=None):
    """Waits for a child, and kills it when that takes too long."""
    started = started or time.monotonic()
    try:
        stdout, stderr = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        stderr = b"hangs: " + (stderr or b"")
    text = lambda stream: (stream or b"").decode(errors="replace")
    return Run(child.returncode, text(stdout), text(stderr), time.monotonic() - started)


class Findings:
    """Counts what was tried, and keeps what went wrong."""

    def __init__(self, part):
        self.part, self.counts, self.wrong, self.skipped = part, {}, [], None
        self.lock = threading.Lock()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def skip(self, reason):
        self.skipped = reason

    def check(self, problem, where):
        self.count("runs")
        if problem:
            self.wrong.append(f"{self.part}: {where}: {problem}")

    def __str__(self):
        if self.skipped:
            return f"{self.part}: SKIPPED: {self.skipped}"
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        return f"{self.part}: {counts}; {len(self.wrong)} wrong"
