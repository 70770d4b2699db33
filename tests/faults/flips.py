"""What `qtool verify` finds: flipped bits, members that are missing or swapped, sidecars of other models."""

import json
import random
import shutil

import models

FORMS = ("file", "directory", "compressed-tensors", "ONNX, external")


def bits(workers, findings, wanted):
    """Flips one bit of one member, as often as members are large, and each member at least now and then."""
    forms = [form for form in workers.forms if form.name in FORMS]
    for form in forms:
        flips = -(-wanted // len(forms))

        def trial(scene, seed):
            if seed == 0 or not getattr(scene, "members", None):
                scene.reset()
                scene.expect(scene.run(), 0)
                scene.members = [name for name in scene.new if name not in scene.old and scene.new[name]]
            source = random.Random(f"{form.name} {seed}")
            sizes = [len(scene.new[name]) for name in scene.members]
            # Half of the flips by size, half by member.
            name = source.choices(scene.members, sizes)[0] if seed % 2 else source.choice(scene.members)
            content = bytearray(scene.new[name])
            place, bit = source.randrange(len(content)), source.randrange(8)
            content[place] ^= 1 << bit
            path = scene.dir / name
            path.write_bytes(content)
            run = scene.verify()
            path.write_bytes(scene.new[name])
            problem = None
            if run.code not in (1, 3):
                problem = f"not found: {run}"
            elif name.rsplit("/", 1)[-1] not in run.stderr:
                problem = f"not named: {run}"
            findings.count(f"flips in {'the sidecar' if name.endswith(('q.json', 'qtool.json')) else 'other members'}")
            findings.check(problem, f"{form.name}: {name} byte {place} of {len(content)} bit {bit}")

        workers.each(form, range(flips), trial)


def members(workers, findings):
    """Members that are missing, swapped or of another model."""
    for form in [form for form in workers.forms if form.name in FORMS]:
        def trial(scene, what):
            kind, name = what
            scene.reset()
            scene.expect(scene.run(), 0)
            path, found_by = scene.dir / name, name
            if kind == "missing":
                path.unlink()
            elif kind == "swapped":
                other = scene.dir / name.replace("00001-of", "00002-of")
                path.rename(scene.dir / "aside")
                other.rename(path)
                (scene.dir / "aside").rename(other)
            else:
                # The sidecar, or a member, that the same command made of another model of the same shapes.
                elsewhere = scene.top / "elsewhere"
                shutil.rmtree(elsewhere, ignore_errors=True)
                elsewhere.mkdir()
                form.make(elsewhere)
                change_values(elsewhere)
                scene.expect(scene.run(cwd=elsewhere, program=scene.verifier), 0)
                shutil.copy(elsewhere / name, path)
                found_by = None
            run = scene.verify()
            problem = None
            if run.code == 0 or run.code not in (1, 3, 4):
                problem = f"not found: {run}"
            elif found_by and found_by.rsplit("/", 1)[-1] not in run.stderr:
                problem = f"not named: {run}"
            findings.check(problem, f"{form.name}: {name} {kind}")

        with workers.scene(form) as scene:
            names = [name for name in scene.new if name not in scene.old and scene.new[name] is not None]
            differ = [name for name in names if not name.endswith(("config.json", "index.json", "tokenizer.json"))]
        if form.name == "ONNX, external":
            # The graph holds no values of a weight: that of another model of the same shapes is the same file.
            differ = [name for name in differ if not name.endswith(".onnx")]
        trials = [("missing", name) for name in names] + [("of another model", name) for name in differ]
        trials += [("swapped", name) for name in names if "00001-of" in name]
        workers.each(form, trials, trial)


def change_values(where):
    """Gives every input other values of the same shapes."""
    for path in where.rglob("*"):
        if path.suffix in (".safetensors", ".bin", ".onnx"):
            content = bytearray(path.read_bytes())
            start = len(content) // 2 if path.suffix != ".bin" else 0
            if path.suffix == ".onnx":
                continue
            for i in range(start + -start % 4, len(content) - 4, 64):
                content[i] ^= 1
                content[i + 1] ^= 0x55
            path.write_bytes(content)
