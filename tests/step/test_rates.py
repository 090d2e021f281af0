"""Learning rates against the formulas of their schedules."""

import math

import pytest
import torch

from trainer.settings.config import Train
from trainer.step.rates import Rates, factor


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"lr_scheduler": "constant", "lr_warmup_steps": 500}, 0, 1.0),  # diffusers' constant ignores warm-up, too
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10}, 5, 0.5),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 0}, 75, 0.25),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 0}, 25, 0.5 * (1 + math.cos(math.pi * 0.25))),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, 50, 1.0),
        ({"lr_scheduler": "polynomial", "lr_power": 2.0}, 50, 0.25),
    ],
)
def test_schedules_have_their_textbook_values(settings, step, expected):
    assert factor(Train(**settings), 100)(step) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_polynomial_ends_where_diffusers_ends(power):
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup as theirs

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
    expected = theirs(optimizer, 10, 100, power=power).lr_lambdas[0]
    ours = factor(Train(lr_scheduler="polynomial", lr_power=power, lr_warmup_steps=10, learning_rate=1e-4), 100)
    assert [ours(step) for step in range(101)] == [expected(step) for step in range(101)]
    assert ours(100) * 1e-4 == pytest.approx(1e-7)
    assert factor(Train(lr_scheduler="polynomial", learning_rate=5e-8), 100)(100) == 0, "a rate that is below that end"


def test_rates_follow_the_schedule_and_text_encoders_stop_when_asked():
    train = Train(
        learning_rate=1e-4, train_text_encoder=True, text_encoder_lr=1e-5, text_encoder_stop_step=3,
        lr_scheduler="constant_with_warmup", lr_warmup_steps=2, max_train_steps=10,
    )  # fmt: skip
    rates = Rates.of(train, "unet")
    assert rates.at(1) == pytest.approx({"unet": 5e-5, "text": 5e-6, "text_2": 5e-6})
    assert rates.at(2) == pytest.approx({"unet": 1e-4, "text": 1e-5, "text_2": 1e-5})
    assert rates.at(3) == {"unet": 1e-4, "text": 0.0, "text_2": 0.0}
    assert next(iter(rates.at(3))) == "unet"  # the denoiser's is the one that is shown


def test_scaled_rates_count_the_pictures_of_a_step():
    train = Train(
        learning_rate=1e-6, train_batch_size=2, gradient_accumulation_steps=3, scale_lr=True, max_train_steps=1
    )
    assert Rates.of(train, "unet").base == pytest.approx({"unet": 6e-6})
