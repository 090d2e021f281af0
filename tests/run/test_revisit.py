"""Going back to a run: pictures and exports from its checkpoint, drawn as its plan drew them."""

import json
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tiny_run import events, of

from trainer.cli import parse as cli
from trainer.draw.painter import Painter
from trainer.events import Exported, Sampled
from trainer.out import checkpoint
from trainer.policy import Drawing
from trainer.run import revisit


def rewritten(point, state):
    """state.json with another content that is taken for what was written, as an older version would have left it."""
    state = {name: value for name, value in state.items() if name != "checksum"}
    (point / "state.json").write_text(json.dumps(state))


def test_pictures_and_exports_can_be_made_later_from_the_checkpoint(place):
    events(place, run="later")
    config = cli.parse(["--config", str(place / "later" / "config.toml")]).config()
    drawn = list(revisit.sample_run(place / "later", ["a photo of sks dog"], [0, 1], place / "more", config))
    assert len(of(Sampled, drawn)[0].paths) == 2
    written = list(revisit.export_run(place / "later", ["single_file"], "fp32", place / "full"))
    assert of(Exported, written)[0].precision == "fp32" and of(Exported, written)[0].max_error == 0.0


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
