"""Sidecars fit docs/sidecar.schema.json, the reader in docs/sidecar.md reads them, and hashes are those of the files."""

import copy
import json
import re

import jsonschema
import pytest
from blake3 import blake3
from safetensors.torch import load_file

import checkpoints
from conftest import FIXTURE, ROOT, assert_bits, run

SCHEMA = json.loads((ROOT / "docs/sidecar.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

FORMS = [
    (),
    ("--weights", "uint8", "--asymmetric", "--granularity", "per-tensor"),
    ("--weights", "int4", "--granularity", "per-group:32"),
    ("--weights", "uint4", "--asymmetric", "--granularity", "per-group:7"),
    ("--weights", "int4", "--asymmetric", "--axis", "-1"),
    ("--convention", "ort", "--weights", "uint8"),
    ("--convention", "compressed-tensors", "--exclude", "re:.*heavy.*", "--min-elements", "9", "--hash-source", "header"),
]


@pytest.fixture
def model(tmp_path):
    return checkpoints.write(tmp_path / "m.safetensors", checkpoints.mixed("F32"))


@pytest.mark.parametrize("options", FORMS, ids=" ".join)
def test_schema(model, quantize, options):
    output = quantize(model, *options)
    VALIDATOR.validate(output.document)
    assert output.records.keys() | output.document["kept"].keys() == checkpoints.mixed("F32").keys()
    assert not output.records.keys() & output.document["kept"].keys()


def test_schema_of_every_observer(quantize, observers):
    for name in re.findall(r"[a-z][a-z-]+(?=\[|,|\s)", observers):
        output = quantize(FIXTURE, "--observer", name)
        VALIDATOR.validate(output.document)
        assert output.records["conv1.weight"]["observer"].split(":")[0] == name


def test_schema_of_a_recipe_with_rules(tmp_path, model, quantize):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rule]]\nmatch = "conv*"\nweights = "keep"\n[[rule]]\nmatch = "linear"\nweights = "int4"\ngranularity = "per-group:8"\n')
    output = quantize(model, "--recipe", recipe)
    VALIDATOR.validate(output.document)
    again = quantize(model, "--recipe", output.sidecar)
    assert again.weights.read_bytes() == output.weights.read_bytes()


def broken(document):
    """Documents with one mistake each."""

    def change(path, value):
        changed = copy.deepcopy(document)
        *parents, last = path
        inner = changed
        for key in parents:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        return changed

    tensor = ("tensors", "conv1.weight")
    yield change(("version",), 2)
    yield change(("seed",), None)
    yield change(("extra",), 1)
    yield change(("output", "files", 0, "blake3"), "00")
    yield change(("output", "files", 0, "name"), "/etc/passwd")
    yield change(("source", "files", 0, "header_blake3"), None)
    yield change((*tensor, "extra"), 1)
    yield change((*tensor, "axis"), None)
    yield change((*tensor, "group_size"), 32)
    yield change((*tensor, "dtype"), "int16")
    yield change((*tensor, "qmin"), -129)
    yield change((*tensor, "scale"), {"tensor": "conv1.weight.scale"})
    yield change((*tensor, "scale"), [0.0])
    yield change((*tensor, "granularity"), "per_tensor")
    yield change((*tensor, "source_dtype"), "I8")
    yield change(("recipe", "default", "weights"), "keep")
    yield change(("recipe", "default", "granularity"), "per-group:0")
    yield change(("kept", "conv1.bias"), 5)


def test_schema_is_strict(quantize):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    documents = list(broken(quantize(FIXTURE).document))
    assert len(documents) == 18
    for i, document in enumerate(documents):
        assert not VALIDATOR.is_valid(document), i


def documented_reader():
    text = (ROOT / "docs/sidecar.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    names = {}
    exec(compile(blocks[0], "docs/sidecar.md", "exec"), names)
    return names["read_quantized"]


@pytest.mark.parametrize("options", FORMS, ids=" ".join)
def test_documented_reader(tmp_path, model, quantize, options):
    output = quantize(model, *options)
    back = tmp_path / "back.safetensors"
    run("dequantize", output.weights, "-o", back)
    expected, found = load_file(back), dict(documented_reader()(output.sidecar))
    assert found.keys() == output.records.keys()
    for name, values in found.items():
        assert_bits(values + 0.0, expected[name].numpy() + 0.0, name)


def test_documented_reader_of_shards(tmp_path):
    model, out, back = tmp_path / "model", tmp_path / "out", tmp_path / "back"
    model.mkdir()
    tensors = checkpoints.mixed("F32")
    names = list(tensors)
    weight_map = {}
    for shard, members in {"a.safetensors": names[::2], "b.safetensors": names[1::2]}.items():
        checkpoints.write(model / shard, {name: tensors[name] for name in members})
        weight_map |= dict.fromkeys(members, shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / "tokenizer.json").write_text("{}")
    run("quantize", model, "-o", out, "--quiet", "--granularity", "per-group:16", "--asymmetric", "--weights", "int4")
    run("dequantize", out, "-o", back, "--quiet")
    document = json.loads((out / "qtool.json").read_text())
    VALIDATOR.validate(document)
    assert sorted(path.name for path in out.iterdir()) == sorted([file["name"] for file in document["output"]["files"]] + ["qtool.json"])
    for file in document["output"]["files"]:
        assert blake3((out / file["name"]).read_bytes()).hexdigest() == file["blake3"]
    expected = load_file(back / "a.safetensors") | load_file(back / "b.safetensors")
    found = dict(documented_reader()(out / "qtool.json"))
    assert found.keys() == document["tensors"].keys()
    for name, values in found.items():
        assert_bits(values + 0.0, expected[name].numpy() + 0.0, name)


def test_hashes_are_those_of_the_files(quantize):
    output = quantize(FIXTURE)
    (source,) = output.document["source"]["files"]
    (written,) = output.document["output"]["files"]
    content, weights = FIXTURE.read_bytes(), output.weights.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    assert source == {"name": FIXTURE.name, "bytes": len(content), "blake3": blake3(content).hexdigest(), "header_blake3": blake3(header).hexdigest()}
    assert written == {"name": output.weights.name, "bytes": len(weights), "blake3": blake3(weights).hexdigest()}


def test_the_sidecar_holds_its_own_hash(quantize):
    output = quantize(FIXTURE)
    text, stored = output.sidecar.read_bytes(), output.document["blake3"].encode()
    assert blake3(text.replace(stored, b"0" * 64, 1)).hexdigest().encode() == stored


def test_verify_finds_a_changed_byte(quantize):
    output = quantize(FIXTURE)
    run("verify", output.weights)
    content = bytearray(output.weights.read_bytes())
    content[-1] ^= 1
    output.weights.write_bytes(content)
    run("verify", output.weights, status=3)
    output.weights.write_bytes(content[:-1])
    run("verify", output.sidecar, status=3)
