"""Streaming without a card: the engine's real step on real numbers, its copies on recorded streams, every access checked.

A stream here is a clock. Each operator that the step runs (forward, backward, update and copy) is an access to storages by
the stream that is current; waiting for an event or a stream hands knowledge on (vector clocks). Two accesses to the same
bytes, one of them a write, must be ordered by such knowledge, and memory of the card may be given up only when the
computing stream, to which the allocator hands it out again, knows of every access. What CUDA leaves to chance is thus an
error in every run.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from policies import STREAMED
from small_unet import Model, batch, holder, take_step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.machine import host
from trainer.memory import stream
from trainer.step.engine import Engine, Policy
from trainer.units import Unit


class Clock:
    """A stream (or the host): how many accesses it has made, and how many of the others' it knows to be done."""

    def __init__(self, name: str):
        self.name, self.knows = name, {}

    def tick(self) -> int:
        self.knows[self.name] = self.knows.get(self.name, 0) + 1
        return self.knows[self.name]

    def learn(self, knowledge: dict[str, int]) -> None:
        for name, count in knowledge.items():
            self.knows[name] = max(self.knows.get(name, 0), count)


class Stream(Clock):
    def __init__(self, name: str, recorder: Recorder):
        super().__init__(name)
        self.recorder = recorder

    def wait_stream(self, other: Stream) -> None:
        self.learn(other.knows)

    def wait_event(self, event: Event) -> None:
        self.learn(event.knows)
        if self is self.recorder.computing and event.by == "up":
            self.recorder.hidden.append(self.knows["computing"] - event.computed)

    def synchronize(self) -> None:
        self.recorder.host.learn(self.knows)


class Event:
    recorder: Recorder  # of the test that is running

    def record(self, on: Stream) -> None:
        self.by, self.knows = on.name, dict(on.knows)
        self.computed = self.recorder.computing.knows.get("computing", 0)  # operators queued before the copy


@dataclass
class Storage:
    """Who touched it last. Reads are those since the last write; being made counts as a write by who computes."""

    host: bool = False
    fresh: bool = True  # made, and nothing in it yet
    write: tuple[str, int] | None = None
    reads: dict[str, int] = field(default_factory=dict)


