"""Looking changes nothing: readings, pictures and checkpoints on the way leave the bits of what is learned as they are."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import events, of, prepared

from trainer.events import CheckpointSaved, Finished, Meters, Sampled, outcome
from trainer.run.stages import get_ready

DROPOUT = ("--dropout", 0.5)
METHODS = {
    "full": (),
    "text encoder": ("--train_text_encoder",),
    "lora": ("--method", "lora", *DROPOUT),
    "dora": ("--method", "dora", *DROPOUT),
    "lora text": ("--method", "lora", "--train_text_encoder", *DROPOUT),
    "ema": ("--ema",),
    "prodigy": ("--method", "lora", "--optimizer", "prodigy", *DROPOUT),
    "streamed": ("--stream", "all"),
    "accumulated": ("--gradient_accumulation_steps", 2, "--method", "lora", *DROPOUT),
}
NEVER = ("--watch", "--interval", 1000, "--judge", "none", "--num_validation_images", 0)
ALWAYS = ("--watch", "--interval", 1, "--judge", "demo", "--validation_steps", 1, "--checkpointing_steps", 1)


def learned(place, run):
    point = place / run / "step-000004"
    return {name: tensor for path in sorted(point.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_is_learned_whether_somebody_looks_or_not(place, method):
    more, name = METHODS[method], method.replace(" ", "-")
    unseen = events(place, *more, *NEVER, run=f"{name}-unseen")
    seen = events(place, *more, *ALWAYS, run=f"{name}-seen")
    assert of(Finished, seen)[0].status == "done"
    assert len(of(Meters, seen)) == 5 and len(of(Sampled, seen)) >= 3 and len(of(CheckpointSaved, seen)) == 4
    assert len(of(Meters, unseen)) == 1 and not of(Sampled, unseen)
    one, other = learned(place, f"{name}-unseen"), learned(place, f"{name}-seen")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        same = torch.equal(tensor, other[key]) or (tensor.is_floating_point() and tensor.isnan().all())
        assert same, f"{key} differs"


def test_a_look_sees_no_dropout_and_puts_it_back(place):
    trained, painter = outcome(get_ready(prepared(place, "--method", "lora", *DROPOUT, run="quiet")))
    dropouts = trained.engine.runner.dropouts
    assert dropouts and all(dropout.training for dropout in dropouts if dropout.p)
    state, prompt = torch.get_rng_state(), next(iter(painter.texts))
    first, again = (outcome(painter.paint([prompt], [1]))[0].tobytes() for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), state)
    assert all(dropout.training for dropout in dropouts if dropout.p)
