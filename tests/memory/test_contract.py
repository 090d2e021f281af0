"""The contract of every memory technique, on every family, for full fine-tuning and LoRA: an exact one changes no loss, an
approximate one stays within its tolerance; and any two either work together or are refused by name."""

from __future__ import annotations

import ast
import copy
import itertools
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from small_unet import FusedAdamW, Model, take_step

import trainer.memory
from trainer import memory
from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory import TECHNIQUES
from trainer.models import FAMILIES, STABLE, adapters, family
from trainer.plan.simulate import Tracker
from trainer.policy import AdamHyper
from trainer.settings.config import Lora, Memory
from trainer.step.engine import Engine, Policy

LOW = {"weights": "24bit", "compute": torch.bfloat16}
# what turns a technique on -> (settings, largest relative difference of a loss over three steps; 0: identical)
SETTINGS: dict[str, tuple[dict, float]] = {
    "allocator": ({}, 0.0),
    "attention": ({"attention": "math"}, 1e-5),
    "recompute_kernels": ({"recompute_kernels": True}, 1e-5),
    "channels_last": ({"channels_last": True}, memory.channels_last.TOLERANCE),
    "weights: 24bit": (LOW, memory.weights.TOLERANCE),
    "weights: 16bit_sr": ({"weights": "16bit_sr", "compute": torch.bfloat16}, memory.weights.TOLERANCE),
    "weights: fp16": ({"weights": "24bit", "compute": torch.float16}, memory.weights.TOLERANCE),
    "weights: autocast": ({"compute": torch.bfloat16}, memory.weights.TOLERANCE),
    "moments: 8bit": ({"moments": "8bit"}, memory.moments.TOLERANCE),
    "moments: 4bit": ({"moments": "4bit"}, memory.moments.TOLERANCE),
    "stream: state": ({"stream": "state", "resident_units": 3}, 0.0),
    "stream: all": ({"stream": "all", "checkpointing": "blocks"}, 0.0),
    "checkpointing: selective": ({"checkpointing": "selective"}, 0.0),
    "checkpointing: blocks": ({"checkpointing": "blocks"}, 0.0),
    "boundaries": ({"boundaries": "ram", "checkpointing": "blocks"}, 0.0),
    "clipping: gradients in RAM": ({"gradients": "ram"}, 0.0),
    "clipping: previous": ({"clipping": "previous"}, 0.05),
    "anchor": ({"hyper": AdamHyper(weight_decay=0.0, anchor=10.0)}, 0.05),
    "compile": ({"compile": "blocks"}, memory.compile.TOLERANCE),
    "cuda_graphs": ({"cuda_graphs": True}, 0.0),
    "shard": ({"shard": "state"}, 0.0),
}
# a compiler's minute; a card; several processes: they have tests of their own
COSTLY = {"compile", "cuda_graphs", "shard"}
# the same techniques several at a time, for every family and method; an exact bundle is exact only if each of them is
BUNDLES: dict[str, tuple[dict, float]] = {
    "streamed": (
        {"stream": "all", "resident_units": 3, "checkpointing": "blocks", "boundaries": "ram", "gradients": "ram"},
        0.0,
    ),
    "kept in part": ({"stream": "state", "checkpointing": "selective"}, 0.0),
    "held": ({"stream": "state", "hyper": AdamHyper(weight_decay=0.0, anchor=10.0)}, 0.05),
    "kernels": (
        {"recompute_kernels": True, "attention": "math", "channels_last": True},
        memory.channels_last.TOLERANCE,
    ),
    "24bit, 8bit": (
        LOW | {"moments": "8bit", "checkpointing": "blocks", "clipping": "previous"},
        memory.weights.TOLERANCE,
    ),
    "16bit_sr, 4bit": ({"weights": "16bit_sr", "moments": "4bit", "compute": torch.float16}, memory.weights.TOLERANCE),
}


@cache
def tiny(name: str):
    return family(name).tiny()


def fresh(name: str, method: str):
    """The family's tiny model with a denoiser of its own."""
    parts = replace(tiny(name), denoiser=copy.deepcopy(tiny(name).denoiser), vae=None)
    parts.denoiser.requires_grad_(True)
    if method == "lora":
        adapters.inject(parts, Lora(rank=2))
    return parts


