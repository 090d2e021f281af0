"""Tensors that come when they are asked for."""

import pytest
import torch

from trainer.files.asked import Asked, like


def test_shapes_are_known_before_anything_is_brought_and_names_bring_their_tensors():
    brought = []

    def bring(name: str) -> torch.Tensor:
        brought.append(name)
        return torch.ones(2, dtype=torch.int8)

    known = {name: torch.empty(2, dtype=torch.int8, device="meta") for name in "ab"}
    made = Asked(known, bring).beside({"c": torch.zeros(3)})
    assert {name: (t.shape, t.dtype) for name, t in like(made).items()}["a"] == ((2,), torch.int8)
    assert len(made) == 3 and not brought
    assert made["b"].sum() == 2 and made["c"].shape == (3,) and brought == ["b"]
    with pytest.raises(KeyError):
        made["d"]


def test_tensors_that_are_here_are_their_own_likeness():
    here = {"a": torch.ones(1)}
    assert like(here) is here
