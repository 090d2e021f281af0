"""diffusers' own tests of its DreamBooth scripts, run word for word against our command: `python -m benchmarks scripts
diffusers=CHECKOUT`.

Those tests start `accelerate launch ... examples/dreambooth/train_dreambooth.py ...` and look at what lies in the output
folder. Here an `accelerate` that hands the whole line to `python -m trainer` stands before the real one on the path, and
the models of theirs that live on the hub are tiny ones of ours, in folders of the same names. The tests are read from the
checkout, and nothing of them is kept. What cannot be honoured (other kinds of models, data sets of the hub) has to be
refused with a fix; a row says which.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.errors import ConfigError
from trainer.models import SD1, SDXL
from trainer.out import export

from ..harness import jobs
from ..harness.timing import Options

TESTS = ("test_dreambooth.py", "test_dreambooth_lora.py", "test_dreambooth_lora_edm.py")
MODELS = {"tiny-stable-diffusion-torch": SD1, "tiny-stable-diffusion-xl-pipe": SDXL}
IF = {  # a model of pixels: its index names a UNet and a text encoder, and no VAE
    "_class_name": "IFPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_schedule": "karras", "prediction_type": "epsilon"}
REFUSED = (
    "_if",
    "edm",
    "playground",
    "custom_captions",
)  # parts of the names of tests that ask for what is not built in
PHOTOS = 4


def suite(options: Options) -> Iterator[dict]:
    """A row for each of their tests. `words`: `diffusers=CHECKOUT`, and `only=EXPRESSION` as pytest's -k."""
    asked = dict(word.partition("=")[::2] for word in options.words)
    checkout = Path(asked.get("diffusers", "")).expanduser().resolve()
    if not (checkout / "examples" / "dreambooth" / TESTS[0]).is_file():
        raise ConfigError(
            "scripts needs a checkout of diffusers with its examples.",
            "git clone https://github.com/huggingface/diffusers, then: python -m benchmarks scripts diffusers=diffusers",
        )
    with jobs.workplace() as folder:
        place = Path(folder)
        furnish(place, checkout)
        for name in TESTS:
            if (place / "examples" / "dreambooth" / name).is_file():
                yield from run(place, name, asked.get("only", ""))


def furnish(place: Path, checkout: Path) -> None:
    """Their tests, our models under the names they ask for, photos where they look for them, and the launcher."""
    tests = place / "examples" / "dreambooth"
    tests.mkdir(parents=True)
    for name in TESTS:
        if (checkout / "examples" / "dreambooth" / name).is_file():
            shutil.copy(checkout / "examples" / "dreambooth" / name, tests)
    shutil.copy(checkout / "examples" / "test_examples_utils.py", place / "examples")
    for name, family in MODELS.items():
        for _ in export.write(family.tiny(), None, place / "made", ["diffusers"], "fp32"):
            pass
        shutil.move(place / "made" / "diffusers", place / "hf-internal-testing" / name)
    other = place / "hf-internal-testing" / "tiny-if-pipe"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps(IF))
    playground = place / "hf-internal-testing" / "tiny-playground-v2-5-pipe"  # SDXL but for its schedule
    shutil.copytree(playground.with_name("tiny-stable-diffusion-xl-pipe"), playground)
    (playground / "scheduler" / "scheduler_config.json").write_text(json.dumps(EDM))
    photos = place / "docs" / "source" / "en" / "imgs"
    photos.mkdir(parents=True)
    for index in range(PHOTOS):
        grid = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((80, 64), Image.Resampling.BICUBIC).save(photos / f"{index}.png")
    launcher = place / "bin" / "accelerate"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trainer accelerate "$@" --dashboard off\n')
    launcher.chmod(0o755)


def run(place: Path, name: str, only: str) -> Iterator[dict]:
    """One file of their tests, test by test."""
    path = os.pathsep.join((str(place / "bin"), os.environ.get("PATH", "")))
    lookup = os.pathsep.join((str(place / "examples"), str(jobs.ROOT), os.environ.get("PYTHONPATH", "")))
    told = place / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={told}"]
    command += ["-k", only] if only else []
    began = time.perf_counter()
    environment = os.environ | {"PATH": path, "PYTHONPATH": lookup, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, f"examples/dreambooth/{name}"], cwd=place, env=environment, capture_output=True, text=True
    )
    if not told.is_file():
        yield {"test": name, "seconds": time.perf_counter() - began, "failed": done.stdout[-600:] + done.stderr[-600:]}
        return
    for case in ElementTree.parse(told).iter("testcase"):
        yield row(case)


def row(case: ElementTree.Element) -> dict:
    """What became of one test: it passes, or the line is refused with a fix, or it failed."""
    name, text = case.get("name", ""), "\n".join(bad.text or "" for bad in case.iter("failure"))
    found = {"test": name, "seconds": round(float(case.get("time", 0)), 1)}
    refusal = re.search(r"error: (.+?)\s*\n[E ]*fix: (.+)", text)
    if not text:
        return found | {"outcome": "passed"}
    if refusal and any(part in name for part in REFUSED):
        return found | {"outcome": "refused", "said": f"{refusal[1]} -> {refusal[2]}"}
    return found | {"outcome": "failed", "failed": (refusal[1] if refusal else text.strip().splitlines()[-1])[:300]}
