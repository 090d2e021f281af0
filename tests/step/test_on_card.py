"""What only a card can show: streams that race, graphs that replay, a host that waits. Deselected where there is none."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from policies import LOW, POLICIES, STREAMED
from small_unet import Model, batch, take_step
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer import memory, models
from trainer.machine.vitals import Vitals
from trainer.memory.stream import Block, Traffic
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.step.engine import Engine, Policy
from trainer.step.updates import Decision, Updates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
DEVICE = torch.device("cuda")
undo = []  # what `tiny` changed for the whole process


@pytest.fixture(autouse=True)
def restored():
    yield
    while undo:
        undo.pop()()


@contextmanager
def repeatable():
    """Kernels that sum in the same order each time, in full precision."""
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = flags


def trained(policy: Policy, device: torch.device, steps: int = 4, count: int = 2) -> dict[str, torch.Tensor]:
    """Weights after a few steps, with a preview between them."""
    engine = Engine(Model().units(), policy, device)
    with repeatable():
        for step in range(steps):
            take_step(engine, step, count)
            engine.forward(batch(step)[0])
    return {name: value.cpu() for name, value in engine.master()}


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_step_equals_a_resident_one_bit_for_bit(name):
    bit_for_bit(STREAMED[name])


@pytest.mark.parametrize("name", [name for name, policy in STREAMED.items() if policy.early_updates])
def test_a_step_that_is_taken_back_and_made_again_equals_one_that_waited(name):
    bit_for_bit(replace(STREAMED[name], max_grad_norm=0.02))


def bit_for_bit(streamed: Policy) -> None:
    stays = replace(streamed.late, stream="off", boundaries="card", gradients="card", resident_units=0)
    ours, theirs = trained(streamed, DEVICE), trained(stays, DEVICE)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_streamed_step_equals_the_same_on_the_cpu_within_rounding():
    ours, theirs = (trained(STREAMED["all"], device, steps=2) for device in (DEVICE, torch.device("cpu")))
    start = {name: p.detach() for unit in Model().units() for name, p in unit.module.named_parameters()}
    apart = torch.cat([(ours[n] - theirs[n]).flatten() for n in theirs]).norm()
    # where a gradient is zero but for rounding (the bias of keys), Adam makes a whole step of the rounding
    assert apart < 0.2 * torch.cat([(theirs[n] - start[n]).flatten() for n in theirs]).norm()


def test_blocks_keep_their_numbers_while_copies_and_kernels_overlap():
    """Large blocks and small ones, kernels that are late, memory that is handed out again at once."""
    traffic, rounds = Traffic(DEVICE), 40
    blocks = [Block.make(size, False, traffic) for size in (48 << 20, 1 << 10, 16 << 20, 48 << 20)]
    for block in blocks:
        block.home.zero_()
    for turn in range(rounds):
        for number, block in enumerate(blocks):
            block.bring()
            blocks[(number + 1) % len(blocks)].bring()
            torch.cuda._sleep(200_000 * (turn % 3))
            block.use().add_(1)
            block.leave(changed=True)
            torch.empty(48 << 20, dtype=torch.uint8, device=DEVICE).fill_(7)  # takes memory that has just been left
    traffic.settle()
    assert all((block.read() == rounds).all() for block in blocks)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize(("family", "text"), [("sd1", True), ("sdxl", False)])
def test_nothing_in_a_step_waits(monkeypatch, family, text, policy):
    """But for the norm, where early updates hang on it."""
    plain = Updates.came_true

    def read(self: Updates, foreseen: Decision) -> bool:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return plain(self, foreseen)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(Updates, "came_true", read)
    _, step = tiny(family, policy, text)
    for _ in range(3):
        losses = step(debug="error")
    assert losses.isfinite().all()


GRAPHS = {
    "kept": {},
    "blocks": {"checkpointing": "blocks"},
    "selective": {"checkpointing": "selective"},
    "previous norm": {"clipping": "previous"},
    "fp16": {"compute": torch.float16},
    "autocast": {"weights": "fp32"},
}


@pytest.mark.parametrize("more", GRAPHS.values(), ids=GRAPHS.keys())
def test_replayed_steps_equal_eager_ones_bit_for_bit(more):
    """Rates, batches and shapes change between steps; one is followed by a picture, which has the card for itself."""
    settings = {"weights": "24bit", "moments": "8bit", "compute": torch.bfloat16, "attention": "math"} | more
    found = []
    for graphs in (False, True):
        policy = Policy(**settings, recompute_kernels=True, channels_last=True, cuda_graphs=graphs)
        parts = models.family("sd1").tiny()
        undo.append(memory.prepare(parts.denoiser, policy, DEVICE))
        engine = Engine(parts.family.units(parts), policy, DEVICE)
        assert (engine.replay is not None) is graphs
        losses = []
        with repeatable():
            for number in range(7):
                side = 64 if number % 3 else 128
                losses.append(real_step(parts, engine, number, side, 1e-4 * (1 + number % 2)))
                if number == 4:
                    with engine.parked():
                        pass
        if graphs:
            assert engine.replay.trouble == "" and len(engine.replay.recordings) == 2
        found.append((torch.stack(losses), {name: value.cpu() for name, value in engine.state_dict().items()}))
    (plain, state), (replayed, again) = found
    assert torch.equal(plain, replayed)
    assert all(torch.equal(state[name], again[name]) for name in state)


def real_step(parts: models.Parts, engine: Engine, number: int, side: int, lr: float) -> torch.Tensor:
    batch = rehearse.batch(parts, rehearse.Shapes((side, side)), False)
    source = torch.Generator().manual_seed(number)

    def real(tensor: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn if tensor.is_floating_point() else partial(torch.randint, 20)
        return drawn(tensor.shape, generator=source).to(DEVICE)

    values = {name: real(value) for name, value in batch.values.items()}
    batch = replace(batch, values=values, target=real(batch.target), weights=real(batch.weights).abs(), mask=None)
    return engine.step([values], Objective(parts.noise()).of_step([batch], 1), lr).losses.cpu()


def test_losses_are_there_before_the_next_step_is_done():
    """As the loop reads them: what is queued behind a mark is not waited for."""
    vitals = Vitals(DEVICE)
    first, value = vitals.mark(), torch.ones(1000, device=DEVICE).sum().to("cpu", non_blocking=True)
    second = vitals.mark()
    torch.cuda._sleep(2_000_000_000)  # about a second
    late = vitals.mark()
    assert value.is_pinned() and vitals.seconds(first, second) < 0.5
    assert float(value) == 1000 and not late.query()
    late.synchronize()


def tiny(family: str, policy: Policy, text: bool, accumulation: int = 2, device: torch.device = DEVICE):
    """(engine, step): a real family's smallest model; a step returns its losses."""
    parts = models.family(family).tiny()
    undo.append(memory.prepare(parts.denoiser, policy, device))
    engine = Engine(parts.family.units(parts, text=text), policy, device)
    shapes = rehearse.Shapes((64, 64), accumulation=accumulation)

    def real(tensor: torch.Tensor, seed: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(seed)
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=source).to(device)
        return torch.randint(20, tensor.shape, generator=source).to(device)

    def step(debug: str = "default") -> torch.Tensor:
        micro = []
        for number in range(accumulation):
            batch = rehearse.batch(parts, shapes, text)
            made = {name: real(value, 10 * number + k) for k, (name, value) in enumerate(batch.values.items())}
            micro.append((made, real(batch.target, number)))
        rates = dict.fromkeys(("unet", "text", "text_2"), 1e-5)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(debug)
        try:
            result = engine.step(
                [values for values, _ in micro],
                lambda out, i: (out.float() - micro[i][1]).pow(2).mean() / accumulation,
                rates,
            )
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        return result.losses

    return engine, step


@pytest.mark.parametrize("policy", [Policy(), LOW], ids=["fp32", "low bits"])
def test_a_step_uses_no_more_of_the_card_than_is_counted_live(policy):
    """The budget's other half: what the engine keeps between steps is weights and state, and nothing else."""
    engine, step = tiny("sd1", policy, text=False)
    step()
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    assert abs(torch.cuda.memory_allocated() - kept) < 2**20
    assert engine.bytes["weights"] > 0