class Recorder(TorchDispatchMode):
    """Sees every operator and keeps the books. `problems` says what is unordered, `hidden` how many operators were queued
    between each copy to the card and the first wait for it."""

    def __init__(self):
        super().__init__()
        self.host, self.computing = Clock("host"), Stream("computing", self)
        self.current, self.in_step = self.computing, False
        self.storages: dict[int, Storage] = {}
        self.problems: list[str] = []
        self.hidden: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.returns and all(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view touches no bytes
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in (kwargs or {})]
        reads, writes = [], []
        for argument, value in given:
            (writes if argument.alias_info and argument.alias_info.is_write else reads).extend(tree_leaves(value))
        if "empty" in func._schema.name or "_like" in func._schema.name:
            reads = []  # it looks at the shape only
        self._access(str(func), self._known(reads), self._known(writes), self._known(tree_leaves(out)))
        return out

    def _access(self, what: str, reads: set[int], writes: set[int], made: set[int]) -> None:
        made -= writes
        touched, who = [self.storages[key] for key in reads | writes], self.current
        if who is self.computing and any(storage.host for storage in touched):
            who = self.host  # host memory outside of a lane: the CPU's own work
            if self.in_step:
                self.problems.append(f"{what} computes with host memory inside a step")
            if any(not storage.host and not storage.fresh for storage in touched):
                self.host.learn(self.computing.knows)  # a copy to or from the card that the host waits for
            for storage in [*touched, *(self.storages[key] for key in made)]:
                storage.host |= storage.fresh
                storage.write = None if storage.fresh else storage.write
        elif who is not self.host:
            who.learn(self.host.knows)  # the host did that before it queued this
        now = who.tick()
        for key in reads:
            storage = self.storages[key]
            self._ordered(who, what, "reads", storage.write, "written")
            storage.reads[who.name] = now
        for key in writes:
            storage = self.storages[key]
            self._ordered(who, what, "writes", storage.write, "written")
            for reader, when in storage.reads.items():
                self._ordered(who, what, "writes", (reader, when), "read")
        for key in writes | made:
            storage = self.storages[key]
            storage.write, storage.reads, storage.fresh = (who.name, now), {}, key in made and not touched

    def _ordered(self, who: Clock, what: str, act: str, earlier: tuple[str, int] | None, did: str) -> None:
        if earlier is not None and who.knows.get(earlier[0], 0) < earlier[1]:
            self.problems.append(f"{who.name} {act} ({what}) what {earlier[0]} may not have {did} yet")

    def _known(self, values: list) -> set[int]:
        """The storages of the tensors among `values`."""
        found = set()
        for tensor in values:
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                found.add(key := storage._cdata)
                if key not in self.storages:
                    self.storages[key] = Storage()
                    weakref.finalize(storage, self._freed, key)
        return found

    def _freed(self, key: int) -> None:
        """The allocator may hand the memory out again at once, to whatever the computing stream does next."""
        storage = self.storages.pop(key)
        for name, when in [*storage.reads.items(), *([storage.write] if storage.write else [])]:
            if not storage.host and self.computing.knows.get(name, 0) < when:
                self.problems.append(f"memory is given up while {name} may still use it")

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        for key in self._known([tensor]):
            self.storages[key].host = True
        return tensor

    @contextmanager
    def on(self, stream: Stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def recorder(monkeypatch):
    made, empty = Recorder(), host.empty
    Event.recorder = made
    monkeypatch.setattr(host, "empty", lambda *args: made.pin(empty(*args)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: made.current)
    return made


@contextmanager
def streamed(recorder: Recorder, policy: Policy, units: list[Unit] | None = None):
    """An engine as on a card: its lanes have streams of their own, and everything is recorded from its first step on."""
    engine = Engine(units or Model().units(), policy, "cpu")
    engine.traffic.up.stream, engine.traffic.down.stream = (Stream(name, recorder) for name in ("up", "down"))
    with recorder:
        yield engine


def step(recorder: Recorder, engine: Engine, number: int, count: int = 1, **options) -> None:
    recorder.in_step = True
    take_step(engine, number, count, **options)
    recorder.in_step = False


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("policy", STREAMED.values(), ids=STREAMED.keys())
def test_no_copy_of_a_streamed_step_races_with_anything(recorder, policy, count):
    with streamed(recorder, policy) as engine:
        for number in range(3):
            step(recorder, engine, number, count)
    assert recorder.problems == []
    assert {"up", "down"} <= recorder.computing.knows.keys(), "nothing was streamed: the test would see nothing"


def test_previews_looks_and_loading_between_steps_wait_for_the_copies_they_meet(recorder):
    with streamed(recorder, STREAMED["all"], Model().units(text=True)) as engine:
        values = batch(3)[0]
        for number in range(2):
            step(recorder, engine, number, text=True)
            engine.forward(values)
            saved = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
            engine.forward(values)  # its copies to the card are still under way when the host writes what they read
            engine.load_state_dict(saved)
            step(recorder, engine, number, text=True, update=False)
            engine.load_master(dict(engine.master()))
    assert recorder.problems == []


@pytest.mark.parametrize("stream", ["state", "all"])
def test_what_was_brought_and_not_used_lands_before_its_memory_is_given_up(recorder, stream):
    units = Model().units()
    idle = Unit("unet.idle", holder("unet.idle", nn.Linear(16, 16)), ("time",), ("nobody reads",), lambda x: x)
    policy = Policy(stream=stream, checkpointing="blocks", max_grad_norm=0.0)
    with streamed(recorder, policy, [*units[:-1], idle, units[-1]]) as engine:
        step(recorder, engine, 0)
    assert recorder.problems == []


@pytest.mark.parametrize("name", ["all", "all, updates in backward"])
def test_most_copies_to_the_card_are_queued_before_work_that_hides_them(recorder, name):
    with streamed(recorder, STREAMED[name]) as engine:
        step(recorder, engine, 0)
    hidden = sum(operators > 0 for operators in recorder.hidden)
    assert hidden > 0.7 * len(recorder.hidden) > 7


SABOTAGE = {
    "copies do not wait for computing": (Stream, "wait_stream", lambda self, other: None),
    "computing does not wait for arrivals": (stream.Traffic, "wait", lambda self, landing: None),
    "what leaves is given up at once": (stream.Traffic, "settle", lambda self, keep=0: self.leaving.clear()),
    "copies to the card do not wait for those to the host": (
        Stream,
        "wait_event",
        lambda self, event: None if self.name == "up" else self.learn(event.knows),
    ),
    "the host does not wait": (Stream, "synchronize", lambda self: None),
}


@pytest.mark.parametrize("broken", SABOTAGE.values(), ids=SABOTAGE.keys())
def test_the_checker_finds_what_is_broken_on_purpose(recorder, monkeypatch, broken):
    monkeypatch.setattr(*broken)
    with streamed(recorder, STREAMED["all, previous norm"]) as engine:
        for number in range(2):
            step(recorder, engine, number)
        engine.state_dict()["unet.up.weight"].clone()
    assert recorder.problems
