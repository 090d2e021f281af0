"""Going back to a run: pictures and exports from its checkpoint, drawn as its plan drew them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_run import events, of

from trainer.cli import parse as cli
from trainer.draw.painter import Painter
from trainer.errors import ConfigError
from trainer.events import Exported, Notice, Sampled
from trainer.models import load_for
from trainer.out import checkpoint
from trainer.policy import Drawing, Policy
from trainer.run import revisit
from trainer.settings.config import Export, Model


def wanted(*formats, strength=1.0):
    return Export(formats=list(formats), precision="fp32", strength=strength)


def rewritten(point, state):
    """state.json with another content that is taken for what was written, as an older version would have left it."""
    state = {name: value for name, value in state.items() if name != "checksum"}
    (point / "state.json").write_text(json.dumps(state))


def test_pictures_and_exports_can_be_made_later_from_the_checkpoint(place):
    events(place, run="later")
    config = cli.parse(["--config", str(place / "later" / "config.toml")]).config()
    drawn = list(revisit.sample_run(place / "later", ["a photo of sks dog"], [0, 1], place / "more", config))
    assert len(of(Sampled, drawn)[0].paths) == 2
    written = list(revisit.export_run(place / "later", wanted("single_file"), place / "full"))
    assert of(Exported, written)[0].precision == "fp32" and of(Exported, written)[0].max_error == 0.0


def test_an_export_made_later_says_the_words_that_were_trained(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos" / "2_sks dog")
    line = ("--instance_data_dir", tmp_path / "photos", "--max_train_steps", 1, "--formats", "lora_kohya")
    events(place, *line, "--method", "lora", "--with_prior_preservation", run="worded")
    list(revisit.export_run(place / "worded", wanted("lora_kohya"), tmp_path / "again"))
    at_once, later = (told(folder) for folder in (place / "worded" / "model", tmp_path / "again"))
    assert "sks dog" in later["ss_tag_frequency"] and later["ss_tag_frequency"] == at_once["ss_tag_frequency"]
    for key in ("trainer.data.instance_prompt", "trainer.prior.class_prompt"):
        assert later[key] == at_once[key] != "None"
    assert str(tmp_path) not in str(later) and str(place) not in str(at_once), "no folder of this machine"


def told(folder):
    """The metadata of the one safetensors file in `folder`."""
    with safe_open(next(folder.glob("*.safetensors")), "pt") as opened:
        return opened.metadata()


def test_pictures_made_later_are_drawn_as_the_plan_of_the_run_draws_them(place, monkeypatch):
    """The VAE's precision and what makes room on the card come from the checkpoint; batch and tile may be asked for."""
    events(place, run="planned")
    point, used = checkpoint.found(place / "planned")[-1], []
    state = json.loads((point / "state.json").read_text())
    assert Drawing.from_json(state["drawing"]).vae_dtype == torch.float32
    tight = Drawing(batch=3, tile=None, vae_dtype=torch.bfloat16, park=True)
    rewritten(point, state | {"drawing": tight.as_json()})

    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", lambda self, *words: used.append(self) or paint(self, *words))
    asked = ["--config", str(place / "planned" / "config.toml"), "--vae_tile", "64"]
    config = cli.parse([*asked, "--sample.batch_size", "2"]).config()
    list(revisit.sample_run(place / "planned", ["a photo of sks dog"], [0], place / "tight", config))
    assert used[0].drawing == replace(tight, batch=2, tile=64)
    list(revisit.sample_run(place / "planned", ["a photo of sks dog"], [0], place / "kept", cli.parse(asked).config()))
    assert used[1].drawing == replace(tight, tile=64), "what the run's planner chose is no wish of the person's"

    del state["drawing"]  # as a checkpoint from before it was kept
    rewritten(point, state)
    list(revisit.sample_run(place / "planned", ["a photo of sks dog"], [0], place / "before", config))
    exact, rough = (np.asarray(Image.open(next(path.glob("*/*.png")))) for path in (place / "before", place / "tight"))
    assert exact.shape == rough.shape and not np.array_equal(exact, rough)


def test_a_share_of_what_was_learned_is_exported_and_drawn(place):
    """At 0 the base model comes out, and every strength asked for is a line of one sheet."""
    events(place, "--num_validation_images", 0, run="shares")
    run, base = place / "shares", load_for(Model(name=str(place / "sd1")))
    list(revisit.export_run(run, wanted("diffusers", strength=0.0), place / "none"))
    list(revisit.export_run(run, wanted("diffusers", strength=0.5), place / "half"))
    list(revisit.export_run(run, wanted("diffusers"), place / "whole"))
    none, half, whole = (load_for(Model(name=str(place / n / "diffusers"))).denoiser for n in ("none", "half", "whole"))
    for (name, start), *others in zip(
        base.denoiser.named_parameters(), none.parameters(), half.parameters(), whole.parameters(), strict=True
    ):
        assert torch.equal(others[0], start), name
        torch.testing.assert_close(others[1], start.lerp(others[2], 0.5))
    assert any(not torch.equal(a, b) for a, b in zip(none.parameters(), whole.parameters(), strict=True))

    asked = ["--config", str(run / "config.toml"), "--strengths", "0", "0.5", "1", "--watch", "--judge", "demo"]
    drawn = list(revisit.sample_run(run, ["a photo of sks dog"], [0, 1], place / "sheet", cli.parse(asked).config()))
    assert [len(each.paths) for each in of(Sampled, drawn)] == [2, 2, 2]
    assert (place / "sheet" / "strengths-000004.png").is_file()
    assert "proposes strength" in of(Notice, drawn)[-1].text
    single = cli.parse(["--config", str(run / "config.toml"), "--strength", "0.5"]).config()
    list(revisit.sample_run(run, ["a photo of sks dog"], [0, 1], place / "one", single))
    pictures = [sorted(path.read_bytes() for path in folder.glob("step-*/*.png")) for folder in
                (place / "one", place / "sheet" / "strength-0.5", place / "sheet" / "strength-1")]  # fmt: skip
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_model_that_is_no_run_has_learned_nothing_to_take_a_share_of(place, tmp_path):
    config = cli.parse(["--model.name", str(place / "sd1"), "--resolution", "64", "--strength", "0.5"]).config()
    with pytest.raises(ConfigError, match="no run"):
        list(revisit.sample_run(place / "sd1", ["a photo of a dog"], [0], tmp_path, config))
    config.sample.strengths = [0.5, -1.0]
    with pytest.raises(ConfigError, match="-1 is no share"):
        list(revisit.sample_run(place / "sd1", ["a photo of a dog"], [0], tmp_path, config))


def test_a_card_that_was_right_only_in_benchmark_mode_is_tried_again_before_pictures_are_drawn(place, monkeypatch):
    config = cli.parse(["--model.name", str(place / "sd1"), "--resolution", "64"]).config()
    card, half, tried = torch.device("cuda"), Policy(weights="24bit", compute=torch.float16), []

    def trial(shapes, device):
        tried.append((shapes[0].height, device))
        return "benchmark" if len(tried) == 1 else "none"

    monkeypatch.setattr(revisit.convolutions, "trial", trial)
    revisit.try_convolutions(config, Policy(weights="24bit", compute=torch.bfloat16), card)
    revisit.try_convolutions(config, half, torch.device("cpu"))
    assert not tried
    revisit.try_convolutions(config, half, card)
    assert tried == [(8, card)]
    with pytest.raises(ConfigError) as refused:
        revisit.try_convolutions(config, half, card)
    assert "--device cpu" in refused.value.fix
