"""The observer in Python of docs/custom-observers.md."""

import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import FIXTURE, ROOT, Output, run


@pytest.mark.parametrize("options, axis", [((), (1, 2)), (("--axis", "1"), (0, 2)), (("--granularity", "per-tensor"), (0, 1, 2))])
def test_clip3sigma(tmp_path, options, axis):
    text = (ROOT / "docs/custom-observers.md").read_text()
    script = re.search(r'```python title="clip3sigma.py"\n(.*?)```', text, re.DOTALL).group(1)
    (tmp_path / "clip3sigma.py").write_text(script)
    (tmp_path / "clip3sigma.py").chmod(0o755)
    (tmp_path / "recipe.toml").write_text('[[observer]]\nname = "clip3sigma"\ncommand = ["./clip3sigma.py"]\n')
    shutil.copy(FIXTURE, tmp_path / "m.safetensors")
    use = ("--recipe", tmp_path / "recipe.toml", "--allow-commands", "--observer", "clip3sigma", "--include", "conv*")
    run("quantize", tmp_path / "m.safetensors", "-o", tmp_path / "q.safetensors", *use, *options)
    values = load_file(FIXTURE)["conv2.weight"].astype(np.float64)
    mean, reach = values.mean(axis), 3 * values.std(axis)
    low, high = np.maximum(mean - reach, values.min(axis)), np.minimum(mean + reach, values.max(axis))
    expected = np.maximum(np.maximum(-low, high), 0) / 127.5
    np.testing.assert_allclose(Output(tmp_path / "q.safetensors").scales("conv2.weight"), expected.flatten(), rtol=1e-5)
