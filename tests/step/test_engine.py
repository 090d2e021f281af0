"""The schedule over units against plain autograd over the whole model: equal bit for bit in fp32 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_unet import Model, batch, take_step, train, train_plainly
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory.stream import Traffic
from trainer.models import SD1
from trainer.plan.simulate import Tracker
from trainer.step.engine import Engine, Policy
from trainer.step.residency import Holding
from trainer.units import Unit

RESIDENCIES = {
    "everything kept": {},
    "selective": {"checkpointing": "selective"},
    "recomputed": {"checkpointing": "blocks"},
    "gradients in RAM": {"gradients": "ram"},
    "state streamed": {"stream": "state"},
    "state streamed, three units resident": {"stream": "state", "resident_units": 3},
    "everything streamed": {"checkpointing": "blocks", "stream": "all", "gradients": "ram"},
    "everything streamed, boundaries in RAM": {
        "checkpointing": "blocks",
        "stream": "all",
        "boundaries": "ram",
        "gradients": "ram",
    },
    "boundaries in RAM, two units resident": {
        "checkpointing": "blocks",
        "boundaries": "ram",
        "stream": "all",
        "resident_units": 2,
    },
}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[int, int], tuple]:
    return {(steps, count): train_plainly(steps, count) for steps, count in ((20, 2), (3, 1), (3, 2))}


@pytest.mark.parametrize("choices", ["everything kept", "everything streamed, boundaries in RAM"])
def test_twenty_steps_equal_autograd_with_torch_adamw_bit_for_bit(plain, choices):
    losses, weights, _ = train(Policy(**RESIDENCIES[choices]), 20, count=2)
    expected_losses, expected_weights, _ = plain[20, 2]
    assert torch.equal(losses, expected_losses)
    assert equal(weights, expected_weights)


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("choices", RESIDENCIES.values(), ids=RESIDENCIES.keys())
def test_every_residency_equals_autograd_bit_for_bit(plain, choices, count):
    losses, weights, _ = train(Policy(**choices), 3, count=count)
    expected_losses, expected_weights, _ = plain[3, count]
    assert torch.equal(losses, expected_losses)
    assert equal(weights, expected_weights)


def test_updates_inside_backward_equal_autograd_where_nothing_is_clipped():
    losses, weights, _ = train(Policy(max_grad_norm=0.0, checkpointing="blocks"), 3, count=2)
    expected_losses, expected_weights, _ = train_plainly(3, count=2, max_grad_norm=0.0)
    assert torch.equal(losses, expected_losses) and equal(weights, expected_weights)


def test_the_reported_norm_is_the_one_before_clipping():
    norms = train_plainly(steps=3, max_grad_norm=0.05)[2]
    engine = Engine(Model().units(), Policy(max_grad_norm=0.05), "cpu")
    assert [float(take_step(engine, step).grad_norm) for step in range(3)] == norms.tolist()
    assert norms.min() > 0.05


def test_clipping_by_the_previous_norm_differs_but_stays_close():
    exact, previous = (train(Policy(clipping=kind, max_grad_norm=0.2), steps=4)[0] for kind in ("exact", "previous"))
    assert torch.equal(exact[0], previous[0]) and not torch.equal(exact, previous)
    assert torch.allclose(exact, previous, rtol=0.05)


def test_a_trained_text_encoder_equals_autograd_too():
    losses, weights, _ = train(Policy(checkpointing="blocks"), steps=2, text=True)
    expected_losses, expected_weights, _ = train_plainly(steps=2, text=True)
    assert torch.equal(losses, expected_losses) and equal(weights, expected_weights)


def test_what_has_no_learning_rate_is_frozen_and_costs_no_backward():
    engine = Engine(Model().units(text=True), Policy(), "cpu")
    before = {name: value.clone() for name, value in engine.master()}
    take_step(engine, 0, lr={"unet": 1e-2}, text=True)
    moved = {name.split(".")[0] for name, value in engine.master() if not torch.equal(value, before[name])}
    assert moved == {"unet"}
    assert 0 not in engine.routes[next(iter(engine.routes))].backward


@pytest.mark.parametrize("choices", RESIDENCIES.values(), ids=RESIDENCIES.keys())
def test_a_step_at_rate_zero_changes_nothing_and_the_one_after_it_is_the_first(choices):
    plain, warmed = (Engine(Model().units(), Policy(**choices), "cpu") for _ in range(2))
    take_step(warmed, 7, lr=0.0)
    for step in range(2):
        for engine in (plain, warmed):
            take_step(engine, step)
    assert equal(dict(warmed.master()), dict(plain.master()))


@pytest.mark.parametrize("choices", RESIDENCIES.values(), ids=RESIDENCIES.keys())
def test_a_rate_of_zero_between_steps_is_no_step_either(choices):
    plain, paused = (Engine(Model().units(), Policy(**choices), "cpu") for _ in range(2))
    for engine in (plain, paused):
        take_step(engine, 0)
    take_step(paused, 7, lr=0.0)
    for engine in (plain, paused):
        take_step(engine, 1)
    assert equal(dict(paused.master()), dict(plain.master()))


def test_a_frozen_denoiser_passes_gradients_to_the_text_encoder():
    engine = Engine(Model().units(text=True), Policy(checkpointing="blocks"), "cpu")
    before = {name: value.clone() for name, value in engine.master()}
    take_step(engine, 0, lr={"text": 1e-2}, text=True)
    moved = {name.split(".")[0] for name, value in engine.master() if not torch.equal(value, before[name])}
    assert moved == {"text"}


@pytest.mark.parametrize(
    "choices", [{}, {"checkpointing": "blocks", "stream": "all", "boundaries": "ram"}], ids=["kept", "streamed"]
)
def test_parameters_that_do_not_require_gradients_are_never_touched(choices):
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("conv2" in name)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, weights, _ = train(Policy(**choices), steps=3, model=model)
    assert weights and all("conv2" in name for name in weights)
    after = dict(model.named_parameters())
    assert all(torch.equal(before[n], after[n]) == ("conv2" not in n) for n in before)


def test_dropout_draws_the_same_numbers_when_a_unit_runs_again():
    results = []
    for checkpointing in ("off", "blocks"):
        torch.manual_seed(5)
        model = Model(dropout=0.3)
        torch.manual_seed(7)
        engine = Engine(model.units(), Policy(checkpointing=checkpointing), "cpu")
        result = [take_step(engine, step, count=2) for step in range(3)]
        results.append((torch.cat([r.losses for r in result]), torch.stack([r.grad_norm for r in result])))
    assert torch.equal(results[0][0][:2], results[1][0][:2])
    assert torch.equal(results[0][1][:1], results[1][1][:1])


MEASURED = {
    "one pass": Policy(max_grad_norm=0.0),
    "two passes": Policy(),
    "low-bit": Policy(weights="24bit", moments="8bit", compute=torch.bfloat16),
    "fp16, streamed": Policy("24bit", "8bit", torch.float16, "blocks", "ram", "all", gradients="ram"),
    "another optimizer": Policy(optimizer="adafactor"),
}


@pytest.mark.parametrize("policy", MEASURED.values(), ids=MEASURED)
def test_measuring_without_updating_changes_nothing(policy):
    engine = Engine(Model().units(), policy, "cpu")
    for step in range(2):  # before the first step, and between steps
        before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
        result = take_step(engine, step, update=False)
        after = engine.state_dict()
        assert float(result.grad_norm) > 0
        assert all(torch.equal(before[n], after[n]) or (before[n].isnan() & after[n].isnan()).all() for n in before)
        take_step(engine, step)
        changed = [n for n, tensor in engine.state_dict().items() if n in before and not torch.equal(before[n], tensor)]
        assert any(name.endswith("weight") for name in changed)


@pytest.mark.parametrize("policy", [MEASURED["two passes"], MEASURED["low-bit"], MEASURED["fp16, streamed"]])
def test_measuring_without_updating_takes_the_memory_of_a_step(policy):
    """Else a probe would tell of a smaller step than the one that follows."""

    def peak(**how: bool) -> int:
        engine, tracker = Engine(Model().units(), policy, "cpu"), Tracker("cpu", host.holds)
        with tracker:
            take_step(engine, 0, **how)
        return tracker.watched().card_peak

    assert peak(update=False) == pytest.approx(peak(), rel=0.01)


@pytest.mark.parametrize("stream", ["off", "all"])
def test_previews_equal_the_model_and_need_no_text_units_when_text_is_given(stream):
    model, values = Model(), batch(3)[0]
    expected = model(values).detach()
    engine = Engine(model.units(text=True), Policy(stream=stream, checkpointing="blocks"), "cpu")
    assert torch.equal(engine.forward(values), expected)
    ids = torch.arange(6).view(1, 6)
    assert torch.equal(engine.forward({"input_ids": ids}, "text"), model.words(ids))


def test_the_stand_in_answers_a_pipeline():
    class Unet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"sample_size": 8}

    engine = Engine(Model().units(), Policy(weights="24bit", checkpointing="blocks", stream="all"), "cpu")
    stand_in, values = engine.as_module(Unet(), SD1), batch(1)[0]
    assert stand_in.config["sample_size"] == 8 and stand_in.dtype == torch.bfloat16
    out = stand_in(values["sample"], torch.tensor(500), encoder_hidden_states=values["text"], return_dict=False)[0]
    assert out.shape == values["sample"].shape and out.dtype == torch.float32
    assert torch.equal(stand_in(values["sample"], 500, values["text"]).sample, out)


LOW = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, checkpointing="blocks")


@pytest.mark.parametrize(
    "choices",
    [
        {"stream": "state"},
        {"stream": "all", "boundaries": "ram", "gradients": "ram"},
        {"stream": "state", "resident_units": 4, "gradients": "ram"},
    ],
    ids=str,
)
@pytest.mark.parametrize("formats", [("24bit", "8bit"), ("16bit_sr", "4bit")], ids=str)
def test_low_bit_training_is_the_same_bit_for_bit_wherever_the_bytes_live(choices, formats):
    policy = replace(LOW, weights=formats[0], moments=formats[1])
    resident, streamed = (train(p, steps=2, count=2) for p in (policy, replace(policy, **choices)))
    assert torch.equal(resident[0], streamed[0]) and equal(resident[1], streamed[1])


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_24_bits_follow_fp32_where_16_bits_would_not_move(compute):
    lr = 2e-6
    exact = train(Policy(), steps=12, lr=lr)[1]
    low = train(replace(LOW, compute=compute), steps=12, lr=lr)[1]
    start = {name: p.detach() for u in Model().units() for name, p in u.module.named_parameters()}
    ours = torch.cat([(low[n] - start[n]).flatten() for n in exact])
    theirs = torch.cat([(exact[n] - start[n]).flatten() for n in exact])
    assert float((ours - theirs).norm() / theirs.norm()) < 0.5
    stored = torch.cat([(start[n].to(compute).float() - start[n]).flatten() for n in exact])
    assert float(theirs.norm() / stored.norm()) < 1  # the whole update is below 16-bit resolution


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale():
    engine = Engine(Model().units(), replace(LOW, compute=torch.float16), "cpu")
    engine.updates.scale.factor.fill_(2.0**40)
    before = {name: value.clone() for name, value in engine.master()}
    result = take_step(engine, 0)
    assert not torch.isfinite(result.grad_norm)
    assert equal(dict(engine.master()), before)
    assert float(engine.updates.scale.factor) == 2.0**39
    engine.updates.scale.factor.fill_(2.0**8)
    assert torch.isfinite(take_step(engine, 1).grad_norm)
    assert not equal(dict(engine.master()), before)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Policy(), Policy(stream="state")),
        (LOW, replace(LOW, stream="all", boundaries="ram")),
        (replace(LOW, compute=torch.float16), replace(LOW, compute=torch.float16)),
    ],
    ids=["fp32", "low bits", "fp16"],
)
def test_resuming_from_a_state_dict_is_exact_even_with_another_residency(first, second):
    _, weights, _ = train(first, steps=4)
    engine = train(first, steps=2)[2]
    saved = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    resumed = Engine(Model(seed=9).units(), second, "cpu")
    resumed.load_state_dict(saved)
    for step in range(2, 4):
        take_step(resumed, step)
    assert equal(dict(resumed.master()), weights)


def test_a_checkpoint_with_other_formats_is_refused_with_the_way_out():
    saved = Engine(Model().units(), LOW, "cpu").state_dict()
    with pytest.raises(ConfigError, match="Resume with weights"):
        Engine(Model().units(), replace(LOW, moments="4bit"), "cpu").load_state_dict(saved)


def test_master_weights_survive_a_round_trip():
    engine = train(LOW, steps=2)[2]
    weights = {name: value.clone() for name, value in engine.master()}
    other = Engine(Model(seed=3).units(), LOW, "cpu")
    other.load_master(weights)
    assert equal(dict(other.master()), weights)


def test_parking_frees_the_state_and_changes_nothing():
    engine = train(LOW, steps=2)[2]
    twin = train(LOW, steps=2)[2]
    with engine.parked():
        values = batch(5)[0]
        assert torch.equal(engine.forward(values), twin.forward(values))
    for each in (engine, twin):
        take_step(each, 2)
    assert equal(dict(engine.master()), dict(twin.master()))


class Waits(TorchDispatchMode):
    """Fails where the host would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
        assert "nonzero" not in func._schema.name, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        replace(LOW, compute=torch.float16),
        replace(LOW, stream="all", boundaries="ram", gradients="ram"),
        replace(LOW, clipping="previous"),
    ],
    ids=["plain", "fp16", "streamed", "previous"],
)
def test_nothing_in_a_step_waits_for_the_device(policy):
    engine = Engine(Model().units(), policy, "cpu")
    with Waits():
        take_step(engine, 0, count=2)


