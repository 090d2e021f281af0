"""One adapter for q, k and v together is the three of them."""

import pytest
import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.out import fused

RANK, WIDTH = 2, 5
ROWS = {"q": 4, "k": 3, "v": 6}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name, rows in ROWS.items():
            self.add_module(name, nn.Linear(WIDTH, rows))
        self.out = nn.Linear(WIDTH, WIDTH)


def named(path: str) -> str:
    return "qkv" if path in ROWS else path


@pytest.mark.parametrize("adapted", [("q", "k", "v"), ("q", "v"), ("k",), ("v",)], ids=" ".join)
def test_the_joint_update_is_each_layers_own(adapted):
    torch.manual_seed(0)
    a = {name: torch.randn(RANK, WIDTH) for name in adapted}
    b = {name: torch.randn(ROWS[name], RANK) for name in adapted}
    shares = fused.shares(Attention(), named, [*adapted, "out"])
    assert shares.keys() == set(adapted)
    tall, wide = (torch.full(shares[adapted[0]].__getattribute__(of)(each[adapted[0]])[0], torch.nan)
                  for of, each in (("of_a", a), ("of_b", b)))  # fmt: skip
    for whole, of, each in ((tall, "of_a", a), (wide, "of_b", b)):
        for name in adapted:
            shape, change, first = getattr(shares[name], of)(each[name])
            own = change(each[name]).reshape(-1)
            assert shape == whole.shape and whole.view(-1)[first : first + len(own)].isnan().all()
            whole.view(-1)[first : first + len(own)] = own
    expected = torch.cat([b[n] @ a[n] if n in adapted else torch.zeros(rows, WIDTH) for n, rows in ROWS.items()])
    assert torch.allclose(wide @ tall, expected)


def test_layers_with_names_of_their_own_share_nothing():
    assert fused.shares(Attention(), lambda path: path, list(ROWS)) == {}


def test_magnitudes_of_some_of_the_rows_are_refused():
    shares = fused.shares(Attention(), named, ["q", "v"])
    with pytest.raises(ConfigError, match="only some of q, k and v"):
        shares["q"].of_magnitudes(torch.ones(4))
    whole = fused.shares(Attention(), named, list(ROWS))
    assert [whole[name].of_magnitudes(torch.ones(rows))[2] for name, rows in ROWS.items()] == [0, 4, 7]
