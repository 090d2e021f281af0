"""The ladder: its order, whose settings win, and what is never chosen unasked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainer import memory
from trainer.errors import ConfigError
from trainer.plan import solver
from trainer.policy import Policy
from trainer.settings.config import Config


def config(**settings: object) -> Config:
    made = Config()
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(made, section), name, value)
    return made


def bytes_of(policy: Policy) -> int:
    """A stand-in scale for the solver alone: every technique saves something, and resident units cost 10 each."""
    size = 1000
    size -= {"off": 0, "selective": 100, "blocks": 200}[policy.checkpointing]
    size -= 150 if policy.gradients == "ram" else 0
    size -= 50 if policy.boundaries == "ram" else 0
    size -= {"off": 0, "state": 300, "all": 500}[policy.stream]
    return size + 10 * policy.resident_units


def residents(policy: Policy, budget: int):
    yield from range((budget - bytes_of(policy)) // 10, 0, -1)


def found(budget: int | None, **settings: object) -> solver.Found:
    made = config(**settings)
    ladder = solver.rungs(made, solver.base(made, "cuda"))
    fixed = made.memory.resident_units is not None
    return solver.solve(ladder, budget, bytes_of, residents, fixed_residents=fixed)


def test_a_large_budget_keeps_everything_on_the_card_and_recomputes_nothing():
    policy = found(1000).policy
    assert (policy.checkpointing, policy.gradients, policy.stream) == ("off", "card", "off")


@pytest.mark.parametrize(("budget", "expected"), [
    (999, ("selective", "card", "card", "off")),
    (899, ("off", "ram", "card", "off")),
    (849, ("selective", "ram", "card", "off")),
    (699, ("blocks", "ram", "card", "off")),
    (649, ("blocks", "ram", "ram", "off")),
    (599, ("off", "ram", "card", "state")),
    (399, ("blocks", "ram", "card", "state")),
    (349, ("blocks", "ram", "ram", "state")),
    (299, ("blocks", "ram", "card", "all")),
    (109, ("blocks", "ram", "ram", "all")),
])  # fmt: skip
def test_each_smaller_budget_goes_down_the_ladder_until_a_rung_fits(budget, expected):
    policy = found(budget).policy
    assert bytes_of(policy) <= budget
    assert (policy.checkpointing, policy.gradients, policy.boundaries, policy.stream) == expected


def test_what_the_budget_leaves_is_used_for_units_that_stay():
    answer = found(395)
    assert answer.policy.stream == "state"
    assert answer.policy.resident_units == 4
    assert answer.step_bytes == 390


def test_units_that_somebody_asked_to_stay_are_not_changed():
    assert found(395, memory__resident_units=1, memory__stream="state").policy.resident_units == 1


def test_a_budget_below_everything_returns_the_smallest_plan_and_says_that_it_does_not_fit():
    answer = found(50)
    assert not answer.fits
    assert answer.policy.stream == "all"
    assert answer.policy.boundaries == "ram"
    assert len(answer.tried) > 8


def test_the_smallest_plan_is_measured_where_only_bounds_were_known():
    made = config()
    ladder = solver.rungs(made, solver.base(made, "cuda"))
    misleading = {policy: 60 + k for k, (_, policy) in enumerate(ladder)}  # the largest plan has the lowest bound
    answer = solver.solve(ladder, 50, bytes_of, residents, at_least=misleading.get)
    assert not answer.fits
    assert answer.step_bytes == bytes_of(answer.policy) == min(bytes_of(policy) for _, policy in ladder)


def test_a_rung_that_cannot_fit_is_not_simulated():
    made = config()
    ladder = solver.rungs(made, solver.base(made, "cuda"))
    simulated = []

    def measure(policy: Policy) -> int:
        simulated.append(policy)
        return bytes_of(policy)

    answer = solver.solve(ladder, 699, measure, residents, at_least=bytes_of)
    assert answer.fits
    assert simulated == [answer.policy]


def test_what_somebody_set_holds_on_every_rung():
    for _, policy in solver.rungs(
        config(memory__checkpointing="off"), solver.base(config(memory__checkpointing="off"), "cuda")
    ):
        assert policy.checkpointing == "off"


def test_every_rung_is_one_that_the_techniques_accept_and_none_comes_twice():
    start = solver.base(config(), "cuda")
    ladder = [policy for _, policy in solver.rungs(config(), start)]
    assert len(set(ladder)) == len(ladder) >= 9
    for policy in ladder:
        memory.check(policy)


def test_settings_that_contradict_each_other_are_refused_with_the_techniques_own_words():
    made = config(memory__stream="all", memory__checkpointing="off")
    with pytest.raises(ConfigError, match="cannot be combined"):
        solver.rungs(made, solver.base(made, "cuda"))


def test_gradients_do_not_wait_where_nothing_is_clipped():
    made = config(train__max_grad_norm=0.0)
    assert {policy.gradients for _, policy in solver.rungs(made, solver.base(made, "cuda"))} == {"card"}


def test_approximate_techniques_are_never_chosen_unasked():
    for settings in ({}, {"train__method": "lora"}):
        made = config(**settings)
        for _, policy in solver.rungs(made, solver.base(made, "cuda")):
            assert policy.moments in ("8bit", "fp32")
            assert policy.weights == "24bit"
            assert policy.clipping == "exact"


def test_four_bit_moments_are_used_where_they_are_asked_for():
    made = config(memory__moments="4bit")
    assert solver.base(made, "cuda").moments == "4bit"


def test_a_cpu_trains_in_fp32_unless_asked():
    policy = solver.base(config(), "cpu")
    assert (policy.weights, policy.moments, policy.compute) == ("fp32", "fp32", torch.float32)
    assert not policy.recompute_kernels
    asked = solver.base(config(memory__weights="24bit", train__mixed_precision="bf16"), "cpu")
    assert (asked.weights, asked.compute) == ("24bit", torch.bfloat16)


def test_a_card_without_bf16_computes_in_fp16():
    assert solver.base(config(), "cuda", torch.float16).compute == torch.float16


def test_other_optimizers_keep_fp32_weights():
    assert solver.base(config(train__optimizer="prodigy"), "cuda").weights == "fp32"


def test_the_ladder_never_gets_larger_on_its_way_down_in_what_it_streams():
    order = {"off": 0, "state": 1, "all": 2}
    streams = [order[policy.stream] for _, policy in solver.rungs(config(), solver.base(config(), "cuda"))]
    assert streams == sorted(streams)
    assert replace(Policy(), resident_units=1) != Policy()


@pytest.mark.parametrize(("method", "decay", "anchor"), [("full", 0.0, 1500.0), ("lora", 1500.0, 0.0)])
def test_an_anchor_takes_the_place_of_weight_decay_and_follows_the_rate(method, decay, anchor):
    hyper = solver.hyper(config(prior__anchor=0.003, train__learning_rate=2e-6, train__method=method))
    assert (hyper.weight_decay, hyper.anchor) == pytest.approx((decay, anchor))
    assert solver.hyper(config(train__learning_rate=2e-6)).anchor == 0


def test_the_share_of_an_anchor_is_that_of_a_rate_that_was_scaled():
    scaled = config(prior__anchor=0.003, train__learning_rate=2e-6, train__scale_lr=True, train__train_batch_size=4)
    assert solver.hyper(scaled).anchor * 4 * 2e-6 == pytest.approx(0.003)


def pace(policy_seconds, budget: int = 10_000, ram: int | None = None, **more: object) -> solver.Pace:
    """A card on which reaching ahead costs a byte a MiB, and early updates 7 bytes of RAM."""
    return solver.Pace(
        policy_seconds,
        lambda policy: bytes_of(policy) + policy.reach_mb,
        lambda policy: 7 * policy.early_updates,
        budget,
        ram,
        **more,
    )


def waits(policy: Policy) -> float:
    """A step of a second, half of it spent on the bus; early updates hide it as far as they reach."""
    return 1.0 - policy.early_updates * (0.1 + 0.3 * min(policy.reach_mb, 1000) / 1000)


STREAMED = solver.Found(replace(Policy(), stream="state", gradients="ram"), 550, "", True)


def test_a_step_reaches_as_far_ahead_as_the_card_holds():
    near, far = (solver.early(STREAMED, pace(waits, budget)).policy for budget in (1000, 10_000))
    assert near.early_updates and 400 < near.reach_mb <= 450
    assert far.reach_mb == solver.FURTHEST


def test_early_updates_are_left_where_they_are_not_worth_their_ram_or_it_is_not_there():
    assert solver.early(STREAMED, pace(lambda policy: 1.0 - 0.04 * policy.early_updates)) is STREAMED
    assert solver.early(STREAMED, pace(waits, ram=6)) is STREAMED
    assert solver.early(STREAMED, pace(waits, budget=549)) is STREAMED
    assert solver.early(STREAMED, pace(waits, may_be_early=False)) is STREAMED
    still = replace(STREAMED, policy=replace(STREAMED.policy, stream="off"))
    assert solver.early(still, pace(waits)) is still


def test_what_somebody_asked_for_is_not_weighed():
    asked = replace(STREAMED, policy=replace(STREAMED.policy, early_updates=True))
    made = solver.early(asked, pace(lambda policy: 1.0, reach=17))
    assert made.policy.early_updates and made.policy.reach_mb == 17


def beside(found: solver.Found, budget: int, bus: float, clipped: float = 0.0) -> solver.Found:
    """What takes `found`'s place on a card where streaming costs `bus` seconds, and `clipped` more where updates wait."""
    ladder = solver.rungs(config(), solver.base(config(), "cuda"))

    def seconds(policy: Policy) -> float:
        computing = {"off": 1.0, "selective": 1.1, "blocks": 1.3}[policy.checkpointing]
        return computing + (policy.stream != "off") * (bus + clipped * (not policy.early_updates))

    return solver.streamed(ladder, found, pace(seconds, budget), residents)


def test_streaming_takes_the_place_of_recomputing_only_where_it_is_faster_and_never_slower():
    recomputing = found(699)
    assert recomputing.policy.checkpointing == "blocks"
    assert beside(recomputing, 699, bus=0.1).policy.stream == "state"
    assert beside(recomputing, 699, bus=0.4) is recomputing
    early = beside(recomputing, 699, bus=0.0, clipped=0.2).policy
    assert early.stream == "state" and early.early_updates
    assert beside(recomputing, 699, bus=0.0, clipped=0.4) is recomputing  # slower while every step is clipped
    assert beside(found(1000), 1000, bus=0.1) == found(1000)
    assert beside(found(649), 549, bus=0.1) == found(649)  # it would not fit
