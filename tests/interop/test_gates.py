"""Gates of models in several files; JUnit files and examples for CI, read by other parsers: Python's own for XML, PyYAML where it is installed."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from conftest import FIXTURE, ROOT, run

SMALL = ROOT / "fixtures/onnx/small"

HOSTILE = [
    "<failure/>\"'&amp;]]>",
    "\x00\x01\x08\x0b\x0c\x1f\x7f",
    "tab\tline\r\nfeed \x1b[31mred",
    "\ufffe\uffff\u0085\u2028\u202e",
    "😀é\U0010ffff",
    " leading and trailing ",
    "x" * 5000,
]


def suite(path):
    """The one suite of a file whose structure is that of JUnit, and whose counts are right."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites" and [child.tag for child in root] == ["testsuite"]
    (found,) = root
    cases = list(found)
    assert {case.tag for case in cases} == {"testcase"}
    for case in cases:
        assert set(case.attrib) == {"classname", "name"} and all(case.attrib.values())
        assert len(case) <= 1 and {child.tag for child in case} <= {"failure", "error", "skipped"}
        assert all(child.get("message") and not len(child) for child in case)
    for element in (root, found):
        assert element.get("name")
        assert int(element.get("tests")) == len(cases)
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(kind)) == len(found.findall(f"testcase/{tag}"))
    return found


def rows(found):
    """Name and verdict of each case."""
    return [(case.get("name"), [child.tag for child in case]) for case in found]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    save_file({name: torch.randn(32, 64, generator=generator) for name in HOSTILE}, path)
    return path


def readable(name):
    """A name as reports write it: nothing that XML forbids or that cannot be seen."""
    forbidden = lambda c: ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u202e\ufffe\uffff"
    return "".join(f"\\u{{{ord(c):x}}}" if forbidden(c) else c for c in name)


def test_names_of_strangers_are_text(hostile, tmp_path):
    junit, output = tmp_path / "junit.xml", tmp_path / "q.safetensors"
    for limit, status, verdict in ((20, 0, []), (90, 3, ["failure"])):
        text = run("quantize", hostile, "-o", output, "--force", "--json", "--min-sqnr", limit, "--junit", junit, status=status)
        found = dict(rows(suite(junit)))
        assert found == {f"{readable(name)}: sqnr_db": verdict for name in HOSTILE}
        assert {row["name"] for row in json.loads(text)["gates"]} == set(HOSTILE)
        run("compare", hostile, output, "--min-sqnr", limit, "--junit", junit, status=status)
        assert dict(rows(suite(junit))) == found


def test_gates_of_outputs(tmp_path):
    junit, output = tmp_path / "junit.xml", tmp_path / "q.onnx"
    samples = ["--samples", SMALL]
    gates = ["--min-sqnr", 20, "--min-cosine", "scores=0.9", "--max-abs", 1, "--min-top1", 0.5, "--junit", junit]
    run("quantize", SMALL / "small.onnx", "-o", output, *samples, *gates)
    expected = [(f"scores: {measure}", []) for measure in ("sqnr_db", "cosine", "max_abs", "top1")]
    assert rows(suite(junit)) == expected
    run("compare", SMALL / "small.onnx", output, *samples, *gates)
    assert rows(suite(junit)) == expected
    run("compare", SMALL / "small.onnx", output, *samples, *gates, "--max-abs", "scor*=0", status=3)
    (failure,) = suite(junit).findall("testcase/failure")
    assert failure.get("type") == "max_abs" and failure.get("message").startswith("max abs: expected at most 0, found ")
    run("verify", output, "--junit", junit)
    assert rows(suite(junit)) == [("q.onnx", [])]


def test_a_model_in_several_files_is_judged_before_it_appears(tmp_path):
    model = tmp_path / "model.onnx"
    onnx.save(onnx.load(SMALL / "small.onnx"), model, save_as_external_data=True, location="weights.bin", size_threshold=64)
    output = tmp_path / "out/q.onnx"
    output.parent.mkdir()
    command = ["quantize", model, "-o", output, "--force", "--json", "--samples", SMALL, "--min-cosine", "*=0.9", "--max-abs", 1]
    for status, limit in ((3, 90), (0, 20), (3, 90)):
        before = {path: path.read_bytes() for path in output.parent.iterdir()}
        text = run(*command, "--min-sqnr", f"scores={limit}", status=status)
        (row,) = [row for row in json.loads(text)["gates"] if row["measure"] == "sqnr_db"]
        assert row["limit"] == limit and row["passed"] == (status == 0)
        if status:
            assert {path: path.read_bytes() for path in output.parent.iterdir()} == before
    assert len(list(output.parent.iterdir())) == 3
    run("verify", output)
    # The figure is what ONNX Runtime computes, but for the order of its sums.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    signal = noise = 0.0
    for path in sorted(SMALL.glob("*.npz")):
        feeds = dict(np.load(path))
        expected, found = (onnxruntime.InferenceSession(m, options).run(["scores"], feeds)[0].astype(np.float64) for m in (model, output))
        signal, noise = signal + np.sum(expected**2), noise + np.sum((expected - found) ** 2)
    assert row["found"] == pytest.approx(10 * np.log10(signal / noise), abs=0.5)


def test_runs_without_a_verdict(tmp_path):
    junit = tmp_path / "junit.xml"
    run("compare", FIXTURE, tmp_path / "nowhere.safetensors", "--junit", junit, status=4)
    assert rows(suite(junit)) == [("run", ["error"])]
    for verdicts in ([], ["skipped"]):
        run("quantize", FIXTURE, "-o", tmp_path / "q.safetensors", "--if-changed", "--min-sqnr", 10, "--junit", junit)
        assert {tuple(verdict) for _, verdict in rows(suite(junit))} == {tuple(verdicts)}


def test_yaml_files_are_yaml():
    yaml = pytest.importorskip("yaml")
    examples = ROOT / "docs/examples"
    workflow = yaml.safe_load((examples / "github-actions.yml").read_text())
    steps = workflow["jobs"]["quantize"]["steps"]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    commands = [step["run"] for step in steps if step.get("run", "").startswith("qtool ")]
    job = yaml.safe_load((examples / "gitlab-ci.yml").read_text())["quantize"]
    # Both do the same.
    assert job["script"] == commands and [command.split()[1] for command in commands] == ["quantize", "verify", "compare"]
    assert job["artifacts"]["reports"]["junit"] == "build/*.xml" and job["artifacts"]["when"] == "always"
