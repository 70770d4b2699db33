"""Errors of the system: at every call that writes, by limits of the process, on file systems that are full or read-only."""

import os
import shutil
import subprocess

import judge
import trace


def at_every_call(workers, findings):
    """Each error at each call, once and from then on."""
    for form in workers.forms:
        with workers.scene(form) as scene:
            points = trace.points(scene, workers.calls)
        trials = [(point, error, more) for point in points for error in trace.errors_of(point[0]) for more in ("", "+")]

        def trial(scene, what):
            (call, n, line), error, more = what
            scene.reset()
            run, landed = trace.injected(scene, call, f"error={error}:when={n}{more}")
            if not began(run):
                findings.count("met the loader")
                return
            findings.count("faults that landed", landed)
            problem = scene.after_error(run)
            state, debris = scene.state()
            if run.code == 0 and state == "new" and landed:
                findings.count("done without")
                if call in ("fsync", "fdatasync", "msync") or call.startswith(("write", "pwrite")):
                    problem = f"success although {call} failed: {run}"
            removing = call in ("unlink", "unlinkat", "rmdir")
            if debris and problem and problem.startswith("left") and (removing or (run.code == 0 and call in ("open", "openat"))):
                # What was replaced and cannot be listed, or what cannot be removed, is left to the next run.
                problem = scene.after_kill()[0]
                findings.count("could not remove, the next run did")
            elif call in ("fsync", "fdatasync") and landed > 1 and not more:
                problem = f"{call} was tried again"
            findings.check(problem, f"{form.name}: {error} at {call} {n}{more}: {line}")

        workers.each(form, trials, trial)


#: Limits by name: which values are tried.
LIMITS = {
    "FSIZE": [0, 1, 8, 100, 511, 512, 1000, 4095, 4096, 4097, *range(5000, 40000, 1500)],
    "NOFILE": list(range(3, 40)),
    "AS": [kilobytes << 10 for kilobytes in [*range(20 << 10, 80 << 10, 256), *range(80 << 10, 400 << 10, 16 << 10)]],
    "DATA": [kilobytes << 10 for kilobytes in [*range(256, 4096, 64), *range(4096, 40960, 512)]],
    "STACK": [kilobytes << 10 for kilobytes in [*range(32, 512, 16), 1024, 8192]],
    "NPROC": [1, 2, 3, 4, 5, 8],
    "MEMLOCK": [0],
}


def began(run):
    """Whether the program got as far as its own code: below some limits neither `prlimit` nor the loader do."""
    words = ("error while loading shared libraries", "prlimit: ", "cannot allocate TLS", "libc.so.6")
    return not any(word in run.stderr for word in words) and not (run.code in (-9, -11) and not run.stderr)


def within_limits(workers, findings):
    """Runs under each limit; a program that the loader cannot start has not begun."""
    if not shutil.which("prlimit"):
        return findings.skip("prlimit is not installed")
    for form in workers.forms:
        trials = [(name, value) for name, values in LIMITS.items() for value in values]
        started = {name: {True: [], False: []} for name in LIMITS}

        def trial(scene, what):
            name, value = what
            scene.reset()
            prefix = ["prlimit", f"--{name.lower()}={value}"]
            if name == "NPROC":
                # Root may start any number of threads; and others count what they have started elsewhere.
                prefix += as_another(scene, f"{60000 + hash(scene) % 5000}")
            run = scene.run(prefix=prefix)
            started[name][began(run)].append(value)
            if not began(run):
                findings.count("not started")
                return
            findings.count("refused" if run.code else "done")
            findings.check(scene.after_error(run), f"{form.name}: RLIMIT_{name} {value}")

        workers.each(form, trials, trial)
        for name, values in started.items():
            # What the loader can do with less it can do with more: then it was the program.
            late = [value for value in values[False] if values[True] and value > min(values[True])]
            if late:
                findings.check(f"died as if not started: {late}", f"{form.name}: RLIMIT_{name}")


