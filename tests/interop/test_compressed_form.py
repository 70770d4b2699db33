"""Do transformers and compressed-tensors load `--format compressed-tensors`, and compute with it what they should?

The reference is the float model with weights, and where they are integers activations, quantized and dequantized by
compressed-tensors' own functions for parameters and rounding.
"""

import json
import subprocess

import pytest
import torch
from compressed_tensors.compressors import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from conftest import BINARY, run

SMALL = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320)
# Preset, further options, bits, symmetric, group size.
SCHEMES = {
    "w8a8": ((), 8, True, None),
    "w8a16": ((), 8, True, None),
    "w8a16-group": ((), 8, True, 128),
    "w4a16": ((), 4, True, 128),
    "w4a16-asym": (("--granularity", "per-group:32"), 4, False, 32),
    "w4a16-channel": (("--scheme", "w4a16", "--granularity", "per-channel"), 4, True, None),
}


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SMALL, **more))


MODELS = {
    "llama": (llama, torch.float32, {}),
    "llama-bf16": (llama, torch.bfloat16, {}),
    "llama-f16": (llama, torch.float16, {}),
    "llama-tied": (lambda: llama(tie_word_embeddings=True), torch.float32, {}),
    "llama-sharded": (llama, torch.float32, {"max_shard_size": "400KB"}),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)), torch.float32, {}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(name): the directory of a small model with random weights of several magnitudes; made once."""
    directory, done = tmp_path_factory.mktemp("checkpoints"), {}

    def made(name):
        if name not in done:
            torch.manual_seed(7)
            make, dtype, options = MODELS[name]
            model = make().to(dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter *= torch.logspace(-1, 1, parameter.shape[0], dtype=torch.float32)[torch.randperm(parameter.shape[0])][:, None].to(dtype)
            model.save_pretrained(directory / name, **options)
            (directory / name / "tokenizer.json").write_text("{}")
            done[name] = directory / name
        return done[name]

    return made


def load(directory, scheme):
    """What transformers 5.23 makes of it. It cannot keep packed zero points, of whoever's files, but it can unpack them."""
    options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if scheme.endswith("asym") else {}
    return AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def refused(*arguments, status):
    """What the program says when it refuses."""
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stderr


def quantized(source, target, scheme):
    options, *_ = SCHEMES[scheme]
    preset = () if "--scheme" in options else ("--scheme", scheme)
    run("quantize", source, *preset, *options, "-o", target, "--quiet")
    return target


def arguments(scheme):
    _, bits, symmetric, size = SCHEMES[scheme]
    return QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group" if size else "channel", group_size=size)


def parameters(weight, args):
    """Scale and zero point of compressed-tensors for min-max, shaped [out, groups]."""
    groups = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args)


def is_quantized(name, module):
    return isinstance(module, torch.nn.Linear) and name != "lm_head"


def reference(source, scheme):
    """The float model with quantized values instead of its own."""
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    args = arguments(scheme)
    for name, module in model.named_modules():
        if is_quantized(name, module):
            scale, zero_point = parameters(module.weight.data, args)
            module.weight.data = fake_quantize(module.weight.data, scale, zero_point, args)
            if scheme == "w8a8":
                module.register_forward_pre_hook(lambda module, inputs: (per_token(inputs[0]),))
    return model


def per_token(values):
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    scale, zero_point = calculate_qparams(values.amin(-1, keepdim=True), values.amax(-1, keepdim=True), args)
    return fake_quantize(values, scale, zero_point, args)


def logits(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(0, SMALL["vocab_size"], (2, 24))).logits.double()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_compute_what_they_should(checkpoint, tmp_path, name, scheme):
    source = checkpoint(name)
    found = load(quantized(source, tmp_path / "q", scheme), scheme)
    expected = logits(reference(source, scheme))
    difference = (logits(found) - expected).norm() / expected.norm()
    floats = logits(AutoModelForCausalLM.from_pretrained(source).eval())
    quantization = (floats - expected).norm() / expected.norm()
    # Sums in another order; in 16 bits that is more, and may change the rounding of an activation.
    tolerance = 1e-5 if MODELS[name][1] == torch.float32 and scheme != "w8a8" else 2e-2
    assert difference <= tolerance and difference < 0.5 * quantization, f"off by {difference:.2e}, quantization {quantization:.2e}"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_codes_and_scales_are_those_of_compressed_tensors(checkpoint, tmp_path, name, scheme):
    source, target = checkpoint(name), quantized(checkpoint(name), tmp_path / "q", scheme)
    stored = {key: value for file in target.glob("*.safetensors") for key, value in load_file(file).items()}
    model, args = AutoModelForCausalLM.from_pretrained(source, dtype=MODELS[name][1]), arguments(scheme)
    count = 0
    for module_name, module in model.named_modules():
        if not is_quantized(module_name, module):
            continue
        weight = module.weight.data
        scale, zero_point = parameters(weight, args)
        found = stored[f"{module_name}.weight_scale"]
        assert found.dtype == weight.dtype and torch.equal(found, scale)
        widened = scale.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        zeros = zero_point.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        low, high = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
        expected = torch.round(torch.clamp(weight / widened + zeros.to(weight.dtype), low, high)).to(torch.int8)
        if scheme == "w8a8":
            codes = stored[f"{module_name}.weight"]
        else:
            shape = stored[f"{module_name}.weight_shape"]
            codes = unpack_from_int32(stored[f"{module_name}.weight_packed"], args.num_bits, torch.Size(shape.tolist()))
        assert torch.equal(codes, expected)
        if not args.symmetric:
            packed = stored[f"{module_name}.weight_zero_point"]
            assert torch.equal(unpack_from_int32(packed, args.num_bits, zero_point.shape, packed_dim=0), zero_point.to(torch.int8))
        count += 1
    assert count == 14


