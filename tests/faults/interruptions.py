"""What happens beside a run: signals, inputs that change, other writers."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import judge

#: Seconds in which a run is gone after a signal.
GONE = 1.0


def shortest(workers, form):
    """How long a run takes at least: what comes at a random part of it meets most runs, on a busy machine too."""
    with workers.scene(form) as scene:
        times = []
        for _ in range(5):
            scene.reset()
            times.append(scene.run().seconds)
        return min(times)


def signals(workers, findings, wanted):
    """INT, TERM and HUP at random times, until `wanted` of each kind have met every form."""
    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for form in workers.large_forms:
        seconds, landed = shortest(workers, form), dict.fromkeys(kinds, 0)

        def trial(scene, what):
            kind, seed = what
            if landed[kind] >= wanted:
                return
            scene.reset()
            child = scene.start()
            time.sleep(random.Random(f"{form.name} {kind} {seed}").uniform(0, 1.1 * seconds))
            sent = time.monotonic()
            child.send_signal(kind)
            run = judge.finish(child, sent)
            left, state = scene.after_signal(run)
            problem = None
            if run.code == -kind:
                landed[kind] += 1
                findings.count("signals that landed")
            elif run.code != 0:
                problem = f"wrong status: {run}"
            if run.seconds > GONE:
                problem = f"gone after {run.seconds:.2f} s only: {run}"
            findings.count(f"ended {state}")
            findings.check(left or problem, f"{form.name}: {signal.Signals(kind).name}, attempt {seed}")

        workers.each(form, [(kind, seed) for seed in range(20 * wanted) for kind in kinds], trial)


def resize(path, change):
    os.truncate(path, change(path.stat().st_size))


def overwrite(path, at):
    """Other values at a place given as a part of the file, in place."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(int(size * at))
        file.write(os.urandom(min(4096, size - int(size * at))))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.rename(path)


CHANGES = {
    "truncated to nothing": lambda path: resize(path, lambda size: 0),
    "truncated by half": lambda path: resize(path, lambda size: size // 2),
    "truncated by a byte": lambda path: resize(path, lambda size: size - 1),
    "grown": lambda path: resize(path, lambda size: size + 4096),
    "first bytes rewritten": lambda path: overwrite(path, 0),
    "middle rewritten": lambda path: overwrite(path, 0.5),
    "last bytes rewritten": lambda path: overwrite(path, 0.99),
    "truncated and written again": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "replaced": replace,
    "removed": lambda path: path.unlink(),
}


def changing_inputs(workers, findings, wanted):
    """Inputs that change after the program has opened them, until `wanted` runs have met a change."""
    # In place, the input is the output, too: whoever changes it meanwhile competes with the run.
    forms = [form for form in workers.large_forms if form.name in ("file", "directory", "compressed-tensors", "ONNX", "ONNX, external", "dequantize")]
    per_form = -(-wanted // len(forms))
    for form in forms:
        seconds, landed = shortest(workers, form), []
        names = {"dequantize": ["q.safetensors"], "ONNX": ["m.onnx"], "ONNX, external": ["m.onnx", "values.bin"], "file": ["model.safetensors"]}
        inputs = names.get(form.name, ["m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors", "m/extra/tokenizer.json"])

        def trial(scene, what):
            name, kind, seed = what
            if len(landed) >= per_form:
                return
            scene.reset()
            path = scene.dir / name
            child = scene.start()
            # Small files are read when it is their turn: they count from when the weights are open.
            wait_until_mapped(child, scene.dir / inputs[0] if "extra" in name else path)
            time.sleep(0.02)
            time.sleep(random.Random(f"{form.name} {what}").uniform(0, seconds))
            over = child.poll() is not None
            CHANGES[kind](path)
            run = judge.finish(child)
            changed = {name, "other"}
            after = {key: value for key, value in judge.snapshot(scene.dir).items() if key not in changed}
            beside = lambda state: {key: value for key, value in state.items() if key not in changed}
            problem = None
            if run.code == 5:
                landed.append(what)
                findings.count("changes that were met")
                if after != beside(scene.old):
                    problem = f"wrote something: {run}"
                if "qtool: error: " not in run.stderr:
                    problem = f"no message: {run}"
            elif run.code == 0:
                findings.count("over before the change")
                # The change came after the last look at the input: the output is that of the input as it was.
                if after != beside(scene.new):
                    problem = f"success with another output than that of the input: {run}"
            else:
                findings.count("other errors")
                if run.code < 0 or run.code not in judge.DOCUMENTED or after != beside(scene.old):
                    problem = f"{run}"
                elif not over:
                    problem = f"expected exit 5: {run}"
            findings.check(problem, f"{form.name}: {name} {kind}, attempt {seed}")

        workers.each(form, [(name, kind, seed) for seed in range(400) for kind in CHANGES for name in inputs], trial)


def wait_until_mapped(child, path):
    """Waits until the program has mapped `path`, or has ended."""
    end = time.monotonic() + 5
    while time.monotonic() < end and child.poll() is None:
        try:
            if str(path) in Path(f"/proc/{child.pid}/maps").read_text():
                return
        except OSError:
            return


def two_writers(workers, findings, rounds):
    """Several runs write the same output at once; in the end one whole set is there."""
    forms = [form for form in workers.forms if form.name.startswith(("file, replaced", "directory, replaced", "ONNX, external, replaced"))]
    kinds = [[], ["--granularity", "per-tensor"], ["--observer", "mse"]]
    for form in forms:
        command = [word for word in form.command if word != "--force"]
        with workers.scene(form) as scene:
            wholes = []
            for kind in kinds:
                scene.reset()
                scene.expect(scene.run([*command, "--force", *kind]), 0)
                wholes.append(judge.snapshot(scene.dir))

        def trial(scene, what):
            seed, force = what
            scene.reset()
            if not force:
                for path in scene.dir.iterdir():
                    if path.name.startswith("q"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            source = random.Random(f"{form.name} {what}")
            children = []
            for kind in source.sample(kinds, len(kinds)):
                children.append(scene.start([*command, *(["--force"] if force else []), *kind]))
                time.sleep(source.choice([0, 0, 0.002, 0.01]))
            runs = [judge.finish(child) for child in children]
            found = judge.snapshot(scene.dir)
            problem = None
            if found not in wholes:
                problem = f"no whole set: {sorted(found)}, {[str(run) for run in runs]}"
            codes = sorted(run.code for run in runs)
            if codes != ([0] * len(kinds) if force else [0] + [2] * (len(kinds) - 1)):
                problem = f"exit codes {codes}: {[str(run) for run in runs]}"
            if scene.verify().code != 0:
                problem = "verify refuses what is there"
            findings.check(problem, f"{form.name}: round {what}")

        workers.each(form, [(seed, force) for seed in range(-(-rounds // 2)) for force in (True, False)], trial)
