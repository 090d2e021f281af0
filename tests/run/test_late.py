"""Losses read one step late: what they become, and what happens when one is no number."""

import math

import pytest
import torch

from trainer.data.batches import MicroBatch
from trainer.errors import Diverged
from trainer.run.late import Late, Pending


def pending(step, losses):
    """A step of two micro-batches, of two pictures each."""
    micro = [
        MicroBatch({"timestep": torch.tensor([t, t + 1])}, torch.zeros(2, 4, 8, 8), torch.ones(2), None, 1, ("a.png", name))
        for t, name in ((10, "b.png"), (20, "c.png"))
    ]  # fmt: skip
    return Pending(step, 1e-4, 1.0, 3.5, micro, torch.tensor(losses), torch.tensor(0.25))


def test_a_steps_loss_is_the_sum_of_its_shares_and_its_halves_are_means_of_what_is_there():
    late = Late(9, torch.device("cpu"))
    late.add(pending(7, [[0.5, 1.0, float("nan")], [0.25, 2.0, 4.0]]))
    (step,) = late.settle()
    assert (step.step, step.total, step.loss, step.instance_loss, step.class_loss) == (7, 9, 0.75, 1.5, 4.0)
    assert (step.lr, step.grad_norm, step.seconds, step.images) == (1e-4, 0.25, 2.5, 4)


def test_without_class_images_their_loss_is_unknown():
    late = Late(9, torch.device("cpu"))
    late.add(pending(1, [[0.5, 0.5, float("nan")]]))
    assert math.isnan(next(late.settle()).class_loss)


def test_the_newest_steps_may_stay_on_their_way():
    late = Late(9, torch.device("cpu"))
    for number in (1, 2, 3):
        late.add(pending(number, [[0.5, 0.5, 0.5]]))
    assert [step.step for step in late.settle(but=1)] == [1, 2]
    assert [step.step for step in late.settle()] == [3] and not list(late.settle())


def test_a_loss_that_is_no_number_names_the_pictures_once_and_the_timesteps():
    late = Late(9, torch.device("cpu"))
    late.add(pending(3, [[float("inf"), 1.0, 1.0]]))
    with pytest.raises(
        Diverged, match=r"became inf in step 3 \(pictures: a.png, b.png, c.png; timesteps: 10, 11, 20, 21"
    ):
        list(late.settle())