def data(parts, step: int):
    g = torch.Generator().manual_seed(step)
    values = {}
    for name, (shape, dtype) in parts.family.inputs(tiny(parts.family.name), 2, (64, 64), False).items():
        shape = (shape[0], 5, *shape[2:]) if name in ("text", "mask") else shape  # short prompts
        values[name] = torch.randn(shape, generator=g) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
    values["timestep"] = torch.randint(1000, (2,), generator=g).to(values["timestep"].dtype)
    values |= parts.family.extra_values((64, 64), (0, 0), (64, 64), 2)
    return values, torch.randn(values["sample"].shape, generator=g)


def losses(name: str, method: str, policy: Policy) -> torch.Tensor:
    """Three steps of the engine."""
    parts = fresh(name, method)
    undo = memory.prepare(parts.denoiser, policy, "cpu")
    engine, found = Engine(parts.family.units(parts), policy, "cpu"), []
    for step in range(3):
        values, target = data(parts, step)
        result = engine.step([values], lambda prediction, i, t=target: (prediction.float() - t).pow(2).mean(), 1e-3)
        found.append(result.losses[0, 0])
    undo()
    return torch.stack(found)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], torch.Tensor]:
    """Three steps of plain autograd over the unmodified diffusers model."""
    found = {}
    for name, method in KINDS:
        parts, each = fresh(name, method), family(name)
        learning = [p for u in each.units(parts) for p in u.module.parameters() if p.requires_grad]
        optimizer = FusedAdamW(learning, lr=1e-3)
        row = []
        for step in range(3):
            values, target = data(parts, step)
            optimizer.zero_grad(set_to_none=True)
            loss = (each.denoise(parts, values).float() - target).pow(2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0, foreach=False)
            optimizer.step()
            row.append(loss.detach())
        found[name, method] = torch.stack(row)
    return found


KINDS = [(each.name, method) for each in FAMILIES for method in ("full", "lora") if method == "full" or each in STABLE]
EVERYWHERE = [(bundle, *kind) for bundle in BUNDLES for kind in KINDS]
ALONE = [(technique, "sd1", "full") for technique in SETTINGS if technique not in COSTLY]


@pytest.mark.parametrize(("technique", "name", "method"), ALONE + EVERYWHERE, ids=lambda value: value)
def test_a_technique_changes_losses_no_more_than_it_declares(plain, technique, name, method):
    settings, tolerance = (SETTINGS | BUNDLES)[technique]
    if family(name) not in STABLE:
        settings = {
            key: value for key, value in settings.items() if key != "attention"
        }  # transformers have one of their own
    found, expected = losses(name, method, Policy(**settings)), plain[name, method]
    if tolerance == 0:
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, expected, rtol=tolerance), (found, expected)


def test_compiled_blocks_change_losses_no_more_than_declared(plain, monkeypatch):
    monkeypatch.setattr(memory.compile, "BACKEND", "eager")  # what a compiler would generate needs a minute
    settings, tolerance = SETTINGS["compile"]
    found = losses("sd1", "full", Policy(**settings))
    assert torch.allclose(found, plain["sd1", "full"], rtol=tolerance)


def test_the_bundles_leave_no_technique_out():
    policies = [Policy(**settings) for settings, _ in BUNDLES.values()]
    for technique in TECHNIQUES:
        name = technique.__name__.rsplit(".", 1)[1]
        assert name in COSTLY or any(technique.enabled(policy) for policy in policies), name


def test_every_technique_is_under_the_contract_and_has_its_card():
    assert {setting.split(":")[0] for setting in SETTINGS} == {each.__name__.rsplit(".", 1)[1] for each in TECHNIQUES}
    for technique in TECHNIQUES:
        for word in ("Saves:", "Costs:", "Exact:"):
            assert word in technique.__doc__, (technique.__name__, word)
        assert callable(technique.enabled) and callable(technique.check)


def test_every_file_in_memory_is_a_technique_or_says_it_is_not():
    folder = Path(trainer.memory.__file__).parent
    named = {each.__name__.rsplit(".", 1)[1] for each in TECHNIQUES}
    for path in folder.glob("*.py"):
        card = "Saves:" in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        assert card == (path.stem in named), path.name


