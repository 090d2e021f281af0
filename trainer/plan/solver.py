"""From a budget to the fastest exact plan that fits it: walk a ladder of plans, each slower than the one above, and stop.

The ladder's order is what each rung costs in time: keeping everything, recomputing the cheap part, sending gradients over
the bus, recomputing whole units, then streaming what the card cannot hold, as little of it as possible. Where the card's bus is
known, two choices are made by time instead: whether updates wait for the norm (`early`), and whether state streams rather than
that units are recomputed (`streamed`). Whoever set a value keeps it on every rung; approximate techniques (4-bit moments, the
previous step's norm) are never chosen unasked.
Bytes come from one function that simulates a policy, so nothing here knows a formula for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from trainer import memory
from trainer.errors import ConfigError
from trainer.policy import AdamHyper, Policy
from trainer.settings.config import Config

SAVES = 0.05  # the part of a step's time from which a plan that takes more RAM is worth it
RAM_SHARE = 0.9  # of the RAM that is free, that may be filled for speed alone
FURTHEST, COARSE, FINE = 2048, 128, 16  # MiB that a step may reach ahead, and the steps in which that is searched
NEAR = 0.02  # of the time of a step that reaches furthest: nearer to it nothing is searched


@dataclass(frozen=True)
class Rung:
    """One plan of the ladder: settings of `[memory]` and, in words, what they cost."""

    words: str
    checkpointing: str = "off"
    gradients: str = "card"
    boundaries: str = "card"
    stream: str = "off"


LADDER: tuple[Rung, ...] = (
    Rung("no checkpointing needed, nothing leaves the card"),
    Rung("cheap operators are recomputed, nothing leaves the card", "selective"),
    Rung("no checkpointing needed; gradients wait in RAM for the exact norm", "off", "ram"),
    Rung("cheap operators are recomputed; gradients wait in RAM for the exact norm", "selective", "ram"),
    Rung("units are recomputed in backward (about a quarter more arithmetic), nothing leaves the card", "blocks"),
    Rung("units are recomputed in backward; gradients wait in RAM for the exact norm", "blocks", "ram"),
    Rung("units are recomputed in backward; gradients and the values between units wait in RAM", "blocks", "ram", "ram"),
    Rung("no checkpointing needed; optimizer state visits the card unit by unit", "off", "ram", "card", "state"),
    Rung("units are recomputed; optimizer state visits the card unit by unit", "blocks", "ram", "card", "state"),
    Rung("units are recomputed; optimizer state visits the card, values between units wait in RAM", "blocks", "ram", "ram", "state"),
    Rung("weights and optimizer state visit the card unit by unit", "blocks", "ram", "card", "all"),
    Rung("weights and optimizer state visit the card, values between units wait in RAM", "blocks", "ram", "ram", "all"),
)  # fmt: skip
AXES = ("checkpointing", "gradients", "boundaries", "stream")


@dataclass(frozen=True)
class Found:
    """The policy, what the step takes with it, why it was chosen, and which rungs above it were too large."""

    policy: Policy
    step_bytes: int
    words: str
    fits: bool
    tried: tuple[tuple[str, int], ...] = ()  # (words, bytes) of what did not fit


def base(config: Config, device: str, computes: torch.dtype = torch.bfloat16) -> Policy:
    """Everything but the ladder's choices. `device`: "cuda" or "cpu"; `computes`: what a card computes in best."""
    wanted, train = config.memory, config.train
    full, ours = train.method == "full", train.optimizer == "adamw"
    asked = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(train.mixed_precision)
    compute = asked or (torch.float32 if device == "cpu" else computes)
    plain = compute == torch.float32
    weights = "fp32" if plain or not ours else "24bit"
    moments = "fp32" if plain or not ours or not full else "8bit"  # an adapter's moments are a few megabytes
    shard = "state" if ours and full and config.run.cards > 1 else "off"  # and not worth a message
    return Policy(
        weights=weights if wanted.weights == "auto" else wanted.weights,
        moments=moments if wanted.moments == "auto" else wanted.moments,
        compute=compute,
        clipping=train.clipping,
        max_grad_norm=train.max_grad_norm,
        optimizer=train.optimizer,
        hyper=hyper(config),
        seed=train.seed,
        shard=shard if wanted.shard == "auto" else wanted.shard,
        **memory.begin(wanted, device),
    )


