"""Perplexity and KL divergence of a small causal language model, quantized in many ways, on held-out tokens.

    python tests/benches/perplexity.py MODEL_DIR [--only SUBSTRING]

MODEL_DIR is a float checkpoint in Hugging Face layout with `calib_tokens.npy` and `eval_tokens.npy` (streams of token ids). Inputs of
layers are recorded on 64 sequences of 256 calibration tokens by the hook of docs/recording.md; 48 sequences of 256 tokens are evaluated.
Needs the packages of tests/interop/requirements.txt. Prints a row for each way: perplexity, KL to the float model (1e-3 nats a token),
share of tokens with the same first choice, and seconds of qtool (wall, CPU).
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("QTOOL", ROOT / "target/release/qtool")
LENGTH, CALIBRATION, EVALUATION = 256, 64, 48
CHANNEL, G64, G32 = ["--granularity", "per-channel"], ["--granularity", "per-group:64"], ["--granularity", "per-group:32"]
SCHEMES = {
    "W8A16 channel": ["--scheme", "w8a16"],
    "W8A8 dynamic": ["--scheme", "w8a8"],
    "W8A8 static": ["--scheme", "w8a8-static"],
    "W8A8 static asym": ["--scheme", "w8a8-static-asym"],
    "W4A16 channel": ["--scheme", "w4a16", *CHANNEL],
    "W4A16 group 128*": ["--scheme", "w4a16"],
    "W4A16 group 64": ["--scheme", "w4a16", *G64],
    "W4A16 group 32": ["--scheme", "w4a16", *G32],
    "W4A16 asym group 64": ["--scheme", "w4a16-asym", *G64],
}
METHODS = {
    "nearest": [],
    "mse": ["--observer", "mse"],
    "output-mse": ["--observer", "output-mse"],
    "gptq": ["--rounding", "gptq"],
    "mse gptq": ["--observer", "mse", "--rounding", "gptq"],
    "mse adaround": ["--observer", "mse", "--rounding", "adaround"],
    "smooth-quant": ["--transform", "smooth-quant"],
    "activations moving-average": ["--activation-observer", "moving-average"],
    "activations percentile:99.99": ["--activation-observer", "percentile:99.99"],
    "activations histogram": ["--activation-observer", "histogram"],
    "activations mse": ["--activation-observer", "mse"],
    "activations entropy": ["--activation-observer", "entropy"],
    "smooth-quant mse gptq": ["--transform", "smooth-quant", "--observer", "mse", "--rounding", "gptq"],
}


def sequences(directory):
    calibration, evaluation = (np.load(directory / f"{name}_tokens.npy").astype(np.int64) for name in ("calib", "eval"))
    step = (len(evaluation) - LENGTH - 1) // EVALUATION
    inputs = [calibration[i * 2000 : i * 2000 + LENGTH] for i in range(CALIBRATION)]
    pairs = [(evaluation[i * step : i * step + LENGTH], evaluation[i * step + 1 : i * step + LENGTH + 1]) for i in range(EVALUATION)]
    return torch.tensor(np.stack(inputs)), *(torch.tensor(np.stack(part)) for part in zip(*pairs))


@torch.no_grad()
def log_probabilities(model, tokens):
    return torch.cat([model(tokens[i : i + 8]).logits.float().log_softmax(-1) for i in range(0, len(tokens), 8)])


def load(directory):
    quantization = json.loads((directory / "config.json").read_text()).get("quantization_config")
    unpack = quantization and any(not group["weights"]["symmetric"] for group in quantization["config_groups"].values())
    options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if unpack else {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options).eval()


def measured(arguments):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[0]
    return (time.time() - start, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime), None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    calibration, tokens, targets = sequences(options.model)
    floats = load(options.model)
    expected = log_probabilities(floats, tokens)
    record = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs/recording.md").read_text(), re.DOTALL).group(1), record)
    perplexity = lambda found: float((-found.gather(-1, targets[..., None])).mean().exp())
    print(f"float: perplexity {perplexity(expected):.4f}")
    print("| scheme | method | perplexity | KL e-3 | same first | wall s | CPU s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        record["record"](floats, [{"input_ids": batch} for batch in calibration.split(8)], directory / "inputs.safetensors")
        for scheme, method in ((scheme, method) for scheme in SCHEMES for method in METHODS):
            if options.only not in f"{scheme} {method}" or method.startswith("activations") and "static" not in scheme:
                continue
            target = directory / "q"
            arguments = ["quantize", options.model, *SCHEMES[scheme], *METHODS[method], "--samples", directory / "inputs.safetensors", "-o", target]
            seconds, error = measured([*arguments, "--force", "--quiet", "--durability", "none"])
            if error:
                print(f"| {scheme} | {method} | {error} |")
                continue
            found = log_probabilities(load(target), tokens)
            divergence = float((expected.exp() * (expected - found)).sum(-1).mean()) * 1e3
            same = float((expected.argmax(-1) == found.argmax(-1)).float().mean())
            print(f"| {scheme} | {method} | {perplexity(found):.4f} | {divergence:.4f} | {same:.4f} | {seconds[0]:.2f} | {seconds[1]:.2f} |")
            sys.stdout.flush()


main()
