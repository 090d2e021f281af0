"""A library that is there and broken takes nothing along that does not need it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.machine import libraries, mending
from trainer.settings.overlay import load

ROOT = Path(__file__).parent.parent.parent
UNNEEDED = ("peft", "bitsandbytes", "prodigyopt", "matplotlib", "triton", "imagehash")
STRANGE = ("torchvision", "kernels", "scipy")  # transformers imports them wherever they are


@pytest.fixture
def broken(tmp_path):
    """Gives `break_them(names)`: an environment in which they are installed and raise when they are imported."""

    def break_them(*names):
        for name in names:
            (tmp_path / "broken" / name).mkdir(parents=True)
            text = f"raise ImportError('{name}: undefined symbol')"
            (tmp_path / "broken" / name / "__init__.py").write_text(text)
        return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "broken"), str(ROOT)))}

    return break_them


def test_a_run_needs_none_of_the_libraries_that_only_some_runs_use(broken, tmp_path):
    """Full fine-tuning of the small model: planned, trained, saved, exported and reported while all of them are broken."""
    words = "--max_train_steps 1 --no-watch --num_validation_images 0 --no-with_prior_preservation --device cpu"
    places = ["--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--formats", "single_file"]
    command = [sys.executable, "-m", "trainer", *words.split(), *places, "--dashboard", "off"]
    done = subprocess.run(command, env=broken(*UNNEEDED, *STRANGE), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("peft", "bitsandbytes", *STRANGE):
        assert f"{name} is installed and does not load: {name}: undefined symbol" in done.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert "There are no plots: matplotlib does not load" in (tmp_path / "run" / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_broken_library_is_named_where_it_is_needed(monkeypatch):
    import torch

    from trainer.models import SD1, adapters
    from trainer.policy import AdamHyper
    from trainer.step import optim

    for name in ("peft", "prodigyopt", "bitsandbytes"):
        for module in [name, *(m for m in sys.modules if m.startswith(name + "."))]:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match="adapters need peft, which is not installed") as caught:
        adapters.inject(SD1.tiny(), load({}).lora)
    assert "pip install -c" in caught.value.fix and "--method full" in caught.value.fix
    weight = torch.zeros(4, requires_grad=True)
    for optimizer, library in (("prodigy", "prodigyopt"), ("bnb_adamw8bit", "bitsandbytes")):
        with pytest.raises(ConfigError, match=f"needs {library}, which is not installed") as caught:
            optim.make(optimizer, [{"params": [weight], "lr": 1.0}], AdamHyper())
        assert caught.value.fix.endswith(f" {library}, or use --optimizer adamw")


@pytest.mark.parametrize(
    ("setting", "value", "library"),
    [
        ("train.optimizer", "prodigy", "prodigyopt"),
        ("train.optimizer", "bnb_adamw8bit", "bitsandbytes"),
        ("train.method", "lora", "peft"),
    ],
)
def test_a_run_whose_library_raises_whatever_it_likes_ends_before_anything_is_loaded(
    monkeypatch, tmp_path, setting, value, library
):
    from trainer import models
    from trainer.run.prepare import prepare

    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise RuntimeError('built for another CUDA')")
    for module in [library, *(m for m in sys.modules if m.startswith(library + "."))]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(models, "describe", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(ConfigError, match=f"{library}, which does not load .built for another CUDA") as caught:
        prepare(load({setting: value, "run.device": "cpu"}))
    assert f"--force-reinstall --no-deps -c {mending.CONSTRAINTS} {library}, or " in caught.value.fix


def test_what_does_not_load_is_installed_again_and_what_does_is_brought_to_its_tested_version(monkeypatch):
    monkeypatch.setattr(libraries, "_hidden", {"peft": "undefined symbol"})
    assert libraries.remedy("safetensors", "peft").split(" -c ")[0].endswith("install --force-reinstall --no-deps")
    assert libraries.remedy("safetensors", "peft").endswith(" peft")
    again, names = libraries.remedy("safetensors", "rich").split(" -c ")
    assert "--force-reinstall" not in again and names.endswith(" safetensors rich")


def test_without_imagehash_photos_are_read_and_one_line_says_what_is_not_looked_for(monkeypatch, tmp_path):
    from PIL import Image

    from trainer.data import looks
    from trainer.data import photos as data

    monkeypatch.setattr(looks, "can_compare", lambda: False)
    monkeypatch.setattr(libraries, "_hidden", {"imagehash": "undefined symbol"})
    Image.effect_noise((96, 96), 80).convert("RGB").save(tmp_path / "one.png")
    photos = data.scan(load({"data.instance_data_dir": str(tmp_path), "data.class_name": "dog"}), 64, 8)
    (line,) = [text for text in photos.advice if "burst" in text]
    assert line.startswith("frames of one burst are not looked for: ") and line.endswith(" imagehash")
    assert "--force-reinstall" in line, "it is there and broken"


def test_only_what_does_not_load_is_set_aside(monkeypatch, tmp_path):
    (tmp_path / "crooked.py").write_text("raise AttributeError('an older neighbour')")
    (tmp_path / "straight.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(libraries, "SPARED", ("crooked", "straight", "absent_altogether"))
    monkeypatch.setattr(libraries, "_hidden", {})
    assert libraries.set_aside() == {"crooked": "an older neighbour"}
    from importlib.util import find_spec

    assert find_spec("crooked") is None, "to others it is as if it were not installed"
    error = libraries.lacking("adapters need", "crooked", "do without")
    assert error.what == "adapters need crooked, which does not load (an older neighbour)", (
        "the reason is not forgotten"
    )
    assert "--force-reinstall --no-deps" in error.fix, "pip would call it satisfied"
    monkeypatch.delitem(sys.modules, "crooked")


def test_what_is_part_of_the_tested_set_is_reinstalled_and_a_stranger_is_removed():
    assert "install --force-reinstall --no-deps" in libraries.mended("scipy"), "imagehash needs it"
    assert "xformers" in libraries.mended("xformers") and "uninstall" not in libraries.mended("xformers"), "an extra"
    assert libraries.mended("torchvision").endswith(" -m pip uninstall torchvision")


def test_a_tracker_that_is_there_and_broken_is_refused_before_anything_is_loaded(broken, tmp_path):
    command = [sys.executable, "-m", "trainer", "--report_to", "wandb", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=broken("wandb"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "--report_to wandb needs wandb, which does not load (wandb: undefined symbol)" in done.stderr