def hyper(config: Config) -> AdamHyper:
    """Adam's settings; with an anchor nothing decays towards 0 but adapters, which add nothing to the base model there."""
    train, anchor = config.train, config.prior.anchor
    betas = (train.adam_beta1, train.adam_beta2)
    if not anchor:
        return AdamHyper(betas, train.adam_epsilon, train.adam_weight_decay)
    scale = train.train_batch_size * train.gradient_accumulation_steps if train.scale_lr else 1
    share = anchor / ((train.learning_rate or 1.0) * scale)  # of a unit of the rate; a plan alone may know no rate
    if train.method != "full":
        return AdamHyper(betas, train.adam_epsilon, share)
    return AdamHyper(betas, train.adam_epsilon, 0.0, share)


def rungs(config: Config, start: Policy) -> list[tuple[Rung, Policy]]:
    """The ladder under the values somebody set, without repetitions and without what the techniques refuse."""
    fixed = {axis: getattr(config.memory, axis) for axis in AXES if getattr(config.memory, axis) != "auto"}
    if not start.two_passes:
        fixed.setdefault("gradients", "card")  # nothing has to wait
    found: dict[Policy, Rung] = {}
    refused: ConfigError | None = None
    for rung in LADDER:
        policy = replace(start, **{axis: getattr(rung, axis) for axis in AXES} | fixed)
        if policy.stream != "off" and config.memory.resident_units is not None:
            policy = replace(policy, resident_units=config.memory.resident_units)
        if policy in found:
            continue
        try:
            memory.check(policy)
        except ConfigError as error:
            refused = refused or error
            continue
        found[policy] = rung
    if not found:
        assert refused is not None
        raise refused
    return [(rung, policy) for policy, rung in found.items()]


def solve(
    ladder: list[tuple[Rung, Policy]],
    budget: int | None,
    measure: Callable[[Policy], int],
    residents: Callable[[Policy, int], Iterator[int]],
    *,
    at_least: Callable[[Policy], int] = lambda policy: 0,
    fixed_residents: bool = False,
) -> Found:
    """The first rung that fits. measure: policy -> bytes of the process at the step's peak, simulated.

    at_least(policy): a lower bound that costs no simulation, so that hopeless rungs are not simulated. residents(policy,
    budget): numbers of units worth trying to keep on the card, largest first, for a streaming rung that fits with none.
    """
    tried: list[tuple[int, Rung, Policy]] = []
    for rung, policy in ladder:
        size = at_least(policy)
        if budget is None or size <= budget:
            size = measure(policy)
        if budget is None or size <= budget:
            if policy.stream != "off" and not fixed_residents and budget is not None:
                policy, size = _fill(policy, size, budget, measure, residents)
            return Found(policy, size, rung.words, True, tuple((rung.words, size) for size, rung, _ in tried))
        tried.append((size, rung, policy))
    size, rung, policy = _smallest(tried, measure)
    return Found(policy, size, rung.words, False, tuple((rung.words, size) for size, rung, _ in tried))


def _smallest(tried: list[tuple[int, Rung, Policy]], measure: Callable[[Policy], int]) -> tuple[int, Rung, Policy]:
    """The smallest plan, measured: what was tried may be known by a lower bound only."""
    best: tuple[int, Rung, Policy] | None = None
    for bound, rung, policy in sorted(tried, key=lambda each: each[0]):
        if best is not None and bound >= best[0]:
            break
        size = measure(policy)
        if best is None or size < best[0]:
            best = size, rung, policy
    assert best is not None
    return best


