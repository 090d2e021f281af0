"""Streaming without a card: the engine's real step on real numbers, its copies on recorded streams, every access checked.

A stream here is a clock. Each operator that the step runs (forward, backward, update and copy) is an access to storages by
the stream that is current; waiting for an event or a stream hands knowledge on (vector clocks). Two accesses to the same
bytes, one of them a write, must be ordered by such knowledge. Memory of the card may be given up only when the computing
stream, to which the allocator hands it out again, knows of every access, and memory of the host when the host does. A stream
is current in its thread and on its card, as torch has it: backward runs in a thread of autograd's, whoever asks without
naming the engine's card gets another one's stream, and a thread that nobody prepared has the default one. What CUDA leaves to
chance is thus an error in every run.
"""

from __future__ import annotations

import random
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from policies import STREAMED
from small_unet import Model, batch, holder, take_step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import memory
from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory import stream
from trainer.memory.clipping import Waiting
from trainer.step.engine import Engine, Policy
from trainer.step.gradients import Gradients
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
        self.first_card, self.default = Stream("the first card", self), Stream("default", self)
        self.threads, self.in_step = threading.local(), False
        self.threads.current = self.computing
        self.storages: dict[int, Storage] = {}
        self.problems: list[str] = []
        self.hidden: list[int] = []

    @property
    def current(self) -> Stream:
        return getattr(self.threads, "current", self.default)

    def current_stream(self, device: torch.device | None = None) -> Stream:
        """As torch's. The engine's card, which the tests call "cpu", is not the one that is current."""
        return self.current if device == torch.device("cpu") else self.first_card

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
        """The memory may be handed out again at once: a card's to whatever the computing stream does next, the host's to
        whatever the host does."""
        storage = self.storages.pop(key)
        whose, heir = ("host memory", self.host) if storage.host else ("memory", self.computing)
        for name, when in [*storage.reads.items(), *([storage.write] if storage.write else [])]:
            if heir.knows.get(name, 0) < when:
                self.problems.append(f"{whose} is given up while {name} may still use it")

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        for key in self._known([tensor]):
            self.storages[key].host = True
        return tensor

    @contextmanager
    def on(self, stream: Stream):
        before, self.threads.current = self.current, stream
        try:
            yield
        finally:
            self.threads.current = before

    def backward(self, plain):
        """`plain` backward as on a card, in a thread of autograd's, which works on the stream of the forward."""

        def threaded(*args, **kwargs) -> None:
            failed = []

            def run() -> None:
                try:
                    with self, self.on(stream):
                        plain(*args, **kwargs)
                except BaseException as error:  # for the thread that waits
                    failed.append(error)

            stream, thread = self.current, threading.Thread(target=run)
            thread.start()
            thread.join()
            if failed:
                raise failed[0]

        return threaded


@pytest.fixture
def recorder(monkeypatch):
    made, empty = Recorder(), host.empty
    Event.recorder = made
    monkeypatch.setattr(host, "empty", lambda *args: made.pin(empty(*args)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    monkeypatch.setattr(torch.cuda, "current_stream", made.current_stream)
    monkeypatch.setattr(torch.autograd, "backward", made.backward(torch.autograd.backward))
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


CLIPPED = {
    f"{name}, clipped": replace(policy, max_grad_norm=0.02) for name, policy in STREAMED.items() if policy.early_updates
}


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("policy", (STREAMED | CLIPPED).values(), ids=(STREAMED | CLIPPED).keys())
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


def drawn(seed: int) -> Policy:
    """A policy that could be asked for and that streams something."""
    draw = random.Random(seed)
    while True:
        policy = Policy(
            weights=draw.choice(["fp32", "24bit", "16bit_sr"]),
            moments=draw.choice(["fp32", "8bit", "4bit"]),
            compute=draw.choice([torch.float32, torch.bfloat16, torch.float16]),
            checkpointing=draw.choice(["off", "selective", "blocks", "blocks"]),
            stream=draw.choice(["off", "state", "all"]),
            boundaries=draw.choice(["card", "ram"]),
            gradients=draw.choice(["card", "ram"]),
            clipping=draw.choice(["exact", "previous"]),
            max_grad_norm=draw.choice([0.0, 0.02, 1.0]),
            resident_units=draw.choice([0, 0, 1, 3]),
            early_updates=draw.random() < 0.3,
            reach_mb=draw.choice([0, 1, 64]),
            recompute_kernels=draw.random() < 0.5,
            channels_last=draw.random() < 0.5,
        )
        low = policy.weights != "fp32" and policy.compute == torch.float32
        if low or (policy.stream, policy.boundaries, policy.gradients) == ("off", "card", "card"):
            continue
        try:
            memory.check(policy)
        except ConfigError:
            continue
        return policy


def any_steps(recorder: Recorder, seed: int) -> Engine:
    """Steps by a drawn policy, as a run may take them: of any size, with looks between. Returns whose
    memory is still in use."""
    draw = random.Random(seed + 1)
    with streamed(recorder, drawn(seed), Model().units(text=True)) as engine:
        for number in range(4):
            rows, update = draw.choice([1, 2, 3]), draw.random() < 0.8
            step(recorder, engine, number, draw.choice([1, 1, 2, 3]), text=True, rows=rows, update=update)
            look = draw.choice([None, engine.state_dict, engine.flush, lambda: engine.forward(batch(3)[0])])
            if look is not None:
                look()
    return engine


@pytest.mark.parametrize("seed", range(16))
def test_no_policy_that_chance_draws_races_with_anything(recorder, seed):
    engine = any_steps(recorder, seed)
    assert recorder.problems == [], engine.policy
    assert {"up", "down"} & recorder.computing.knows.keys(), "nothing was streamed: the test would see nothing"


def test_both_lanes_are_of_their_engines_card(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "Stream", asked.append)
    stream.Traffic(torch.device("cuda", 3))
    assert asked == [torch.device("cuda", 3)] * 2


def in_a_thread(run):
    """`run` of a method, in a thread that nobody prepared."""

    def aside(self) -> None:
        def work() -> None:
            with Event.recorder:
                run(self)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    return aside


def brought_and_dropped(bring):
    """Waiting.bring that gives up the host's copy once it is on its way."""

    def dropped(self, index: int) -> None:
        bring(self, index)
        self.shelf.pop(index, None)

    return dropped


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
    "host memory is given up while its copy is under way": (Waiting, "bring", brought_and_dropped(Waiting.bring)),
    "another card's stream waits for arrivals": (
        stream.Traffic,
        "wait",
        lambda self, landing: landing is None or torch.cuda.current_stream().wait_event(landing),
    ),
    "weights change before they are remembered": (stream.Block, "change", lambda self: None),
    "gradients are put together in a thread of their own": (Gradients, "copy", in_a_thread(Gradients.copy)),
}


@pytest.mark.parametrize("broken", SABOTAGE.values(), ids=SABOTAGE.keys())
def test_the_checker_finds_what_is_broken_on_purpose(recorder, monkeypatch, broken):
    monkeypatch.setattr(*broken)
    for name in ("all, previous norm", "all", "state, early updates"):
        with streamed(recorder, STREAMED[name]) as engine:
            for number in range(2):
                step(recorder, engine, number)
            engine.state_dict()["unet.up.weight"].clone()
    assert recorder.problems


@pytest.mark.parametrize("broken", SABOTAGE.values(), ids=SABOTAGE.keys())
def test_what_is_broken_on_purpose_is_found_under_policies_that_chance_draws(recorder, monkeypatch, broken):
    monkeypatch.setattr(*broken)
    assert any(any_steps(recorder, seed) and recorder.problems for seed in range(16))