def merged(first: str, second: str) -> dict | None:
    """Both techniques' settings; None where they are alternatives of one technique."""
    one, other = SETTINGS[first][0], SETTINGS[second][0]
    if any(one[key] != other[key] for key in one.keys() & other.keys() if key not in ("checkpointing", "compute")):
        return None
    kept = {"checkpointing": max((s["checkpointing"] for s in (one, other) if "checkpointing" in s), default="off")}
    return one | other | kept if "checkpointing" in one | other else one | other


PAIRS = [(a, b) for a, b in itertools.combinations([n for n in SETTINGS if n != "compile"], 2) if merged(a, b)]


@pytest.fixture(scope="module")
def small() -> torch.Tensor:
    engine = Engine(Model().units(), Policy(), "cpu")
    return torch.stack([take_step(engine, step).losses[0, 0] for step in range(2)])


@pytest.mark.parametrize("first", [n for n in SETTINGS if n != "compile"])
def test_any_two_techniques_work_together_or_are_refused_by_name(small, first):
    refused = 0
    for a, b in (pair for pair in PAIRS if pair[0] == first):
        policy, tolerance = Policy(**merged(a, b)), max(SETTINGS[a][1], SETTINGS[b][1])
        try:
            memory.check(policy)
        except ConfigError as error:
            refused += 1
            assert error.fix and any(key in error.what for key in merged(a, b)), (a, b, error.what)
            continue
        if policy.cuda_graphs:
            continue  # allowed, and tried on a card
        model = Model()
        engine = Engine(model.units(), policy, "cpu")
        found = torch.stack([take_step(engine, step).losses[0, 0] for step in range(2)])
        assert torch.allclose(found, small, rtol=2 * tolerance, atol=0), (a, b)
    assert refused < len(SETTINGS)


SAVING = {
    "blocks": ({"checkpointing": "blocks"}, {}),
    "selective": ({"checkpointing": "selective"}, {}),
    "boundaries": ({"boundaries": "ram"}, {"checkpointing": "blocks"}),
    "state streamed": ({"stream": "state"}, {}),
    "all streamed": ({"stream": "all"}, {"stream": "state", "checkpointing": "blocks"}),
    "24bit": (LOW, {"compute": torch.bfloat16}),
    "8bit": ({"moments": "8bit"}, {}),
    "4bit": ({"moments": "4bit"}, {"moments": "8bit"}),
    "gradients in RAM": ({"gradients": "ram"}, {"checkpointing": "blocks"}),
    "previous": ({"clipping": "previous"}, {"checkpointing": "blocks"}),
}


def peak(policy: Policy, rows: int) -> int:
    """Bytes on the card at the worst moment of a step, simulated."""
    engine = Engine(Model().to("meta").units(), policy, "meta")
    tracker = Tracker("meta", host.holds)
    for holding in engine.holdings:
        tracker.keep([holding.weights.home, holding.state.home], "weights")
    target = torch.empty(rows, 4, 8, 8, device="meta")
    values = {
        "sample": target,
        "timestep": torch.empty(rows, device="meta"),
        "text": torch.empty(rows, 5, 12, device="meta"),
    }
    with tracker:
        engine.step([values], lambda prediction, i: (prediction.float() - target).pow(2).mean(), 1e-3)
    return tracker.watched().card_peak


@pytest.mark.parametrize("technique", SAVING)
def test_a_technique_that_promises_bytes_saves_some(technique):
    settings, base = SAVING[technique]
    rows = 1 if technique in ("gradients in RAM", "previous") else 32  # where gradients are the peak, or activations
    assert peak(Policy(**base | settings), rows) < peak(Policy(**base), rows)


def test_the_list_of_techniques_names_every_setting_that_is_open_and_says_what_a_policy_made_of_it():
    """What the planner fills, what a refusal blames and what a plan prints are one list."""
    open_settings = {name for name, info in Memory.model_fields.items() if info.default in ("auto", None)}
    assert open_settings - set(memory.fields()) == {
        "vram_gb",
        "vae_tile",
        "cuda_graphs",
    }  # a budget, drawing, and a way to run
    assert set(memory.fields()) <= {field.name for field in fields(Policy)}
    said = memory.choices(Policy(moments="4bit", recompute_kernels=True, resident_units=3))
    assert (said["moments"], said["recompute_kernels"], said["channels_last"]) == ("4bit", "on", "off")
    assert said["resident_units"] is None  # nothing streams
    Memory(**said | memory.choices(Policy(stream="state", resident_units=3)))  # the settings' own words