def as_another(scene, user):
    """What runs a program as a user without rights, who may write into the scene; nothing if this is no root."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return []
    for path in [scene.top, scene.dir, *scene.dir.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def closed_outputs(workers, findings):
    """Standard output that is closed, full, or read by somebody who has seen enough."""
    for form in workers.forms:
        def trial(scene, what):
            scene.reset()
            settings, scene.settings = scene.settings, [word for word in scene.settings if word != "--quiet"]
            if what == "head":
                reader, writer = os.pipe()
                child = scene.start(stdout=writer)
                os.close(writer)
                os.close(reader)
                run = judge.finish(child)
                expected = 0
            elif what == "full":
                with open("/dev/full", "w") as full:
                    run = scene.run(stdout=full)
                expected = 4
            else:
                run = scene.run(prefix=["sh", "-c", f'exec "$@" {what}', "sh"])
                expected = None
            scene.settings = settings
            problem = scene.after_error(run, published=True, silent="2>&-" in what)
            if expected is not None and run.code != expected:
                problem = f"expected exit {expected}, found {run}"
            findings.check(problem, f"{form.name}: standard output {what}")

        workers.each(form, ["head", "full", ">&-", "2>&-", "<&- >&- 2>&-"], trial)


def read_only(workers, findings):
    """A directory that may not be written to, by somebody who is not root."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if nobody and not shutil.which("setpriv"):
        return findings.skip("setpriv is not installed, and root may write everywhere")
    for form in workers.forms:
        def trial(scene, mode):
            scene.reset()
            for path in [scene.top, scene.dir, *scene.dir.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
            scene.dir.chmod(mode)
            # Root owns the files; others may read them only.
            run = scene.run(prefix=nobody)
            scene.dir.chmod(0o755)
            problem = scene.after_error(run)
            if run.code not in (4, 1, 2):
                problem = f"expected exit 4: {run}"
            findings.check(problem, f"{form.name}: directory of mode {mode:o}")

        workers.each(form, [0o555, 0o755, 0o500 if os.geteuid() else 0o511], trial)


def full_disks(workers, findings):
    """tmpfs of many sizes, which are mounted where nobody else sees them; and a file system that is read-only."""
    if not in_namespace():
        return findings.skip("tmpfs: only root may mount, in a mount namespace of its own")
    for form in workers.forms:
        with workers.scene(form) as scene:
            used = sum(-(-len(content) // 4096) * 4096 if content is not None else 4096 for content in scene.old.values())
            files = len(scene.old)
        # From what the old files take to more than enough for the new ones, page by page.
        trials = [("size", used + 4096 * pages) for pages in range(40)] + [("nr_inodes", files + 1 + more) for more in range(14)] + [("ro", 0)]

        def trial(scene, what):
            on_tmpfs(scene, *what, findings)

        workers.each(form, trials, trial)


def in_namespace():
    """Whether mounts of this process are its own: `run` starts itself again in a new namespace if it may."""
    return os.environ.get("FAULTS_NAMESPACE") == "1"


def on_tmpfs(scene, name, value, findings):
    """A run in a tmpfs with an option such as `size`, or one that is read-only."""
    scene.reset()
    home, place = scene.dir, scene.top / "mounted"
    place.mkdir(exist_ok=True)
    options = "size=16m" if name == "ro" else f"{name}={value}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place]).returncode:
        raise SystemExit("tmpfs cannot be mounted")
    try:
        if subprocess.run(["cp", "-a", f"{home}/.", place], capture_output=True).returncode:
            findings.count("too small for the inputs")
            return
        if name == "ro":
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        scene.dir = place
        run = scene.run()
        problem = scene.after_error(run)
        if not problem and run.code not in (0, 4):
            problem = f"expected exit 4: {run}"
        findings.count("refused" if run.code else "done")
        findings.check(problem, f"{scene.form.name}: tmpfs {name}={value}")
    finally:
        scene.dir = home
        # Lazily: what another thread is just starting has open files of this one until it runs.
        subprocess.run(["umount", "--lazy", place], check=True)
