"""The built-in baseline trains as a plain user of diffusers would, and what can be taken away from it is taken away."""

import pytest
import torch
from trainer.benchmarks.harness import baseline, work
from trainer.benchmarks.harness.timing import Options

CPU = torch.device("cpu")


def steps(recipe: baseline.Recipe, count: int = 2):
    made = work.parts(Options(tiny=True))
    before = {name: value.clone() for name, value in made.denoiser.named_parameters()}
    stays, step = baseline.stepper(made, recipe, work.TINY_SIDE, 1, CPU)
    losses = [step().item() for _ in range(count)]
    moved = [name for name, value in made.denoiser.named_parameters() if not torch.equal(value, before[name])]
    return stays(), losses, moved, before


@pytest.mark.parametrize(
    "recipe",
    [
        baseline.Recipe(lr=1e-3),
        baseline.Recipe(lr=1e-3, mixed=torch.bfloat16),
        baseline.Recipe(lr=1e-3, cached=True),
        baseline.Recipe(lr=1e-3, sdpa=True, checkpointing=True),
    ],
)
def test_every_recipe_trains_all_of_the_denoiser(recipe):
    _, losses, moved, before = steps(recipe)
    assert len(moved) > 0.95 * len(before) and all(loss == loss and loss > 0 for loss in losses)


def test_checkpointing_and_fused_attention_change_nothing_but_rounding():
    plain, saving = (steps(baseline.Recipe(cached=True, sdpa=s, checkpointing=s))[1] for s in (False, True))
    assert saving == pytest.approx(plain, rel=1e-5)


def test_what_is_cached_no_longer_stands_on_the_device():
    def size(recipe: baseline.Recipe) -> int:
        return sum(tensor.numel() for tensor in steps(recipe, 1)[0])

    assert size(baseline.Recipe(cached=True)) < size(baseline.Recipe())
