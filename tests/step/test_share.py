"""Slices of a row: as many numbers for each rank, no group of moments in two of them, and norms that don't know of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from small_unet import Model, take_step
from trainer.kernels.adamw_lowbit import ALIGN

from trainer.policy import Policy
from trainer.step.engine import Engine
from trainer.step.ranks import share
from trainer.step.ranks.share import Runs, Share


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [0, 128, 65_536, 200_064, 26_214_400])
def test_slices_follow_each_other_and_hold_all_of_a_row(n, size):
    slices = [Share.of(n, rank, size) for rank in range(size)]
    assert {(each.count, each.whole) for each in slices} == {(slices[0].count, size * slices[0].count)}
    assert all(one.first + one.count == other.first for one, other in pairwise(slices))
    assert slices[0].first == 0 and slices[-1].first + slices[-1].count == slices[0].whole >= n
    assert all(each.first % ALIGN == 0 for each in slices)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_a_large_unit_is_shared_out_evenly(size):
    n = 26_000_000 // ALIGN * ALIGN
    assert Share.of(n, 0, size).count * size < 1.001 * n


def test_one_rank_has_the_row_without_anything_behind_it():
    assert Share.of(300, 0, 1) == Share(0, 300, 300)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_run_is_one_rank_s_and_its_norm_does_not_depend_on_which(monkeypatch, size):
    monkeypatch.setattr(share, "SMALLEST", 256)
    extents, n = [(0, 700), (768, 900), (1024, 5000)], 5120
    row = torch.randn(n)
    alone = Runs(extents, n, Share.of(n)).norms(row)
    total = torch.zeros_like(alone)
    for rank in range(size):
        mine = Share.of(n, rank, size)
        padded = torch.nn.functional.pad(row, (0, mine.whole - n))
        total += Runs(extents, n, mine).norms(mine.of_row(padded))
    assert torch.equal(total, alone)
    inside = torch.cat([row[start:stop] for start, stop in extents])
    torch.testing.assert_close(alone.norm(), inside.norm())


def test_a_parameter_of_one_block_is_one_run_as_clip_grad_norm_has_it():
    extents = [(0, 65_536), (65_536, 70_000), (70_016, 131_072)]
    assert len(Runs(extents, 131_072, Share.of(131_072)).places) == 3


def test_what_lies_between_parameters_is_no_part_of_a_norm():
    runs = Runs([(0, 100), (128, 200)], 256, Share.of(256))
    row = torch.full((256,), torch.nan)
    row[:100], row[128:200] = 2.0, 3.0
    assert runs.norms(row).tolist() == [20.0, pytest.approx(3 * 72**0.5)]


def test_a_policy_that_shares_is_the_same_run_on_one_card():
    plain, shared = (Engine(Model().units(), Policy(shard=shard), "cpu") for shard in ("off", "state"))
    for engine in (plain, shared):
        take_step(engine, 0)
    ours, theirs = (dict(engine.state_dict()) for engine in (plain, shared))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
