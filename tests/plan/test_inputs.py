"""What a plan is made for: a card that is here is asked, one that is named is believed, and what is neither is said."""

import pytest
import torch

from trainer.models import family
from trainer.plan import calibration, cards
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine, assumptions, budget_bytes, convolved
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


def test_the_convolutions_that_are_tried_are_those_of_the_run():
    facts = family("sd1").public()
    config = overlay.load({"train.train_batch_size": 3, "data.resolution": 384})
    shapes = [*convolved(config, facts)]
    assert (shapes[0].rows, shapes[0].channels, shapes[0].height) == (6, 320, 48)  # three photos and their class images
    assert (shapes[-1].channels, shapes[-1].width) == (1280, 6)
    del facts.configs["unet"]["block_out_channels"]
    assert not [*convolved(config, facts)], "a denoiser without levels of channels convolves nothing there"