def test_everything_else_is_carried_over(checkpoint, tmp_path):
    for name in MODELS:
        source, target = checkpoint(name), quantized(checkpoint(name), tmp_path / name, "w4a16")
        assert (target / "tokenizer.json").read_text() == "{}"
        before, after = (json.loads((directory / "config.json").read_text()) for directory in (source, target))
        config = after.pop("quantization_config")
        assert list(after.items()) == list(before.items()) and config["ignore"] == ["lm_head"]
        floats = {key: value for file in source.glob("*.safetensors") for key, value in load_file(file).items()}
        stored = {key: value for file in target.glob("*.safetensors") for key, value in load_file(file).items()}
        assert ("lm_head.weight" in stored) == (name != "llama-tied")
        for key in floats.keys() & stored.keys():
            assert torch.equal(floats[key], stored[key]), key
        assert {"model.embed_tokens.weight", "model.norm.weight"} <= floats.keys() & stored.keys()
        if (source / "model.safetensors.index.json").exists():
            index = json.loads((target / "model.safetensors.index.json").read_text())
            assert index["weight_map"].keys() == stored.keys()
            assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
            assert {file.name for file in target.glob("*.safetensors")} == {file.name for file in source.glob("*.safetensors")}
        run("verify", target, "--quiet")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "llama-bf16", "llama-sharded"])
def test_back_to_float(checkpoint, tmp_path, name, scheme):
    source, target, back = checkpoint(name), quantized(checkpoint(name), tmp_path / "q", scheme), tmp_path / "back"
    run("verify", target, "--quiet")
    run("dequantize", target, "-o", back, "--quiet")
    config, original = (json.loads((directory / "config.json").read_text()) for directory in (back, source))
    assert config == original
    floats, args = AutoModelForCausalLM.from_pretrained(source, dtype=MODELS[name][1]), arguments(scheme)
    found = AutoModelForCausalLM.from_pretrained(back, dtype=MODELS[name][1]).state_dict()
    errors = json.loads(run("compare", source, target, "--json"))["tensors"]
    assert {error["name"] for error in errors} == found.keys()
    for module_name, module in floats.named_modules():
        if is_quantized(module_name, module):
            expected = fake_quantize(module.weight.data, *parameters(module.weight.data, args), args)
            # Ours is rounded once, from f32.
            assert torch.allclose(found[f"{module_name}.weight"].float(), expected.float(), rtol=0.01 if MODELS[name][1] == torch.bfloat16 else 1e-6, atol=1e-9)
            error = next(error for error in errors if error["name"] == f"{module_name}.weight")
            assert error["quantized"] and error["sqnr_db"] > (10 if args.num_bits == 4 else 35)


def test_mixed_schemes(checkpoint, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[rule]]\nmatch = "*.mlp.*"\nweights = "int4"\nmode = "weight-only"\ngranularity = "per-group:32"\n[[rule]]\nmatch = "*.1.self_attn.o_proj"\nweights = "keep"\n'
    )
    source, target = checkpoint("llama"), tmp_path / "mixed"
    run("quantize", source, "--format", "compressed-tensors", "--mode", "dynamic", "--recipe", recipe, "-o", target, "--quiet")
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2 and config["format"] == "mixed-precision"
    assert config["ignore"] == ["lm_head", "model.layers.1.self_attn.o_proj"]
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    for name, module in model.named_modules():
        if is_quantized(name, module) and name != "model.layers.1.self_attn.o_proj":
            small = ".mlp." in name
            args = QuantizationArgs(num_bits=4 if small else 8, symmetric=True, strategy="group" if small else "channel", group_size=32 if small else None)
            module.weight.data = fake_quantize(module.weight.data, *parameters(module.weight.data, args), args)
            if not small:
                module.register_forward_pre_hook(lambda module, inputs: (per_token(inputs[0]),))
    expected, found = logits(model), logits(AutoModelForCausalLM.from_pretrained(target).eval())
    assert (found - expected).norm() / expected.norm() <= 2e-2


def test_what_it_cannot_hold_is_refused(checkpoint, tmp_path):
    source, recipe = checkpoint("llama"), tmp_path / "recipe.toml"
    recipe.write_text('[[rule]]\nmatch = "*.k_proj"\nweights = "keep"\n')
    target = tmp_path / "q"
    assert "fuse" in refused("quantize", source, "--scheme", "w8a8", "--recipe", recipe, "-o", target, status=2)
    for options in (["--mode", "static"], ["--weights", "uint8"], ["--granularity", "per-tensor"], ["--asymmetric"], ["--axis", "1"]):
        run("quantize", source, "--format", "compressed-tensors", "-o", target, *options, status=2)
    run("quantize", source / "model.safetensors", "--format", "compressed-tensors", "-o", tmp_path / "q.safetensors", status=1)
    again = quantized(source, tmp_path / "once", "w8a8")
    (again / "qtool.json").unlink()
    assert "quantized already" in refused("quantize", again, "--scheme", "w8a8", "-o", target, status=1)
    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16)).save_pretrained(gpt2)
    assert "transposed" in refused("quantize", gpt2, "--scheme", "w8a8", "-o", target, status=1)
    for broken in ("", "[]", '{"a": 1, "a": 2}', "{"):
        (gpt2 / "config.json").write_text(broken)
        run("quantize", gpt2, "--scheme", "w8a8", "-o", target, status=1)
    (gpt2 / "config.json").unlink()
    run("quantize", gpt2, "--scheme", "w8a8", "-o", target, status=4)
    assert not target.exists()
