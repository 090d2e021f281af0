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
    assert cards.match("RTX 3060 Laptop GPU") is None


def test_published_rates_are_found_by_any_usual_name():
    assert cards.find("NVIDIA GeForce RTX 3060") is cards.find("3060")
    assert cards.find("RTX 3060").tflops == pytest.approx(25.5, abs=0.1)
    assert cards.find("RTX 4090").tflops == pytest.approx(165, abs=1)
    assert cards.match("Voodoo 2") is None
    with pytest.raises(ConfigError):
        cards.find("Voodoo 2")
