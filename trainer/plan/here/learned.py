"""What a plan makes of a card that was measured: constants that are true of this machine, in the place of assumed ones.

Bytes and rates come from a process of its own (machine/probe.py); the host's time for an operator from steps of a small model by
the engine that trains, divided by the operators that a simulation counts in them, as the constant it replaces was found. What
was measured is kept for the next run; what could not be keeps its assumption, and a plan says which of its numbers are which.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import torch

from trainer import memory
from trainer.data.batches import MicroBatch
from trainer.machine import convolutions, known, probe
from trainer.machine.probe import Seen, Work
from trainer.models import Facts, family
from trainer.models.base import loaded
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.plan.calibration import ASSUMED, GIB, LATER_BYTES, Constants, Value
from trainer.policy import Policy
from trainer.settings import effect
from trainer.settings.config import Config
from trainer.step.engine import Engine

# Of the model whose operators are counted: nothing to compute, all of it is the host's
SMALL = rehearse.Shapes((64, 64), rows=1)
STEPS = 5
LEVELS = 2  # of a denoiser, the largest: what they take is most of a step
GAIN = 1.03  # times as fast as without: below that a search is not worth its seconds
# With the kernels that a step has on a card
POLICY = Policy(moments="8bit", recompute_kernels=True, channels_last=True)
LARGEST = 2 * GIB  # a context that is said to be larger was seen while another program came or went


def learn(
    config: Config,
    facts: Facts,
    device: torch.device,
    dtype: torch.dtype,
    measure: Callable[[Work, torch.device], dict] | None = None,
) -> Constants:
    """The constants of `device`, from the cache or measured now. Raises a ConfigError where nothing can be measured."""
    work = work_of(config, facts, dtype)
    of = known.versions(device) | {"work": str(work)}
    found = known.read(of)
    if found is not None and (there := _read(found)) is not None:
        return there
    seen = (measure or measured)(work, device)
    try:
        found = known.keep(of, seen)
    except OSError:  # a home that cannot be written to: then each run measures
        found = known.Known(of, time.time(), seen)
    return _told(found)


def latest(device: torch.device) -> tuple[Constants, float] | None:
    """The newest that is known of `device`, and when it was measured, in seconds of the epoch."""
    for found in known.all_of(known.versions(device)):
        if (there := _read(found)) is not None:
            return there, found.made
    return None


def _told(found: known.Known) -> Constants:
    """Raises KeyError, TypeError or ValueError for what nobody measured."""
    return constants(Seen.from_json(found.found["seen"]), float(found.found["launch"]), found.date)


def _read(found: known.Known) -> Constants | None:
    """None where a file was damaged and is JSON still."""
    try:
        return _told(found) if 0 < float(found.found["launch"]) < 1 else None
    except (KeyError, TypeError, ValueError):
        return None


def measured(work: Work, device: torch.device) -> dict:
    before = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    seen = probe.apart(work, device, before)
    return {"seen": asdict(seen), "launch": launch_seconds(device, getattr(torch, work.dtype))}


def constants(seen: Seen, launch: float, date: str) -> Constants:
    """In place of each assumption what was seen. Of workspaces two levels of a denoiser tell no more than that they may be
    larger than assumed; how much of its memory the allocator cannot use, nothing here can tell."""

    def here(amount: float) -> Value:
        return Value(amount, True, f"measured on this card, {date}", here=True)

    found = replace(
        ASSUMED,
        launch=here(launch),
        duplex=here(min(1.0, seen.both / min(seen.up, seen.down))),
        flops=here(2 / (1 / seen.plain + 1 / seen.products)),
        bus=here(min(seen.up, seen.down)),
        searches=searches(seen),
        date=date,
    )
    if 0 < seen.context < LARGEST:
        found = replace(found, context=here(seen.context + LATER_BYTES.amount))
    if seen.workspaces > found.workspaces.amount:
        found = replace(found, workspaces=here(seen.workspaces))
    return found


def searches(seen: Seen) -> bool:
    """Whether cuDNN's search finds faster algorithms whose workspaces are planned."""
    return seen.quick > GAIN * seen.plain and seen.searched <= max(seen.workspaces, ASSUMED.workspaces.amount)


def convolved(config: Config, facts: Facts) -> Iterator[convolutions.Shape]:
    """The convolutions of a step; a denoiser that names no levels of channels has none."""
    side = (config.data.resolution or facts.resolution) // 8
    channels = facts.denoiser.get("block_out_channels", ())
    return convolutions.levels(channels, effect.rows(config), side, side)


def work_of(config: Config, facts: Facts, dtype: torch.dtype) -> Work:
    """A step's convolutions and products: of a UNet's largest levels, or of a transformer's blocks."""
    said, rows = facts.denoiser, effect.rows(config)
    side, name = (config.data.resolution or facts.resolution) // 8, str(dtype).removeprefix("torch.")
    shapes = tuple(convolved(config, facts))[:LEVELS]
    if shapes:
        first = shapes[0]
        products = tuple((rows * s.height * s.width, s.channels, 8 * s.channels) for s in shapes)  # of a GEGLU
        return Work(name, shapes, products, (rows, 8, first.height * first.width, max(first.channels // 8, 8)))
    heads = said.get("num_attention_heads") or said.get("n_heads") or 24
    width = said.get("hidden_size") or said.get("dim") or heads * said.get("attention_head_dim", 64)
    tokens = (side // 2) ** 2  # patches of two by two latents
    products = ((rows * tokens, width, width), (rows * tokens, width, 4 * width))
    return Work(name, (), products, (rows, heads, tokens, width // heads))


def launch_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of the host for one operator of a training step."""
    policy = replace(POLICY, compute=dtype, weights="24bit" if dtype != torch.float32 else "fp32")
    with torch.device("meta"):
        counted = family("sd1").tiny()
    with rehearse.engine(counted, policy, text=False) as made:
        operators = rehearse.train(counted, made, SMALL, text=False).operators
    parts = family("sd1").tiny()
    restore = memory.prepare(loaded(parts.denoiser), policy, device)
    try:
        engine = Engine(parts.family.units(parts), policy, device)
        micro, objective = [rehearse.filled(rehearse.batch(parts, SMALL, False), device)], Objective(parts.noise())
        return statistics.median(_queued(engine, micro, objective) for _ in range(STEPS)) / operators
    finally:
        restore()


def _queued(engine: Engine, micro: list[MicroBatch], objective: Objective) -> float:
    """Seconds until a step is queued."""
    began = time.perf_counter()
    rehearse.run_step(engine, micro, objective)
    took = time.perf_counter() - began
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return took
