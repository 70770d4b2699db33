"""SIGKILL, INT, TERM and HUP at every system call that writes, one at a time, and SIGKILL at random times."""

import random
import signal
import time

import trace
from interruptions import shortest


def at_every_call(workers, findings):
    """Kills the program at the entry of every call of `trace.CALLS`, for every form."""
    for form in workers.forms:
        with workers.scene(form) as scene:
            points = trace.points(scene, workers.calls)
        findings.count("calls", len(points))

        def trial(scene, point):
            call, n, line = point
            scene.reset()
            run, _ = trace.injected(scene, call, f"signal=KILL:when={n}")
            if run.code == -signal.SIGKILL:
                findings.count("kills that landed")
            problem, state, debris = scene.after_kill()
            findings.count(f"ended {state}")
            findings.count("left debris for the next run", bool(debris))
            if scene.form.in_place and state == "mixed":
                findings.count("between sidecar and weights in place")
            findings.check(problem, f"{form.name}: {call} {n}: {line}")

        workers.each(form, points, trial)


#: Microseconds that a call takes longer when a signal comes with it, so that the program can act on it meanwhile.
LONGER = 50_000


def signals_at_every_call(workers, findings):
    """INT, TERM and HUP at every call of `trace.CALLS`, while its thread is held up: the run ends by the signal, in a state of one side."""
    kinds = ["INT", "TERM", "HUP"]
    for form in workers.forms:
        with workers.scene(form) as scene:
            points = trace.points(scene, workers.calls)

        landed = []

        def trial(scene, what):
            kind, (call, n, line) = what
            scene.reset()
            run, _ = trace.injected(scene, call, f"signal={kind}:delay_exit={LONGER}:when={n}")
            left, state = scene.after_signal(run)
            problem = None
            if run.code == -getattr(signal, f"SIG{kind}"):
                landed.append(n)
                findings.count("signals that landed")
            elif run.code != 0 or state != "new":
                problem = f"wrong status: {run}"
            findings.count(f"ended {state}")
            findings.check(left or problem, f"{form.name}: {kind} at {call} {n}: {line}")

        workers.each(form, [(kinds[i % 3], point) for i, point in enumerate(points)], trial)
        if points and not landed:
            findings.check("no signal landed", form.name)


def at_random_times(workers, findings, wanted):
    """Kills the program after a random part of the time that it takes, until `wanted` kills have landed."""
    per_form = -(-wanted // len(workers.large_forms))
    for form in workers.large_forms:
        seconds, landed = shortest(workers, form), []

        def trial(scene, seed):
            if len(landed) >= per_form:
                return
            scene.reset()
            child = scene.start()
            time.sleep(random.Random(f"{form.name} {seed}").uniform(0, 1.1 * seconds))
            child.kill()
            child.communicate()
            if child.returncode == -signal.SIGKILL:
                landed.append(seed)
                findings.count("kills that landed")
            problem, state, debris = scene.after_kill()
            findings.count(f"ended {state}")
            findings.count("left debris for the next run", bool(debris))
            findings.check(problem, f"{form.name}: attempt {seed}")

        workers.each(form, range(4 * per_form), trial)
