"""What a plan is made for: a card that is here is asked, one that is named is believed, and what is neither is said."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from trainer.kernels import choice

from trainer.errors import ConfigError
from trainer.machine import convolutions, vitals
from trainer.models import family
from trainer.plan import calibration, cards
from trainer.plan.calibration import ASSUMED, GIB, MIB
from trainer.plan.here import learned
from trainer.plan.here.learned import convolved
from trainer.plan.inputs import Machine, assumptions, at_hand, budget_bytes, smallest, unlike
from trainer.settings import overlay

MARGIN = int(calibration.MARGIN_BYTES.amount)


@pytest.mark.parametrize(
    "capability,named,computes",
    [
        ((7, 5), None, False),  # a GTX 1660, whatever its name
        ((7, 5), "RTX 3060", False),  # a name gives no card units that it does not have
        ((8, 9), None, True),
        ((8, 9), "RTX 2070", False),  # planning for another card than the one that is here
        ((12, 0), None, True),
        (None, "RTX 2070", False),
        (None, None, True),  # assumed, and said
    ],
)
def test_capability_decides_about_bf16_and_never_a_name_alone(capability, named, computes):
    card = cards.find(named) if named else None
    assert Machine("cuda", card, capability=capability).bf16 is computes


def test_without_a_card_the_plan_says_that_bf16_is_assumed():
    config = overlay.load({})
    (said,) = assumptions(config, Machine("cuda"), torch.bfloat16)
    assert "bf16 is assumed" in said and "--card" in said
    assert assumptions(config, Machine("cuda"), torch.float16) == ()
    assert assumptions(config, Machine("cuda", capability=(8, 6)), torch.bfloat16) == ()
    assert assumptions(overlay.load({"run.card": "RTX 3060"}), Machine("cuda"), torch.bfloat16) == ()
    assert assumptions(config, Machine("cpu"), torch.float32) == ()


def test_the_budget_is_what_is_free_where_a_preset_asks_for_more_and_one_line_says_what_took_the_rest():
    config, total = overlay.load({"preset": "12gb"}), 12 * GIB
    here = Machine("cuda", None, 9 * GIB, 8 * GIB, total, (8, 6))
    assert budget_bytes(config, here) == 9 * GIB - MARGIN
    (said,) = assumptions(config, here, torch.bfloat16)
    assert "only 9.00 GiB are free" in said and "hold 3.00 GiB" in said


def test_a_preset_smaller_than_what_is_free_stays_and_nothing_is_said():
    config = overlay.load({"preset": "6gb"})
    here = Machine("cuda", None, 9 * GIB, 8 * GIB, 12 * GIB, (8, 6))
    assert budget_bytes(config, here) == int(config.memory.vram_gb * GIB)
    assert assumptions(config, here, torch.bfloat16) == ()


def test_without_a_preset_the_budget_is_what_is_free_less_the_margin():
    assert budget_bytes(overlay.load({}), Machine("cuda", None, 9 * GIB)) == 9 * GIB - MARGIN
    assert budget_bytes(overlay.load({}), Machine("cuda")) is None
    assert budget_bytes(overlay.load({}), Machine("cpu", None, 9 * GIB)) is None


def test_an_estimated_speed_says_what_it_was_estimated_from():
    card = cards.estimated(cards.Device("NVIDIA GeForce RTX 6060", (12, 0), 30, 8 << 30, 2500, 450))
    (said,) = assumptions(overlay.load({}), Machine("cuda", card, capability=(12, 0)), torch.bfloat16)
    assert "RTX 6060" in said and "multiprocessors" in said


def test_a_card_whose_fp16_convolutions_give_no_numbers_computes_in_fp32_and_says_so():
    broken = Machine("cuda", capability=(7, 5), convolutions="none")
    assert broken.computes == torch.float32
    (said,) = assumptions(overlay.load({}), broken, torch.float32)
    assert "give no numbers" in said and "fp32" in said
    mended = Machine("cuda", capability=(7, 5), convolutions="benchmark")
    assert mended.computes == torch.float16
    (said,) = assumptions(overlay.load({}), mended, torch.float16)
    assert "benchmark mode" in said and "fp32" not in said


def test_a_plan_for_a_named_gtx_16_says_that_its_fp16_is_only_tried_when_it_is_here():
    config, named = overlay.load({"run.card": "GTX 1660"}), cards.find("GTX 1660")
    (said,) = assumptions(config, Machine("cuda", named), torch.float16)
    assert "GTX 1660" in said and "fp32" in said
    assert assumptions(config, Machine("cuda", named, capability=(7, 5)), torch.float16) == ()  # it has been tried
    assert assumptions(config, Machine("cuda", cards.find("RTX 2070")), torch.float16) == ()


def test_the_convolutions_that_are_tried_are_those_of_the_run():
    facts = family("sd1").public()
    config = overlay.load({"train.train_batch_size": 3, "data.resolution": 384})
    shapes = [*convolved(config, facts)]
    assert (shapes[0].rows, shapes[0].channels, shapes[0].height) == (6, 320, 48)  # three photos and their class images
    assert (shapes[-1].channels, shapes[-1].width) == (1280, 6)
    del facts.configs["unet"]["block_out_channels"]
    assert not [*convolved(config, facts)], "a denoiser without levels of channels convolves nothing there"


@pytest.fixture
def driver(monkeypatch):
    """Puts a card into the machine, as torch would describe it; 7 GiB of its 8 are free, for whoever asks about card 1."""

    def put(name: str, capability: tuple[int, int], own: int | None = None, **more: int) -> None:
        said = SimpleNamespace(
            name=name, major=capability[0], minor=capability[1], multi_processor_count=30, total_memory=8 * GIB, **more
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: {1: said}[index])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: {1: (7 * GIB, 8 * GIB)}[index])
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: {1: 0}[index])
        monkeypatch.setattr(vitals, "own_bytes", lambda device: {CARD: own}[device])
        monkeypatch.setattr(choice, "trial", lambda index: {1: ""}[index])
        monkeypatch.setattr(learned, "learn", lambda config, facts, device, dtype: {CARD: ASSUMED}[device])

    return put


CARD = torch.device("cuda", 1)
CONTEXT = int(calibration.CONTEXT_BYTES.amount)


def test_an_unknown_card_that_is_here_is_planned_by_what_its_driver_says(driver):
    driver("NVIDIA GeForce RTX 6060", (12, 0), clock_rate=2_500_000, memory_clock_rate=14_000_000, memory_bus_width=128)
    config = overlay.load({"preset": "8gb"})
    machine = at_hand(config, CARD)
    assert machine.bf16 and machine.computes == torch.bfloat16 and machine.free_vram_bytes == 7 * GIB + CONTEXT
    assert machine.card.tflops == pytest.approx(30 * 512 * 2 * 2500 / 1e6 / 2) and machine.card.bandwidth == 448
    assert budget_bytes(config, machine) == 7 * GIB + CONTEXT - MARGIN
    said = " ".join(assumptions(config, machine, machine.computes))
    assert "30 multiprocessors at 2500 MHz" in said and "GiB are free" in said and "bf16 is assumed" not in said


@pytest.mark.parametrize("way,computes", [("plain", torch.float16), ("none", torch.float32)])
def test_an_unknown_card_without_bf16_computes_in_fp16_where_the_run_s_convolutions_come_out_right(
    driver, monkeypatch, way, computes
):
    driver("NVIDIA GeForce GTX 1670", (7, 5))
    tried = []
    monkeypatch.setattr(convolutions, "trial", lambda shapes, device: tried.append((shapes[0].height, device)) or way)
    machine = at_hand(overlay.load({"data.resolution": 384}), CARD, family("sd1").public())
    assert not machine.bf16 and machine.computes == computes and tried == [(48, CARD)]


def test_fp16_that_was_asked_for_and_gives_no_numbers_is_refused(driver, monkeypatch):
    driver("NVIDIA GeForce GTX 1660", (7, 5))
    monkeypatch.setattr(convolutions, "trial", lambda shapes, device: "none")
    with pytest.raises(ConfigError) as refused:
        at_hand(overlay.load({"train.mixed_precision": "fp16"}), CARD, family("sd1").public())
    assert "GTX 1660" in refused.value.what and "--mixed_precision" in refused.value.fix


def test_a_card_that_was_measured_is_planned_with_its_own_numbers_and_the_plan_says_which(driver, monkeypatch):
    driver("NVIDIA GeForce RTX 6060", (12, 0))
    asked = []
    seen = replace(
        ASSUMED,
        context=calibration.Value(CONTEXT + 100 * MIB, True, "", here=True),
        flops=calibration.Value(50e12, True, "", here=True),
        date="27 November 2026",
    )
    monkeypatch.setattr(learned, "learn", lambda config, facts, device, dtype: asked.append((device, dtype)) or seen)
    config, facts = overlay.load({"preset": "8gb"}), family("sd1").public()
    machine = at_hand(config, CARD, facts)
    assert asked == [(CARD, torch.bfloat16)] and machine.constants == seen
    assert machine.free_vram_bytes == 7 * GIB + CONTEXT + 100 * MIB, "which this process holds already"
    said = " ".join(assumptions(config, machine, machine.computes))
    assert "Measured on this card (27 November 2026): context 0.52 GiB, arithmetic 50 TFLOP/s." in said
    assert "Assumed: workspaces, the allocator's share, the bus" in said
    assert "is estimated" not in said, "its speed was measured"
    driver("NVIDIA GeForce RTX 6060", (12, 0), own=800 * MIB)
    monkeypatch.setattr(learned, "learn", lambda config, facts, device, dtype: seen)
    assert at_hand(config, CARD, facts).free_vram_bytes == 7 * GIB + 800 * MIB, "the driver knows better"
    config.run.card = "RTX 3060"
    assert at_hand(config, CARD, facts).constants == ASSUMED, "another card than the one that is here"


def test_a_search_for_algorithms_is_said_where_shapes_stay_the_same():
    machine = Machine("cuda", cards.find("RTX 3060"), constants=replace(ASSUMED, searches=True), capability=(8, 6))
    config = overlay.load({"preset": "8gb", "data.buckets": False})
    assert "cuDNN searches" in " ".join(assumptions(config, machine, torch.bfloat16))
    config.data.buckets = True
    assert "cuDNN searches" not in " ".join(assumptions(config, machine, torch.bfloat16))


@pytest.mark.parametrize(
    "refusal",
    [
        ConfigError("cuda:1 could not be measured: it took more than 120 s", "wait"),
        torch.OutOfMemoryError("cuda:1 could not be measured: it took more than 120 s\nand more"),
        OSError("cuda:1 could not be measured: it took more than 120 s."),
    ],
    ids=["refused", "no memory", "a library"],
)
def test_a_card_that_cannot_be_measured_is_planned_as_before_and_that_is_said(driver, monkeypatch, refusal):
    def refuse(*words):
        raise refusal

    driver("NVIDIA GeForce RTX 6060", (12, 0))
    monkeypatch.setattr(learned, "learn", refuse)
    config = overlay.load({"preset": "8gb"})
    machine = at_hand(config, CARD, family("sd1").public())
    assert machine.constants == ASSUMED
    assert "is assumed: cuda:1 could not be measured: it took more than 120 s." in " ".join(
        assumptions(config, machine, machine.computes)
    )


def test_cards_of_different_size_are_planned_for_as_the_least_of_all_and_that_is_said():
    large = Machine("cuda", cards.find("RTX 3090"), 23 * GIB, 30 * GIB, 24 * GIB, (8, 6))
    small = Machine("cuda", cards.find("RTX 2070"), 7 * GIB, 30 * GIB, 8 * GIB, (7, 5), convolutions="benchmark")
    made = smallest([large, small])
    assert (made.free_vram_bytes, made.free_ram_bytes, made.capability) == (7 * GIB, 15 * GIB, (7, 5))
    assert made.card == small.card and made.convolutions == "benchmark" and made.computes == torch.float16
    said = unlike([large, small])
    assert "RTX 3090, 24.00 GiB" in said and "RTX 2070, 8.00 GiB" in said and "smallest" in said


def test_a_card_alone_and_cards_alike_are_as_they_are():
    one = Machine("cuda", cards.find("RTX 3060"), 11 * GIB, 30 * GIB, 12 * GIB, (8, 6))
    assert smallest([one]) == one and unlike([one, one]) == ""
    assert smallest([Machine("cpu", free_ram_bytes=10)] * 2).free_ram_bytes == 5
