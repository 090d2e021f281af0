"""The rate of a link; where there are no two cards, that of a host's memory."""

import pytest
import torch

from trainer.machine import link


def test_a_link_s_rate_is_bytes_by_the_time_of_the_fastest_round():
    made = link.between(torch.device("cpu"), torch.device("cpu"), size=1 << 20, rounds=2)
    assert 0.01 < made.rate < 10_000 and not made.peer


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA cards: nothing joins them")
def test_two_cards_exchange_what_a_bus_can_carry():
    assert 1 < link.between(torch.device("cuda", 0), torch.device("cuda", 1)).rate < 2000
