"""Trials on several scenes at once, within a budget of time."""

import queue
import random
import threading
import time

import judge
import models
import without


class Workers:
    """Runs trials of a part; `deadline` is when it has to end."""

    def __init__(self, qtool, verifier, count, base, seed, only=None):
        self.qtool, self.verifier, self.count, self.base, self.seed = qtool, verifier, count, base, seed
        self.deadline = None
        #: Why forms on file systems that can do less are left out, if they are.
        self.lacking = without.missing()
        fits = lambda form: form.name in only if only else not (form.without and self.lacking)
        self.forms = [form for form in models.forms() if fits(form)]
        self.large_forms = [form for form in models.forms(count=4, shape=(512, 384), width=448) if fits(form)]
        self.settings = ["--quiet", "--threads", "1"]
        self.missed = 0
        #: Only these system calls, if not all.
        self.calls = None

    def scene(self, form):
        settings = self.settings if form.command[0] in ("quantize", "dequantize") else ["--quiet"]
        return judge.Scene(self.qtool, form, self.base, settings, self.verifier)

    def each(self, form, trials, trial):
        """`trial(scene, x)` of every x, in random order if the budget may not suffice for all."""
        trials = list(trials)
        if self.deadline:
            random.Random(f"{self.seed} {form.name}").shuffle(trials)
        waiting, failures = queue.SimpleQueue(), []
        for item in trials:
            waiting.put(item)
        # Each form gets its share of what is left of the time.
        forms = self.large_forms if form in self.large_forms else self.forms
        share = (self.deadline - time.monotonic()) / (len(forms) - forms.index(form)) if self.deadline else None
        end = time.monotonic() + share if self.deadline else None

        def work():
            try:
                with self.scene(form) as scene:
                    while not failures and (end is None or time.monotonic() < end):
                        trial(scene, waiting.get_nowait())
            except queue.Empty:
                pass
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self.missed += waiting.qsize()
