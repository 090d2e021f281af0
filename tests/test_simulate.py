"""The tracker against the allocator's own account of the same step, and what it counts beside bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from trainer.benchmarks.planner import allocator_peak

from trainer import memory
from trainer.engine import Engine
from trainer.memory import host
from trainer.models import FAMILIES, family
from trainer.policy import Policy
from trainer.pretend import CardAttention
from trainer.simulate import Tracker

PLAIN = Policy(max_grad_norm=0.0)
# in fp32: what 16-bit convolutions convert inside themselves on a CPU is no business of a card's
MIXED = Policy(moments="8bit", recompute_kernels=True, gradients="ram")


def values(parts, device: str, rows: int = 2) -> dict[str, Tensor]:
    unet = parts.unet.config
    given = {
        "sample": torch.zeros(rows, 4, 16, 16, device=device),
        "timestep": torch.zeros(rows, dtype=torch.int64, device=device),
        "text": torch.zeros(rows, 77, unet.cross_attention_dim, device=device),
    }
    if unet.addition_embed_type == "text_time":
        given["pooled"] = torch.zeros(rows, parts.text_encoders[-1].config.projection_dim, device=device)
        given["time_ids"] = torch.zeros(rows, 6, device=device)
    return given


def watched(step: Callable[[], object], card: str, standing) -> int:
    """The tracker's count of the same: what the step adds to what stands."""
    tracker = Tracker(card, host.holds)
    tracker.keep(standing, "weights")
    tracker.restart()
    with CardAttention(), tracker:
        step()
    result = tracker.watched()
    return result.card_peak - result.card_kept


@pytest.mark.parametrize("each", FAMILIES, ids=lambda each: each.name)
def test_a_simulated_plain_step_agrees_with_the_allocator_within_one_percent(each):
    def build(device: str):
        parts = each.tiny()
        parts.unet.to(device)
        given = values(parts, device)

        def step() -> None:
            each.denoise(parts, given).square().mean().backward()
            for parameter in parts.unet.parameters():
                parameter.grad = None

        return step, [*parts.unet.parameters(), *given.values()]

    step, _ = build("cpu")
    step()  # the first call allocates what stays: threads, caches
    independent = allocator_peak(step)
    assert watched(*(lambda b: (b[0], "cpu", b[1]))(build("cpu"))) == pytest.approx(independent, rel=0.01)
    assert watched(*(lambda b: (b[0], "meta", b[1]))(build("meta"))) == pytest.approx(independent, rel=0.01)


def engine_step(name: str, policy: Policy, device: str):
    parts = family(name).tiny()
    parts.unet.to(device)
    memory.prepare(parts.unet, policy, device)
    engine = Engine(family(name).units(parts), policy, device)
    given = values(parts, device)
    standing = [block for h in engine.holdings for block in (h.weights.home, h.state.home)]

    def step() -> None:
        engine.step([given], lambda prediction, _: prediction.float().square().mean(), 1e-6)

    return step, [*standing, *given.values()]


TECHNIQUES = {
    "fp32, all kept": ("sd1", PLAIN),
    "kernels, gradients on the card": ("sd1", replace(MIXED, gradients="card")),
    "selective": ("sd2", replace(MIXED, checkpointing="selective")),
    "blocks, boundaries in RAM": ("sdxl", replace(MIXED, checkpointing="blocks", boundaries="ram")),
    "state streamed, some stay": ("sdxl", replace(MIXED, checkpointing="blocks", stream="state", resident_units=5)),
    "all streamed": ("sd2", replace(MIXED, checkpointing="blocks", boundaries="ram", stream="all", moments="4bit")),
}


@pytest.mark.parametrize("case", TECHNIQUES)
def test_an_engine_step_is_followed_as_the_allocator_counts_it(case):
    name, policy = TECHNIQUES[case]
    step, _ = engine_step(name, policy, "cpu")
    step()
    independent = allocator_peak(step)
    step, standing = engine_step(name, policy, "cpu")
    step()  # host buffers that stay from step to step are made in the first
    assert watched(step, "cpu", standing) == pytest.approx(independent, rel=0.01)


def test_a_meta_step_of_the_engine_takes_what_the_real_one_takes():
    policy = replace(MIXED, gradients="card", checkpointing="blocks")
    step, _ = engine_step("sd1", policy, "cpu")
    step()
    independent = allocator_peak(step)
    step, standing = engine_step("sd1", policy, "meta")
    assert watched(step, "meta", standing) == pytest.approx(independent, rel=0.01)


def test_a_technique_that_the_simulation_misses_is_caught():
    """A kernel whose meta version forgets half of its output makes the two counts disagree by more than the tolerance."""

    @torch.library.custom_op("trainer::forgetful", mutates_args=())
    def forgetful(x: Tensor) -> Tensor:
        return x.repeat(2)

    forgetful.register_fake(lambda x: x.new_empty(x.shape))

    def step(device: str) -> Callable[[], object]:
        x = torch.zeros(100_000, device=device)
        return lambda: forgetful(x).sum()

    assert watched(step("meta"), "meta", []) < 0.6 * allocator_peak(step("cpu"))


def test_bytes_die_with_their_last_reader_and_not_before():
    tracker = Tracker("cpu")
    with tracker:
        kept = torch.zeros(10, 100).requires_grad_()
        out = (kept.exp() * 2).sum()  # the graph holds exp's result
        assert tracker.live() == {"activations": 4000 + 4000 + 4}
        out.backward()
        del out
    assert tracker.live() == {"activations": 4000, "gradients": 4000}


def test_views_and_changes_in_place_take_nothing():
    tracker = Tracker("cpu")
    with tracker:
        x = torch.zeros(10, 100)
        x.view(1000, 1).t().add_(1)
    assert tracker.watched().card_peak == 4000


def test_host_memory_of_a_simulation_is_booked_as_ram_and_copies_as_traffic():
    tracker = Tracker("meta", host.holds)
    with tracker:
        card = torch.empty(1000, device="meta")
        shelf = host.empty(1000, torch.float32, "meta")
        shelf.copy_(card)
        card.copy_(shelf)
        card.copy_(shelf)
    seen = tracker.watched()
    assert (seen.card_peak, seen.host_peak, seen.sent_down, seen.sent_up) == (4000, 4000, 4000, 8000)


def test_arithmetic_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 16)
    )
    x = torch.zeros(2, 4, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    tracker = Tracker("cpu")
    with tracker:
        model(x).sum().backward()
    assert tracker.flops == counter.get_total_flops() > 0


def test_remembered_answers_equal_fresh_ones():
    """The second run of a step takes its shapes from memory; bytes and arithmetic must be the same."""

    def once() -> tuple:
        step, standing = engine_step("sd1", replace(MIXED, checkpointing="blocks"), "meta")
        tracker = Tracker("meta", host.holds)
        tracker.keep(standing, "weights")
        tracker.restart()
        with CardAttention(), tracker:
            step()
        return replace(tracker.watched(), seconds=0.0)

    from trainer import pretend

    pretend._ANSWERS.clear()
    first = once()
    assert len(pretend._ANSWERS) > 50
    assert once() == first
