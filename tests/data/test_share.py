"""What cards compute of a step adds up to the step."""

import pytest
import torch

from trainer.data.batches import MicroBatch, share
from trainer.objective.loss import Objective
from trainer.objective.noise import DDPM

OBJECTIVE = Objective(DDPM(torch.linspace(0.99, 0.01, 10, dtype=torch.float64)), prior_loss_weight=0.7)


def micro(rows: int, instances: int, seed: int, mask: bool = False) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, 4, 3, 5, generator=generator)
    values = {"sample": torch.randn(rows, 4, 3, 5, generator=generator), "timestep": torch.arange(rows)}
    weights = torch.rand(rows, generator=generator)
    masks = torch.rand(rows, 1, 3, 5, generator=generator) if mask else None
    return MicroBatch(values, target, weights, masks, instances, tuple(f"{seed}-{row}" for row in range(rows)))


STEPS = {
    "a pair": [micro(2, 1, 0)],
    "photos alone, accumulated": [micro(1, 1, 0), micro(1, 1, 1), micro(1, 1, 2), micro(1, 1, 3)],
    "photos and class images of different shapes": [micro(2, 2, 0), micro(3, 0, 1)],
    "masks and an odd number": [micro(5, 2, 0, mask=True)],
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_shares_of_all_cards_have_the_loss_and_the_gradient_of_the_step(step, size):
    if sum(len(batch.target) for batch in step) < size:
        pytest.skip("fewer rows than cards are refused")
    scale = torch.tensor(1.3, requires_grad=True)
    loss = OBJECTIVE.of_step(step, len(step))
    whole = [loss(batch.values["sample"] * scale, i) for i, batch in enumerate(step)]
    (expected,) = torch.autograd.grad(sum(parts[0] for parts in whole), scale)
    found, parts, names = torch.zeros(()), torch.zeros(len(step), 3), []
    for rank in range(size):
        mine = share(step, rank, size)
        loss = OBJECTIVE.of_step(mine, len(step))
        each = [loss(batch.values["sample"] * scale, i) for i, batch in enumerate(mine)]
        found = found + torch.autograd.grad(sum(one[0] for one in each), scale)[0]
        for batch, one in zip(mine, each, strict=True):
            parts[batch.number] += torch.stack(one).detach()
            names += batch.names
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(parts, torch.stack([torch.stack(one) for one in whole]).detach(), rtol=1e-5, equal_nan=True)
    assert sorted(names) == sorted(name for batch in step for name in batch.names)  # each row once


def test_a_pair_on_two_cards_is_the_photo_on_one_and_the_class_image_on_the_other():
    (photo,), (image,) = (share(STEPS["a pair"], rank, 2) for rank in range(2))
    assert (photo.instances, photo.names, photo.counts) == (1, ("0-0",), (1, 1))
    assert (image.instances, image.names, image.counts) == (0, ("0-1",), (1, 1))


def test_one_card_keeps_the_step_as_it_is():
    assert share(STEPS["a pair"], 0, 1)[0] is STEPS["a pair"][0]
