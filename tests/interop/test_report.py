"""The pages of `--report` in a browser: names are text, nothing else runs or loads, tables sort and filter, it fits a phone."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import FIXTURE, ROOT, run

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian's package of that name)")

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
PHONE = 390
SMALL = ROOT / "fixtures/onnx/small"


def open_page(path, *options):
    """The document after it was loaded, as text, and what the browser logged."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run([*command, *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def ask(page, script, *options, wrapped=False):
    """What `script` returns in a copy of the page whose policy lets it run; and what was logged."""
    tell = "parent.postMessage(answer, '*')" if wrapped else "document.title = answer"
    script = f"addEventListener('load', () => {{ const answer = JSON.stringify((() => {{ {script} }})()); {tell}; }});"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text()
    assert text.count("script-src '") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '").replace("</body>", f"<script>{script}</script></body>")
    copy = page.with_name("asked.html")
    copy.write_text(text)
    if wrapped:
        copy = page.with_name("wrapper.html")
        frame = f"<iframe src=asked.html style='border:0;width:{PHONE}px;height:800px'></iframe>"
        copy.write_text(f"<script>onmessage = (event) => document.title = event.data</script>{frame}")
        # Time for the message to arrive.
        options = [*options, "--virtual-time-budget=10000"]
    dom, logged = open_page(copy, "--dump-dom", *options)
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.S)[1])), logged


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 2,000 tensors, one of them with a hostile name, and the page about it."""
    dir = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(1)
    tensors = {f"model.layers.{i // 16}.mlp.{i % 16}.weight": torch.randn(32, 64, generator=generator) * (1 + i) for i in range(1999)}
    tensors[HOSTILE] = torch.randn(32, 64, generator=generator)
    save_file(tensors, dir / "m.safetensors")
    page = dir / "q.html"
    run("quantize", dir / "m.safetensors", "--report", page, "--quiet")
    return page


@pytest.fixture(scope="module")
def pages(tmp_path_factory, large):
    """A page of every kind."""
    dir = tmp_path_factory.mktemp("pages")
    samples = [option for i in range(6) for option in ("--samples", SMALL / f"{i}.npz")]
    run("quantize", FIXTURE, "-o", dir / "q.safetensors", "--report", dir / "quantize.html", "--quiet", "--weights", "int4")
    run("compare", FIXTURE, dir / "q.safetensors", "--report", dir / "compare.html", "--quiet", "--min-sqnr", 25, status=3)
    run("inspect", FIXTURE, "--report", dir / "inspect.html", "--quiet")
    run("quantize", SMALL / "small.onnx", "-o", dir / "static.onnx", *samples, "--report", dir / "static.html", "--quiet")
    run("compare", SMALL / "small.onnx", dir / "static.onnx", *samples, "--layers", "--report", dir / "outputs.html", "--quiet")
    return [large, *sorted(dir.glob("*.html"))]


def test_pages_show_without_a_complaint(pages):
    for page in pages:
        found, logged = ask(
            page,
            """return {
                charts: Array.from(document.querySelectorAll('svg'), (svg) => svg.getBoundingClientRect().height),
                tables: Array.from(document.querySelectorAll('table'), (table) => table.rows.length),
                loaded: performance.getEntriesByType('resource').filter((entry) => !entry.name.startsWith('data:')).map((entry) => entry.name),
                invalid: Array.from(document.querySelectorAll('svg *'))
                    .filter((element) => Array.from(element.attributes).some((a) => a.value.includes('NaN'))).length,
            };""",
        )
        assert logged == [], page.name
        assert found["loaded"] == [] and found["invalid"] == 0, page.name
        assert found["charts"] and min(found["charts"]) > 20, page.name
        assert found["tables"] and min(found["tables"]) > 1, page.name


def test_a_name_is_text_and_no_other_script_runs(large):
    found, logged = ask(
        large,
        """return {
            names: Array.from(document.querySelectorAll('td:first-child'), (cell) => cell.textContent).filter((text) => text.includes('<')),
            scripts: document.scripts.length,
            images: document.images.length,
        };""",
    )
    assert set(found["names"]) == {HOSTILE}
    # The page's own, and the one that asks.
    assert (found["scripts"], found["images"], logged) == (2, 0, [])
    # Would it be noticed? Even if escaping were forgotten, the policy stops it, and the console says so.
    broken = large.with_name("broken.html")
    broken.write_text(large.read_text().replace("</h1>", "</h1><script>document.title = 'ran'</script>"))
    dom, logged = open_page(broken, "--dump-dom")
    assert "<title>ran" not in dom and logged


def test_tables_sort_and_filter(large):
    found, logged = ask(
        large,
        """
        const table = document.querySelector('#tensors table');
        const headers = Array.from(table.tHead.rows[0].cells);
        const column = (title) => headers.findIndex((header) => header.textContent.startsWith(title));
        const shown = () => Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
        const cells = (title) => shown().map((row) => row.cells[column(title)].textContent);
        const click = (title) => headers[column(title)].querySelector('button').click();
        const found = { first: cells('SQNR') };
        click('SQNR'); found.descending = cells('SQNR');
        click('max error'); found.errors = cells('max error');
        click('tensor'); found.names = cells('tensor');
        const field = document.querySelector('#tensors input');
        const filter = (text) => { field.value = text; field.dispatchEvent(new Event('input')); };
        filter('LAYERS.7. weight'); found.filtered = cells('tensor');
        found.count = document.querySelector('#tensors output').textContent;
        filter('<script>'); found.hostile = cells('tensor');
        filter(''); found.all = shown().length;
        return found;
        """,
    )
    assert logged == []
    decibels = [float(text.split()[0]) for text in found["first"]]
    assert len(decibels) == 2000 and decibels == sorted(decibels)
    assert found["descending"] == sorted(found["first"], key=lambda text: -float(text.split()[0]))
    errors = [float(text) for text in found["errors"]]
    assert errors == sorted(errors)
    natural = lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    plain = [name for name in found["names"] if name != HOSTILE]
    assert plain == sorted(plain, key=natural) and len(plain) == 1999
    assert found["filtered"] == [f"model.layers.7.mlp.{i}.weight" for i in range(16)]
    assert found["count"] == "16 of 2000 tensors"
    assert found["hostile"] == [HOSTILE] and found["all"] == 2000


def test_without_scripts_the_table_is_whole(large):
    # Chromium reads the document by a script, and cannot do so where all are off: the page's own is kept from running.
    page = large.with_name("still.html")
    page.write_text(re.sub("script-src '[^']*'", "script-src 'none'", large.read_text()))
    dom, _ = open_page(page, "--dump-dom")
    assert dom.count("<tr") > 2000 and "<button" not in dom and "<input" not in dom
    numbers = [float(number) for number in re.findall(r"<b>(\S+) dB</b>", dom)]
    assert len(numbers) == 2000 and numbers == sorted(numbers)


def test_a_large_page_is_small_and_opens_at_once(large):
    assert large.stat().st_size < 5_000_000
    script = "document.body.getBoundingClientRect(); return performance.now();"
    times = [ask(large, script)[0] for _ in range(3)]
    print(f"{large.stat().st_size} bytes, loaded and laid out after {times} ms")
    assert min(times) < 2000, times


def test_it_fits_a_phone(pages):
    for page in pages:
        found, logged = ask(
            page,
            """
            const width = document.documentElement.clientWidth;
            const inTable = (element) => element.closest('.scroll');
            const wide = Array.from(document.querySelectorAll('body *'))
                .filter((element) => !inTable(element) && element.getBoundingClientRect().right > width + 1);
            const text = Array.from(document.querySelectorAll('svg text'), (text) => text.getBoundingClientRect().height);
            return { width, scroll: document.documentElement.scrollWidth, wide: wide.map((element) => element.outerHTML.slice(0, 80)), text };
            """,
            wrapped=True,
        )
        assert logged == [] and found["wide"] == [], page.name
        assert found["scroll"] <= found["width"] <= PHONE, page.name
        assert found["text"] and min(found["text"]) >= 9, page.name


def test_light_dark_and_printed(pages, tmp_path):
    script = """
        const color = (element, property) => getComputedStyle(element)[property];
        return [color(document.body, 'backgroundColor'), color(document.body, 'color'), color(document.querySelector('svg text'), 'fill')];
    """
    brightness = lambda color: np.mean([int(part) for part in re.findall(r"\d+", color)[:3]])
    # One style sheet for all: a page of either kind of model.
    for page in [page for page in pages if page.stem in ("compare", "static")]:
        paper, *ink = map(brightness, ask(page, script)[0])
        assert paper > 200 and max(ink) < 100, page.name
        paper, *ink = map(brightness, ask(page, script, "--blink-settings=preferredColorScheme=0")[0])
        assert paper < 60 and min(ink) > 180, page.name
        printed = tmp_path / "page.pdf"
        open_page(page, f"--print-to-pdf={printed}")
        assert printed.read_bytes().startswith(b"%PDF"), page.name


def test_what_a_runtime_makes_of_nodes_and_what_had_to_hold_is_shown(tmp_path):
    samples = [option for i in range(6) for option in ("--samples", SMALL / f"{i}.npz")]
    page = tmp_path / "static.html"
    run("quantize", SMALL / "small.onnx", "-o", tmp_path / "q.onnx", *samples, "--report", page, "--quiet", "--min-sqnr", 20, "--saturation", "report")
    rows = "return Object.fromEntries(Array.from(document.querySelectorAll('section'), (s) => [s.id, Array.from(s.querySelectorAll('tbody tr'), (r) => r.innerText)]));"
    found, logged = ask(page, rows)
    assert logged == []
    # Not all of its nodes are quantized: what a pooling gives has other readers, too.
    verdicts = json.loads(run("lint", tmp_path / "q.onnx", "--json"))["nodes"]
    kernels = [node["kernel"] for node in verdicts if node["verdict"] == "integer"]
    assert kernels and len(found["lint"]) == len(verdicts)
    assert sorted(kernels) == sorted(text.split("\t")[3] for text in found["lint"] if text.split("\t")[2] == "integer")
    assert len(found["gates"]) >= 1 and all("20" in text for text in found["gates"])