def _fill(
    policy: Policy,
    size: int,
    budget: int,
    measure: Callable[[Policy], int],
    residents: Callable[[Policy, int], Iterator[int]],
) -> tuple[Policy, int]:
    for count in residents(policy, budget):
        fuller = replace(policy, resident_units=count)
        larger = measure(fuller)
        if larger <= budget:
            return fuller, larger
    return policy, size


@dataclass(frozen=True)
class Pace:
    """A card whose speed is known. seconds, card_bytes, ram_bytes: of a policy's step, simulated; budget, ram: what there is of
    both; may_be_early, reach: whether updates may be, and how far a step then reaches ahead, where somebody said."""

    seconds: Callable[[Policy], float]
    card_bytes: Callable[[Policy], int]
    ram_bytes: Callable[[Policy], int]
    budget: int | None
    ram: int | None
    may_be_early: bool = True
    reach: int | None = None

    def holds(self, policy: Policy) -> bool:
        size, host = self.card_bytes(policy), self.ram_bytes(policy)
        return size <= (self.budget or size) and host <= (self.ram or host)


def early(found: Found, pace: Pace) -> Found:
    """The same plan with updates that do not wait for the norm (memory/clipping.py), where a step that is not clipped is faster by
    that and there is RAM for what may be taken back, or where somebody asked for it."""
    policy, asked = found.policy, found.policy.early_updates
    if not pace.may_be_early or not policy.deferred or policy.stream == "off":
        return found

    def made(reach: int) -> Policy:
        return replace(policy, early_updates=True, reach_mb=reach)

    limit = float("inf") if asked else (1 - SAVES) * pace.seconds(policy.late)
    if pace.seconds(made(FURTHEST if pace.reach is None else pace.reach)) > limit:
        return found
    reach = _furthest(pace, made) if pace.reach is None else pace.reach
    if reach is None or not pace.holds(made(reach)) or pace.seconds(made(reach)) > limit:
        return found
    return replace(found, policy=made(reach), step_bytes=pace.card_bytes(made(reach)))


def _furthest(pace: Pace, made: Callable[[int], Policy]) -> int | None:
    """How far to reach ahead, MiB: the further, the less a step waits for the bus, until the card is full. None where nothing
    fits."""
    low, high = -COARSE, FURTHEST + COARSE
    while high - low > COARSE:
        middle = (low + high) // (2 * COARSE) * COARSE
        low, high = (middle, high) if pace.holds(made(middle)) else (low, middle)
    if low < 0:
        return None
    if low == FURTHEST or pace.seconds(made(low)) < (1 + NEAR) * pace.seconds(made(FURTHEST)):
        return low
    # pages are taken as a whole, so that a little further may fit again
    finer = next((reach for reach in range(high - FINE, low, -FINE) if pace.holds(made(reach))), low)
    return min(low, finer, key=lambda reach: pace.seconds(made(reach)))


def streamed(
    ladder: list[tuple[Rung, Policy]],
    found: Found,
    pace: Pace,
    residents: Callable[[Policy, int], Iterator[int]],
) -> Found:
    """The rung that computes nothing twice and streams state, where it is faster than `found`, which recomputes units and streams
    nothing: a bus may be fast enough to hide behind less arithmetic."""
    others = [(rung, policy) for rung, policy in ladder if policy.stream == "state" and policy.checkpointing == "off"]
    recomputes = found.policy.checkpointing == "blocks" and found.policy.stream == "off"
    if not recomputes or not others or pace.budget is None:
        return found
    other = solve(others, pace.budget, pace.card_bytes, residents)
    other = early(other, pace) if other.fits else other
    before = pace.seconds(found.policy)
    if not (other.fits and pace.holds(other.policy)) or pace.seconds(other.policy.late) > before:
        return found  # also where every step has to be clipped
    return other if pace.seconds(other.policy) <= (1 - SAVES) * before else found
