"""A process's share of a card, as the driver words it, and where it does not."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from trainer.machine import vitals

SAID = "518, 930\n519, 7598\n1519, 12\n"
MIB = 2**20


@pytest.mark.parametrize(
    "said,found",
    [
        (SAID, 7598 * MIB),
        ("519, [N/A]\n", None),  # Windows
        ("518, 930\n", None),  # a container, where others have our number or nobody has
        ("", None),
        ("No devices were found", None),
    ],
)
def test_a_process_is_found_by_its_number_alone(said, found):
    assert vitals.read(said, 519) == found


@pytest.fixture
def card(monkeypatch):
    """What the driver says of this process, MiB, on a card of which torch holds 100 MiB."""

    def put(used: str):
        said = f"{vitals.os.getpid()}, {used}\n"
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 * MIB)
        monkeypatch.setattr(vitals.subprocess, "run", lambda words, **_: SimpleNamespace(stdout=said))

    return put


def test_what_the_driver_says_counts_unless_it_is_less_than_torch_holds(card):
    card("612")
    assert vitals.own_bytes(torch.device("cuda", 0)) == 612 * MIB
    card("99")
    assert vitals.own_bytes(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("wrong", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 5)])
def test_a_driver_that_does_not_answer_is_no_error(card, monkeypatch, wrong):
    def fails(words, **_):
        raise wrong

    card("612")
    monkeypatch.setattr(vitals.subprocess, "run", fails)
    assert vitals.own_bytes(torch.device("cuda", 0)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_a_block_more_is_a_block_more_whatever_others_take():
    device = torch.device("cuda", 0)
    torch.empty(1, device=device)
    before = vitals.own_bytes(device)
    if before is None:
        pytest.skip("this driver does not say what a process has")
    block = torch.empty(512 * MIB, dtype=torch.uint8, device=device)
    assert vitals.own_bytes(device) - before == block.nbytes
