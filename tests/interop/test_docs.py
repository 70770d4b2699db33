"""Blocks of documentation are run as they stand there: `sh` blocks by bash, `python` blocks by this Python, in one directory a page."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import BINARY, ROOT

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def links(directory, *names):
    for name in names:
        (directory / name).symlink_to(ROOT / name)


def small_model(directory):
    shutil.copy(ROOT / "fixtures/onnx/small/small.onnx", directory / "model.onnx")


PAGES = {
    "getting-started.md": lambda directory: links(directory, "fixtures"),
    "onnxruntime.md": small_model,
    "transformers.md": lambda directory: links(directory, "docs"),
    "pytorch.md": lambda directory: None,
    "packaging.md": lambda directory: None,
}


def commands(directory):
    """A directory with `qtool` in it, for PATH."""
    (directory / "bin").mkdir()
    (directory / "bin/qtool").symlink_to(BINARY)
    return directory / "bin"


@pytest.mark.parametrize("page", PAGES)
def test_pages_do_what_they_say(page, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    PAGES[page](work)
    environment = os.environ | {"PATH": f"{commands(tmp_path)}:{os.environ['PATH']}"}
    text = (ROOT / "docs" / page).read_text()
    blocks = BLOCK.findall(text)
    assert blocks
    for language, code in blocks:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{page}:\n{code}\n{done.stdout}{done.stderr}"


def test_a_wrong_block_is_noticed(tmp_path):
    code = BLOCK.findall("text\n```sh\nfalse\ntrue\n```\n```sh norun\nfalse\n```\n")
    assert code == [("sh", "false\ntrue\n")]
    assert subprocess.run(["bash", "-euo", "pipefail", "-c", code[0][1]], cwd=tmp_path).returncode == 1


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "fixtures/README.md", ROOT / "CHANGELOG.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
