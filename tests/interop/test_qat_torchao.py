"""Models that torchao trained: exported graphs (PT2E), and its own fake quantizers. Equal to convert_pt2e, bit for bit."""

import functools
import re
import subprocess
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import BINARY, ROOT, Output, assert_bits, assert_equal, run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import qat
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Small, and with one normalization at most: torchao takes half a minute to look for them."""

    def __init__(self, norm=True):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()
        self.hidden, self.out = nn.Linear(288, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x))).flatten(1)
        return self.out(self.relu(self.hidden(x)))


def xnnpack(per_channel):
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=True))


def train(model, steps, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed + step))
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def named(module, path):
    return functools.reduce(getattr, path.split("."), module)


def frozen(converted):
    """Codes, scales and zero points of weights in a converted graph, by the layer that takes them, in order, with biases."""
    found = []
    attribute = lambda node: named(converted, node.target) if isinstance(node, torch.fx.Node) else torch.tensor([node])
    for node in converted.graph.nodes:
        if "conv2d" not in str(node.target) and "linear" not in str(node.target):
            continue
        weight = node.args[1]
        assert "dequantize" in str(weight.target), weight
        codes, scale, zero_point = (attribute(source) for source in weight.args[:3])
        found.append((codes, scale.flatten().float(), zero_point.flatten(), named(converted, node.args[2].target)))
    return found


@pytest.mark.parametrize("per_channel, norm", [(True, True), (True, False), (False, False)])
def test_exported_graph(tmp_path, per_channel, norm):
    torch.manual_seed(0)
    model = Net(norm)
    if norm:
        nn.init.uniform_(model.bn.weight, -1.5, 1.5)
    prepared = prepare_qat_pt2e(torch.export.export(model, (torch.randn(4, 3, 8, 8),)).module(), xnnpack(per_channel))
    train(prepared, 6)
    text = (ROOT / "docs/qat.md").read_text()
    script = {}
    exec(re.search(r'```python title="fake_quantizers.py"\n(.*?)```', text, re.DOTALL).group(1), script)
    tables = script["fake_quantizers"](prepared)
    assert tables.count("[[fake_quantizer]]") == 3 and tables.count("batch_norm") == norm
    (tmp_path / "recipe.toml").write_text(tables)
    save_file({name: tensor.contiguous().clone() for name, tensor in prepared.state_dict().items()}, tmp_path / "m.safetensors")
    run("quantize", tmp_path / "m.safetensors", "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "q.safetensors")
    out = Output(tmp_path / "q.safetensors")

    observers = {name: module.calculate_qparams() for name, module in prepared.named_modules(remove_duplicate=False) if re.fullmatch(r"activation_post_process_\d+", name)}
    move_exported_model_to_eval(prepared)
    layers = zip(["conv", "hidden", "out"], frozen(convert_pt2e(prepared)), strict=True)
    for name, (codes, scales, zero_points, bias) in layers:
        assert out.records[f"{name}.weight"]["observer"] == "trained"
        assert_bits(out.scales(f"{name}.weight"), scales.numpy(), f"{name} scales")
        assert np.array_equal(out.zero_points(f"{name}.weight"), zero_points), name
        assert_equal(out.codes(f"{name}.weight"), codes, f"{name} codes")
        assert_bits(out.stored[f"{name}.bias"].numpy(), bias.detach().numpy(), f"{name} bias")
    of_weights = re.findall(r'^name = "(.*)"', tables, re.MULTILINE)
    activations = out.document["activations"]
    assert set(activations) == set(observers) - set(of_weights)
    for name, record in activations.items():
        scale, zero_point = observers[name]
        assert np.float32(record["scale"]) == scale.item() and record["zero_point"] == zero_point.item(), name
    assert not [name for name in out.stored if "post_process" in name or name.startswith("bn")]
    # The recorded recipe does the same again.
    run("quantize", tmp_path / "m.safetensors", "--recipe", tmp_path / "q.json", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def failure(*arguments):
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), done
    return done.stderr


def test_numbers_alone_do_not_say_what_is_a_weight(tmp_path):
    torch.manual_seed(0)
    prepared = prepare_qat_pt2e(torch.export.export(Net(norm=False), (torch.randn(4, 3, 8, 8),)).module(), xnnpack(True))
    train(prepared, 2)
    path = tmp_path / "m.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in prepared.state_dict().items()}, path)
    assert "[[fake_quantizer]]" in failure("quantize", path)
    for table, part in [
        ('name = "activation_post_process_99"\nweight = "out.weight"', "line 1, column 1: fake_quantizer"),
        ('name = "activation_post_process_1"\nweight = "weight"', "expected a tensor"),
        ('name = "activation_post_process_1"\nweight = "conv.weight"\nbatch_norm = "norm"', "norm.weight"),
    ]:
        (tmp_path / "recipe.toml").write_text(f"[[fake_quantizer]]\n{table}")
        failed = failure("quantize", path, "--recipe", tmp_path / "recipe.toml")
        assert part in failed, failed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.safetensors", "recipe.toml"]


GROUPS = {"per_channel": {"granularity": "per_channel"}, "group": {"group_size": 32}}


@pytest.mark.parametrize("groups", ["per_channel", "group"])
def test_learned_ranges(tmp_path, groups):
    """A FakeQuantizedLinear whose scales are parameters; torchao learns no zero points."""
    torch.manual_seed(3)
    config = qat.IntxFakeQuantizeConfig(torch.int8, **GROUPS[groups], is_symmetric=True, is_dynamic=False, range_learning=True)
    model = nn.Sequential(qat.FakeQuantizedLinear.from_linear(nn.Linear(96, 40), weight_config=config))
    x = torch.randn(16, 96)
    qat.initialize_fake_quantizers(model, (x,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    assert "0.weight_fake_quantizer.scale" in state
    save_file(state, tmp_path / "m.safetensors")
    run("quantize", tmp_path / "m.safetensors", "-o", tmp_path / "q.safetensors")
    out = Output(tmp_path / "q.safetensors")
    assert out.records["0.weight"]["observer"] == "trained"
    assert_bits(out.scales("0.weight"), state["0.weight_fake_quantizer.scale"].flatten().numpy(), "scales")
    run("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "back.safetensors")
    expected = model[0].weight_fake_quantizer(model[0].weight).detach()
    torch.testing.assert_close(load_file(tmp_path / "back.safetensors")["0.weight"], expected, rtol=1e-6, atol=1e-7)
