"""Adam with a second moment of rows and columns: where gradients are a product of the two it is Adam, and elsewhere it is not."""

import pytest
import torch
from policies import LOW
from small_unet import Model, take_step
from trainer.benchmarks.harness.factored import Adam, Factored, instead
from trainer.kernels.adamw_lowbit import State, step_

from trainer.step.engine import Engine


def state(start: torch.Tensor, weights: str = "24bit", moments: str = "8bit") -> State:
    made = State.allocate(
        start.numel(),
        weights=weights,
        moments=moments,
        compute_dtype=torch.bfloat16,
        empty=lambda shape, dtype: torch.empty(shape, dtype=dtype),
    )
    return made.initialise(start)


def distance_to_adam(gradients: list[torch.Tensor], shape: tuple[int, ...], **hyper: float) -> float:
    """Of what all updates moved, relative to fp32 AdamW's."""
    torch.manual_seed(1)
    start = torch.randn(gradients[0].numel()) * 0.03
    ours, true = state(start), state(start, "fp32", "fp32")
    begun, factored = ours.master(), Factored([(0, torch.Size(shape))])
    for step, gradient in enumerate(gradients, 1):
        factored.step_(ours, gradient.flatten(), Adam(1e-3, step, **hyper))
        step_(true, gradient.flatten().clone(), lr=1e-3, step=step, **hyper)
    moved, wanted = ours.master() - begun, true.master() - start
    return float((moved - wanted).norm() / wanted.norm())


def product(steps: int) -> list[torch.Tensor]:
    """Gradients whose squares are a row's number times a column's."""
    torch.manual_seed(0)
    rows, columns = torch.randn(24, 1).exp(), torch.randn(1, 40).exp()
    return [1e-3 * rows * columns * torch.randn(24, 40).sign() for _ in range(steps)]


@pytest.mark.parametrize("hyper", [{}, {"weight_decay": 0.1}])
def test_where_squares_are_rows_times_columns_it_is_adam_within_8_bits(hyper):
    assert distance_to_adam(product(30), (24, 40), **hyper) < 0.02


def test_where_they_are_not_it_is_another_optimizer():
    torch.manual_seed(0)
    wild = [1e-3 * torch.randn(24, 40).exp() * torch.randn(24, 40).sign() for _ in range(30)]
    assert distance_to_adam(wild, (24, 40)) > 0.3


def test_a_vector_keeps_its_whole_second_moment():
    torch.manual_seed(0)
    scale = torch.randn(960).exp()
    assert distance_to_adam([1e-3 * scale * torch.randn(960) for _ in range(30)], (960,)) < 0.02


def test_a_row_that_never_had_a_gradient_does_not_move():
    gradients = product(5)
    for gradient in gradients:
        gradient[3] = 0
    ours = state(torch.ones(960))
    factored = Factored([(0, torch.Size((24, 40)))])
    for step, gradient in enumerate(gradients, 1):
        factored.step_(ours, gradient.flatten(), Adam(1e-3, step))
    moved = ours.master().view(24, 40) != 1
    assert not moved[3].any() and moved[4].all()


def test_a_convolution_takes_about_4_bytes_a_weight_with_its_24_bits():
    with torch.device("meta"):
        taken = Factored([(0, torch.Size((320, 320, 3, 3)))]).nbytes
    weights = 320 * 320 * 9
    assert 1 + 4 / 64 < taken / weights < 1.08


def test_an_engine_moves_its_weights_by_it_and_by_its_own_optimizer_again_afterwards():
    engine, usual = (Engine(Model().units(), LOW, "cpu") for _ in range(2))
    with instead():
        take_step(engine, 0)
        after = dict(engine.master())
    take_step(usual, 0)
    moments = [holding.at_home().moments_fp32()[1] for holding in engine.holdings if holding.n]
    assert not any(v.any() for v in moments), "the engine's own moments lie idle"
    for name, value in usual.master():  # Adam's first step goes by the sign, and so does this one where v is whole
        assert value.dim() > 1 or torch.allclose(after[name], value, atol=1e-3), name
    take_step(engine, 1)
    assert any(holding.at_home().moments_fp32()[1].any() for holding in engine.holdings if holding.n)
