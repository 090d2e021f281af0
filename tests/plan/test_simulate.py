"""The tracker against the allocator's own account of the same step, and what it counts beside bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor
from trainer.benchmarks import plans
from trainer.benchmarks.suites.planner import allocator_log

from trainer.machine import host
from trainer.memory import checkpointing, clipping, recompute_kernels, stream
from trainer.models import FAMILIES, family
from trainer.models.base import Parts
from trainer.models.dit.nextdit.units import through
from trainer.objective.loss import Objective
from trainer.plan import pretend, rehearse, solver
from trainer.plan.phases import Rehearsals
from trainer.plan.pretend import CardAttention
from trainer.plan.simulate import Tracker, Watched
from trainer.policy import Policy
from trainer.run.assemble import make_engine
from trainer.settings.config import Config
from trainer.step.engine import Engine

SIDE = 64  # pixels of the steps that are taken here
STAYS = 3  # units that stay on the card, of a tiny model's dozen


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
def test_a_simulated_plain_step_agrees_with_the_allocator(each):
    def build(device: str):
        parts = each.tiny()
        parts.denoiser.to(device)
        given = rehearse.filled(rehearse.batch(parts, rehearse.Shapes((128, 128)), False), torch.device(device)).values

        def step() -> None:
            through(each.units(parts), given).square().mean().backward()
            for parameter in parts.denoiser.parameters():
                parameter.grad = None

        return step, [*parts.denoiser.parameters(), *given.values()]

    step, _ = build("cpu")
    step()  # the first call allocates what stays: threads, caches
    independent = allocator_log(step).card_peak
    # Lumina gathers its picture's tokens, and while anybody watches torch makes gather's backward with a second buffer.
    within = pytest.approx(independent, rel=0.02 if each.name == "lumina2" else 0.01)
    assert watched(*(lambda b: (b[0], "cpu", b[1]))(build("cpu"))) == within
    assert watched(*(lambda b: (b[0], "meta", b[1]))(build("meta"))) == within


@dataclass(frozen=True)
class Case:
    """One plan to hold against the allocator. stays: units that stay on the card where others are streamed."""

    family: str
    mode: str
    checkpointing: str = "off"
    gradients: str = "card"
    boundaries: str = "card"
    stream: str = "off"
    stays: int = 0
    early: bool = False
    compute: str = "bf16"
    accumulation: int = 1
    anchor: float = 0.0
    part: str = "all"  # of the text encoders that learns
    buckets: bool = False  # of another shape than the class images, which then have a micro-batch of their own

    def __str__(self) -> str:
        usual = asdict(Case("", ""))
        return " ".join(f"{name} {value}" for name, value in asdict(self).items() if value != usual[name])

    def config(self) -> Config:
        made = Config()
        made.train.method, _, text = self.mode.partition("+")
        made.train.train_text_encoder, made.train.text_part = bool(text), self.part
        made.train.mixed_precision, made.train.gradient_accumulation_steps = self.compute, self.accumulation
        made.data.resolution, made.data.masked_loss = SIDE, self.accumulation > 1
        made.data.buckets, made.prior.anchor = self.buckets, self.anchor
        made.prior.with_prior_preservation = True
        return made

    def policy(self) -> Policy:
        """As the solver makes it for a card: low-bit weights and moments, kernels that recompute, channels last."""
        return replace(
            solver.base(self.config(), "cuda"),
            **axes(self),
            resident_units=self.stays,
            early_updates=self.early,
            reach_mb=int(self.early),
        )


def chosen() -> Iterator[Case]:
    """What the solver chose for every preset, family and mode, read from benchmarks/PLANS.md."""
    for line in plans.kept(plans.PLANS).splitlines()[2:]:
        name, mode, _, _, words, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        streamed = re.search(r"(state|all) streamed, (\d+) units stay", words)
        yield Case(
            name,
            mode,
            checkpointing=re.search(r"checkpointing (\w+)", words)[1],
            gradients="ram" if "gradients in RAM" in words else "card",
            boundaries="ram" if "boundaries in RAM" in words else "card",
            stream=streamed[1] if streamed else "off",
            stays=STAYS if streamed and int(streamed[2]) else 0,
            early="early updates" in words,
        )


def axes(choice: Case | solver.Rung) -> dict[str, str]:
    return {axis: getattr(choice, axis) for axis in solver.AXES}


PLANS = list(dict.fromkeys(chosen()))
BETWEEN = [Case("sd1", "full", **axes(rung)) for rung in solver.LADDER if axes(rung) not in map(axes, PLANS)]
OTHERS = [
    Case("sd1", "full", compute="fp16"),  # a loss scale, and a flag for overflow
    Case("sd2", "lora", "blocks", "ram", "ram", compute="fp16"),
    Case("sd2", "full", accumulation=2),
    Case("sdxl", "full+text", "blocks", "ram", "ram", accumulation=2),
    Case("sd1", "full", buckets=True),
    Case("sd1", "full", gradients="ram", stream="state", early=True),
    Case("sd1", "full", gradients="ram", stream="state", early=True, accumulation=2),
    Case("sdxl", "full", "blocks", "ram", "ram", stream="all", stays=STAYS, early=True),
    Case("sd1", "full", anchor=0.01),
    Case("sdxl", "full+text", "blocks", "ram", part="identifier"),
    Case("sd2", "full", "blocks", "ram", anchor=0.01),
    Case("sdxl", "full+text", "blocks", "ram", stream="all", stays=STAYS, anchor=0.01),
]


def rehearsals(case: Case) -> Rehearsals:
    """Shared by all cases of one configuration."""
    same = ("family", "mode", "compute", "accumulation", "buckets", "anchor", "part")
    return phases(Case(**{name: getattr(case, name) for name in same}))


@cache
def phases(case: Case) -> Rehearsals:
    with torch.device("meta"):
        parts = family(case.family).tiny()
    return Rehearsals(case.config(), parts, "cuda")


def planned(case: Case) -> tuple[int, int]:
    """(card, host) bytes that the step adds to what stands, as the planner simulates them."""
    made, policy = rehearsals(case), case.policy()
    seen = made.work(policy)
    return seen.card_peak - seen.card_kept, seen.host_peak - made.standing[policy].host


def real_engine(case: Case, parts: Parts) -> Engine:
    """As a run puts it together."""
    return make_engine(case.config(), parts, case.policy(), torch.device("cpu"))


def real_step(case: Case) -> Callable[[], None]:
    parts = family(case.family).tiny()
    engine = real_engine(case, parts)
    shapes = rehearsals(case).shapes
    shapes = replace(shapes, apart=case.buckets)
    text = case.config().train.train_text_encoder
    micro = [rehearse.filled(rehearse.batch(parts, each, text), torch.device("cpu")) for each in shapes.micro_batches()]
    objective = Objective(parts.noise())

    def step() -> None:
        for _ in range(1 + engine.policy.deferred):  # the second one begins with updates that waited, as all later ones
            rehearse.run_step(engine, micro, objective, shapes.accumulation)
        if engine.policy.early_updates:  # and one that has to be made again
            engine.updates.policy = replace(engine.policy, max_grad_norm=1e-9)
            rehearse.run_step(engine, micro, objective, shapes.accumulation)
            assert engine.settling.again

    return step


@pytest.fixture(scope="module", autouse=True)
def warm():
    """The first step of a process allocates what stays."""
    real_step(Case("sd1", "full"))()


def test_the_table_of_plans_is_read():
    assert {(case.family, case.mode) for case in PLANS} >= {("sd1", "full"), ("sdxl", "lora+text")}
    assert {"off", "state", "all"} == {case.stream for case in PLANS}
    assert len(PLANS) > 20


@pytest.mark.parametrize("case", PLANS + BETWEEN + OTHERS, ids=str)  # every rung of the ladder is among them
def test_a_planned_step_takes_what_the_allocator_hands_out_within_one_percent(case):
    real = allocator_log(real_step(case))
    assert (real.card_peak, real.host_peak) == pytest.approx(planned(case), rel=0.01)


@pytest.mark.parametrize("case", [
    Case(name, mode, "blocks", "ram", stream=streamed, stays=STAYS if streamed != "off" else 0)
    for name, mode in (("sd1", "lora+text"), ("sd2", "full"), ("sdxl", "full+text")) for streamed in ("off", "state", "all")
] + [case for case in OTHERS if case.anchor], ids=str)  # fmt: skip
def test_what_stands_between_steps_is_what_the_allocator_handed_out_for_it(case):
    made, policy = rehearsals(case), case.policy()
    made.work(policy)
    standing, parts, kept = made.standing[policy], family(case.family).tiny(), []
    real = allocator_log(lambda: kept.append(real_engine(case, parts)))
    assert (real.card_left, real.host_left) == pytest.approx((standing.card, standing.host), rel=0.01)


def leave_nothing(monkeypatch, hoard):
    """Streamed blocks stay on the card after their visit."""
    leave = stream.Block.leave
    monkeypatch.setattr(stream.Block, "leave", lambda self, changed: (hoard.append(self.live), leave(self, changed))[1])


def keep_gradients(monkeypatch, hoard):
    """Gradients that wait in RAM stay on the card as well."""
    store = clipping.Waiting.store
    monkeypatch.setattr(
        clipping.Waiting, "store", lambda self, k, *rest: (hoard.append(rest[0]), store(self, k, *rest))[1]
    )


def keep_values(monkeypatch, hoard):
    """Values between units that were taken to RAM stay on the card as well."""
    save = stream.Traffic.save
    monkeypatch.setattr(stream.Traffic, "save", lambda self, to, value: (hoard.append(value), save(self, to, value))[1])


def keep_graphs(monkeypatch, hoard):
    """Units keep their graphs instead of running again."""
    monkeypatch.setattr(checkpointing, "again", lambda run, draws: run)


def keep_norms(monkeypatch, hoard):
    """Norms and gates are kept for backward instead of made again."""
    monkeypatch.setattr(recompute_kernels, "_made", lambda output, make, *inputs: output)


@pytest.mark.parametrize(("break_it", "case"), [
    (keep_gradients, Case("sd1", "full", "blocks", "ram")),
    (keep_graphs, Case("sd1", "full", "blocks", "ram")),
    (keep_norms, Case("sd1", "full", "off", "ram")),
    (keep_values, Case("sdxl", "lora", "blocks", "ram", "ram")),
    (leave_nothing, Case("sd2", "full", "blocks", "ram", stream="state")),
    (leave_nothing, Case("sd2", "lora", "blocks", "ram", stream="all")),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_a_technique_that_saves_less_than_planned_is_caught(monkeypatch, break_it, case):
    expected, step = planned(case), real_step(case)
    break_it(monkeypatch, [])
    real = allocator_log(step)
    assert (real.card_peak, real.host_peak) != pytest.approx(expected, rel=0.01)


def test_a_technique_that_the_simulation_misses_is_caught():
    """A kernel whose meta version forgets half of its output makes the two counts disagree by more than the tolerance."""

    @torch.library.custom_op("trainer::forgetful", mutates_args=())
    def forgetful(x: Tensor) -> Tensor:
        return x.repeat(2)

    forgetful.register_fake(lambda x: x.new_empty(x.shape))

    def step(device: str) -> Callable[[], object]:
        x = torch.zeros(100_000, device=device)
        return lambda: forgetful(x).sum()

    assert watched(step("meta"), "meta", []) < 0.6 * allocator_log(step("cpu")).card_peak


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

    case = Case("sd1", "full", "blocks", "ram")

    def once() -> Watched:
        with torch.device("meta"):
            parts = family(case.family).tiny()
        return replace(Rehearsals(case.config(), parts, "cuda").work(case.policy()), seconds=0.0)

    pretend._ANSWERS.clear()
    first = once()
    assert len(pretend._ANSWERS) > 50
    assert once() == first
