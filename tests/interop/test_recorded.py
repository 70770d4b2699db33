"""Inputs recorded by the hook of docs/recording.md, and what transformers makes of checkpoints that were quantized with them."""

import json
import re

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from conftest import ROOT, run

SMALL = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320)


def hook():
    """`record`, as the documentation has it."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/recording.md").read_text(), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    return names["record"]


@pytest.fixture(scope="module", params=["llama", "llama-bf16", "qwen2"])
def recorded(request, tmp_path_factory):
    """Directory of a small model some of whose features are large, and the file of its layers' inputs."""
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL)) if request.param == "qwen2" else LlamaForCausalLM(LlamaConfig(**SMALL))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter[torch.randperm(128)[:4]] *= 30
            elif name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
            elif parameter.ndim == 2:
                parameter *= 3
    model = model.to(torch.bfloat16 if request.param.endswith("bf16") else torch.float32).eval()
    model.save_pretrained(directory / "model")
    hook()(model, [{"input_ids": torch.randint(0, 320, (4, 48))} for _ in range(8)], directory / "inputs.safetensors")
    return directory / "model", directory / "inputs.safetensors"


def logits(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(0, 320, (4, 40))).logits.double()


def load(directory, unpack=False):
    """What transformers 5.23 makes of it. Packed zero points it can only unpack, which leaves activations in float."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    options = {} if config["weights"]["symmetric"] and not unpack else {"quantization_config": CompressedTensorsConfig(run_compressed=False)}
    return AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def divergence(expected, found):
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def linear(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]


@pytest.mark.parametrize("scheme", ["w8a8-static", "w8a8-static-asym"])
def test_static_activations_are_those_of_compressed_tensors(recorded, tmp_path, scheme):
    source, samples = recorded
    run("quantize", source, "--scheme", scheme, "--samples", samples, "-o", tmp_path / "q", "--quiet")
    stored, inputs = load_file(tmp_path / "q/model.safetensors"), load_file(samples)
    args = QuantizationArgs(num_bits=8, symmetric=not scheme.endswith("asym"), strategy="tensor")
    weight_args = QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    for name, module in linear(model):
        scale, zero_point = calculate_qparams(inputs[name].amin().reshape(1), inputs[name].amax().reshape(1), args)
        assert torch.equal(stored[f"{name}.input_scale"], scale), name
        assert f"{name}.input_zero_point" not in stored if args.symmetric else torch.equal(stored[f"{name}.input_zero_point"], zero_point.to(torch.int8))
        weight = module.weight.data
        module.weight.data = fake_quantize(weight, *calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), weight_args), weight_args)
        module.register_forward_pre_hook(lambda module, inputs, scale=scale, zero_point=zero_point: (fake_quantize(inputs[0], scale, zero_point, args),))
    expected = logits(model)
    # Sums in another order may change the rounding of an activation.
    assert (logits(load(tmp_path / "q")) - expected).norm() / expected.norm() <= 2e-2


@pytest.mark.parametrize("observer", ["moving-average", "percentile:99.9", "histogram", "mse", "entropy"])
def test_every_observer_chooses_ranges_of_activations(recorded, tmp_path, observer):
    source, samples = recorded
    inputs = load_file(samples)
    (tmp_path / "batches").mkdir()
    for i in range(4):
        save_file({name: rows.chunk(4)[i].contiguous() for name, rows in inputs.items()}, tmp_path / f"batches/{i}.safetensors")
    options = ["--scheme", "w8a8-static", "--activation-observer", observer]
    run("quantize", source, *options, "--samples", tmp_path / "batches", "-o", tmp_path / "q", "--quiet")
    run("calibrate", source, "--samples", tmp_path / "batches", "--activation-observer", observer, "-o", tmp_path / "stats.safetensors", "--quiet")
    run("quantize", source, *options, "--stats", tmp_path / "stats.safetensors", "-o", tmp_path / "again", "--quiet")
    stored, again = (load_file(tmp_path / name / "model.safetensors") for name in ("q", "again"))
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor")
    for name, rows in inputs.items():
        scale, largest = stored[f"{name}.input_scale"], calculate_qparams(rows.amin().reshape(1), rows.amax().reshape(1), args)[0]
        assert 0 < scale <= largest
        if observer == "moving-average":
            reference = torch.ao.quantization.MovingAverageMinMaxObserver()
            for batch in rows.float().chunk(4):
                reference(batch)
            expected = calculate_qparams(reference.min_val.reshape(1).to(rows.dtype), reference.max_val.reshape(1).to(rows.dtype), args)[0]
            torch.testing.assert_close(scale, expected, rtol=1e-2 if rows.dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("scheme", [["w4a16", "--granularity", "per-channel"], ["w4a16", "--granularity", "per-group:32"], ["w4a16-asym", "--granularity", "per-group:32"], ["w8a8"], ["w8a8-static"]])
def test_methods_that_look_at_inputs_change_logits_less(recorded, tmp_path, scheme):
    source, samples = recorded
    floats = logits(AutoModelForCausalLM.from_pretrained(source).eval())

    def lost(*options):
        target = tmp_path / "-".join(options or ["plain"]).replace("/", "_").replace(":", "_")
        run("quantize", source, "--scheme", *scheme, *options, "--samples", samples, "-o", target, "--quiet")
        run("verify", target, "--quiet")
        return divergence(floats, logits(load(target)))

    plain = lost()
    for options in (["--transform", "smooth-quant"], ["--rounding", "gptq"], ["--transform", "smooth-quant", "--rounding", "adaround:4", "--observer", "output-mse"]):
        # Where activations are what loses, rounding weights well does not help.
        bound = 0.9 if scheme[0].startswith("w4") or "smooth-quant" in options else 1.2
        assert lost(*options) <= bound * plain, options


def test_smoothing_leaves_what_the_float_model_computes(recorded, tmp_path):
    source, samples = recorded
    expected = logits(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval())

    def lost(target, *options):
        run("quantize", source, "--scheme", "w8a8", *options, "--samples", samples, "-o", tmp_path / target, "--quiet")
        run("dequantize", tmp_path / target, "-o", tmp_path / f"{target}-float", "--quiet")
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / f"{target}-float", dtype=torch.float32).eval())
        return (found - expected).norm() / expected.norm()

    # The weights are harder to quantize now, by a little.
    assert lost("q", "--transform", "smooth-quant") < 2 * lost("plain") < 0.4
    assert json.loads((tmp_path / "q/qtool.json").read_text())["recipe"]["transforms"] == ["smooth-quant"]


def test_biases_are_corrected(recorded, tmp_path):
    source, samples = recorded
    arguments = ["quantize", source, "--scheme", "w4a16", "--granularity", "per-channel", "--transform", "bias-correction", "--samples", samples, "-o", tmp_path / "q", "--quiet"]
    if "qwen2" not in str(source):
        run(*arguments, status=1)
        return
    run(*arguments)
    floats, found, inputs = AutoModelForCausalLM.from_pretrained(source), load(tmp_path / "q", unpack=True), load_file(samples)
    modules, count = dict(linear(found)), 0
    for name, module in linear(floats):
        if module.bias is not None:
            expected, output = (part(inputs[name].float()).mean(0) for part in (module, modules[name]))
            assert torch.allclose(output, expected, atol=1e-3 * float(expected.abs().max()))
            count += 1
    assert count == 6
