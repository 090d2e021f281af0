"""The painter: one object draws for every stage, as the plan allows, with the weights where they are."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from photos import finish

from trainer.data.texts import encode_prompts, token_ids
from trainer.draw import sampler
from trainer.draw.painter import Painter
from trainer.events import PhaseProgress, outcome
from trainer.machine.phase import Phase
from trainer.models import SD1, SDXL
from trainer.policy import Drawing, Policy
from trainer.step.engine import Engine

PROMPTS, SEEDS = ["a photo of sks dog", "a photo of a dog", "a photo of sks dog"], [0, 1, 2]
CPU = torch.device("cpu")


def painter_of(parts, **more):
    texts = finish(encode_prompts(parts, [*PROMPTS, ""], "cpu"))[1]
    return Painter(parts, sampler.Look((64, 64), 2), Drawing(), CPU, texts, **more)


def same(one, other):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(stream="all", checkpointing="blocks")], ids=["on the card", "streamed"]
)
@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_the_engines_weights_draw_what_the_visiting_denoiser_draws(family, policy):
    parts = family.tiny()
    expected = outcome(painter_of(parts).paint(PROMPTS, SEEDS))
    engine = Engine(family.units(parts), policy, "cpu")
    assert same(outcome(painter_of(parts, engine=engine).paint(PROMPTS, SEEDS)), expected)


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_where_the_text_encoder_learns_prompts_are_encoded_by_it_as_it_is_now(family):
    parts = family.tiny()
    cached = painter_of(parts)
    engine = Engine(family.units(parts, text=True), Policy(), "cpu")
    live = replace(cached, texts=token_ids(parts, [*PROMPTS, ""]), engine=engine)
    before = outcome(live.paint(PROMPTS, SEEDS))
    assert same(before, outcome(cached.paint(PROMPTS, SEEDS)))
    learned = {name: value + 0.1 for name, value in engine.master() if name.startswith("text.")}
    engine.load_master(dict(engine.master()) | learned)
    assert not same(outcome(live.paint(PROMPTS, SEEDS)), before)


def test_the_state_makes_room_while_latents_are_drawn_and_decoded_and_only_where_the_plan_wants_it(monkeypatch):
    parts = SD1.tiny()
    engine, seen = Engine(SD1.units(parts), Policy(), "cpu"), []

    @contextmanager
    def parked():
        seen.append("out")
        yield
        seen.append("back")

    monkeypatch.setattr(engine, "parked", parked)
    parts.vae.decoder.register_forward_hook(lambda *_: seen.append("decoded"))
    painter = painter_of(parts, engine=engine)
    stays = outcome(painter.paint(PROMPTS[:1], SEEDS[:1]))
    assert seen == ["decoded"]
    waits = outcome(replace(painter, drawing=Drawing(park=True)).paint(PROMPTS[:1], SEEDS[:1]))
    assert seen == ["decoded", "out", "decoded", "back"] and same(stays, waits)


def test_the_plans_batch_bounds_how_many_are_drawn_at_a_time_and_progress_counts_pictures(monkeypatch):
    parts, sizes = SD1.tiny(), []
    hook = parts.denoiser.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    painter, phase = painter_of(parts), Phase("sample", CPU)
    phase.start(3 * 2)
    events, latents = finish(_latents(replace(painter, drawing=Drawing(batch=2)), phase))
    hook.remove()
    assert sizes == [4, 4, 2, 2]  # with guidance each picture is two rows
    assert [event.done for event in events if isinstance(event, PhaseProgress)] == [2, 4, 5, 6]
    assert latents.shape == (3, 4, 8, 8)


def _latents(painter, phase):
    with painter.on_card(PROMPTS) as brush:
        return (yield from brush.latents(PROMPTS, SEEDS, phase))


def test_decoding_in_bf16_leaves_the_vae_in_fp32():
    parts = SD1.tiny()
    latents, painter = sampler.noise_of([0], (4, 8, 8)), painter_of(parts)
    exact = painter.pictures(latents)[0]
    rough = replace(painter, drawing=Drawing(vae_dtype=torch.bfloat16)).pictures(latents)[0]
    assert parts.vae.dtype == torch.float32
    difference = np.abs(np.asarray(exact, dtype=int) - np.asarray(rough, dtype=int))
    assert 0 < difference.mean() < 3


def test_the_plans_precision_of_the_denoiser_is_what_it_visits_in():
    parts = SD1.tiny()
    with replace(painter_of(parts), drawing=Drawing(denoiser_dtype=torch.bfloat16)).on_card(PROMPTS) as brush:
        assert brush.denoiser.dtype == torch.bfloat16
    assert parts.denoiser.dtype == torch.float32


def test_a_way_of_drawing_survives_json():
    for drawing in (Drawing(), Drawing(2, 256, torch.bfloat16, torch.float16, True)):
        assert Drawing.from_json(drawing.as_json()) == drawing