@pytest.mark.parametrize("stream", ["off", "all"])
def test_a_step_runs_on_meta_tensors_and_books_host_memory_as_such(stream):
    policy = replace(LOW, stream=stream, boundaries="ram" if stream == "all" else "card")
    engine = Engine(Model().to("meta").units(), policy, "meta")
    values, target = ({n: v.to("meta") for n, v in batch(0)[0].items()}, batch(0)[1].to("meta"))
    engine.step([values], lambda prediction, i: (prediction.float() - target).pow(2).mean(), 1e-6)
    assert (engine.bytes["host"] > 0) == (stream == "all")
    assert (engine.bytes["weights"] > 0) == (stream == "off")


PAIR = {"weights": "24bit", "moments": "8bit"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_24_bit_weight_is_any_fp16_file_s_weight_exactly(dtype):
    """All 63,488 finite values, subnormals included."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    assert len(every) == 63488
    module = torch.nn.Linear(len(every), 1, bias=False).half()
    module.weight.data = every[None].clone()
    holding = Holding(Unit("unet.x", module, ("x",), ("y",), module), Policy(compute=dtype, **PAIR), Traffic(torch.device("cpu")),
                      weights_stay=True, state_stays=True)  # fmt: skip
    ((_, master),) = holding.master()
    assert torch.equal(master.view(-1).view(torch.int32), every.float().view(torch.int32))


@pytest.mark.parametrize("policy", [Policy(), Policy(compute=torch.bfloat16, **PAIR), Policy(channels_last=True)],
                         ids=["fp32", "24bit", "channels last"])  # fmt: skip
def test_weights_in_16_bits_are_taken_over_as_the_numbers_they_are(policy):
    half, wide = Model(), Model()
    for ours, theirs in zip(half.parameters(), wide.parameters(), strict=True):
        ours.data = ours.data.half()
        theirs.data = ours.data.float()
    engines = [Engine(model.units(), policy, "cpu") for model in (half, wide)]
    for step in range(2):
        losses = [take_step(engine, step).losses for engine in engines]
        assert torch.equal(*losses)
    assert equal(*(engine.state_dict() for engine in engines))


def test_the_engine_lays_convolutions_out_channels_last_whatever_order_they_came_in():
    states = []
    for before in (False, True):
        model = Model()
        if before:
            model.to(memory_format=torch.channels_last)
        engine = Engine(model.units(), Policy(channels_last=True), "cpu")
        kernels = [p for p in model.parameters() if p.dim() == 4]
        assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        states.append({name: tensor for name, tensor in engine.state_dict().items() if not name.startswith("engine.")})
    assert equal(*states)
