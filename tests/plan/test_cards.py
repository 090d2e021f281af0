"""Cards by the names that people, drivers and presets use."""

import pytest

from trainer.errors import ConfigError
from trainer.plan import cards
from trainer.settings.overlay import presets


def test_every_preset_is_meant_for_a_card_that_is_known():
    assert set(cards.USUAL) == set(presets())
    for name in cards.USUAL.values():
        assert cards.find(name).name == name


def test_editions_of_a_card_are_told_apart_by_their_memory():
    assert cards.find("RTX 4060 Ti 8 GB").vram_gb == 8
    assert cards.find("NVIDIA A100-PCIE-40GB").vram_gb == 40
    assert cards.find("RTX 3050 6GB").bandwidth < cards.find("RTX 3050").bandwidth
    assert cards.find("NVIDIA GeForce RTX 3060 Laptop GPU").vram_gb == 6
    assert cards.find("RTX 4050").name == "RTX 4050 Laptop"  # there is no other
    assert cards.find("NVIDIA GeForce RTX 2070 with Max-Q Design").name == "RTX 2070 Laptop"
    assert cards.find("NVIDIA H100 80GB HBM3").name == "H100" and cards.find("Tesla V100-SXM2-16GB").vram_gb == 16


def test_published_rates_are_found_by_any_usual_name():
    assert cards.find("NVIDIA GeForce RTX 3060") is cards.find("3060")
    assert cards.find("RTX 3060").tflops == pytest.approx(25.5, abs=0.1)
    assert cards.find("RTX 4090").tflops == pytest.approx(165, abs=1)
    assert cards.match("Voodoo 2") is None
    with pytest.raises(ConfigError):
        cards.find("Voodoo 2")


PEOPLE_HAVE = (
    *(f"GTX {name}" for name in ("1650", "1650 SUPER", "1660", "1660 SUPER", "1660 Ti")),
    *(f"RTX {name}" for name in ("2060", "2060 SUPER", "2070", "2070 SUPER", "2080", "2080 SUPER", "2080 Ti")),
    *(f"RTX {name}" for name in ("3050", "3060", "3060 Ti", "3070", "3070 Ti", "3080", "3080 Ti", "3090", "3090 Ti")),
    *(f"RTX {name}" for name in ("4050", "4060", "4060 Ti", "4070", "4070 SUPER", "4070 Ti", "4080", "4080 SUPER")),
    *(f"RTX {name}" for name in ("4090", "5050", "5060", "5060 Ti", "5070", "5070 Ti", "5080", "5090", "A4000")),
    *(f"RTX {name} Laptop GPU" for name in ("3050", "3060", "3070", "3080", "4050", "4060", "4070", "4080", "4090")),
    *(f"RTX {name} Laptop GPU" for name in ("2060", "2070", "2070 SUPER", "2080", "2080 SUPER", "3050 Ti", "3070 Ti")),
    *(f"RTX {name} Laptop GPU" for name in ("3080 Ti", "5070 Ti")),
    *(f"GTX {name} with Max-Q Design" for name in ("1650", "1650 Ti", "1660 Ti")),
    *(f"RTX {name} Laptop GPU" for name in ("5050", "5060", "5070", "5080", "5090")),
    *("T4", "V100", "A10", "L4", "A100", "H100", "H200"),
)


@pytest.mark.parametrize("name", PEOPLE_HAVE)
def test_cards_that_people_have_are_known_and_those_before_ampere_have_no_bf16(name):
    card = cards.find(f"NVIDIA GeForce {name}")
    old = name.startswith(("GTX", "RTX 20", "T4", "V100"))
    assert card.bf16 is not old
    assert 2 < card.tflops < 1000 and 100 < card.bandwidth < 5000


def test_a_card_that_is_here_but_in_no_table_is_estimated_from_what_its_driver_says():
    known = cards.find("RTX 3060")
    guess = cards.estimated(cards.Device("NVIDIA GeForce RTX 3060x", (8, 6), 28, 12 << 30, 1777, 360))
    assert guess.tflops == pytest.approx(known.tflops, rel=0.01) and guess.bandwidth == 360 and guess.bf16
    assert "28 multiprocessors" in guess.source
    big = cards.estimated(cards.Device("NVIDIA Something", (9, 0), 132, 80 << 30, 1830, 3350))
    assert big.tflops == pytest.approx(cards.find("H100").tflops, rel=0.01)
    old = cards.estimated(cards.Device("NVIDIA GeForce GTX 1630", (7, 5), 8, 4 << 30, 1785))
    assert not old.bf16 and old.tflops == pytest.approx(8 * 64 * 2 * 1785 / 1e6)


def test_a_driver_that_names_no_clock_still_gets_an_estimate():
    guess = cards.estimated(cards.Device("NVIDIA RTX 9999", (13, 0), 100, 32 << 30))
    assert guess.bf16 and guess.tflops > 0 and guess.bandwidth > 0 and "assumed 1500 MHz" in guess.source
