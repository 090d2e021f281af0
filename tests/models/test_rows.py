"""Prompts of different lengths share a batch as long as the longest of them."""

import torch

from trainer.models.rows import in_full, joined, stacked


def row(length, of=8):
    text = torch.zeros(of, 3)
    text[:length] = torch.randn(length, 3)
    return {"text": text, "mask": torch.arange(of) < length, "pooled": torch.randn(5)}


def test_a_batch_is_as_long_as_its_longest_row():
    rows = [row(3), row(5)]
    batch = stacked(rows)
    assert batch["text"].shape == (2, 5, 3) and batch["mask"].shape == (2, 5) and batch["pooled"].shape == (2, 5)
    assert batch["mask"].sum(1).tolist() == [3, 5]
    assert torch.equal(batch["text"][1], rows[1]["text"][:5])


def test_rows_without_a_mask_are_stacked_as_they_are():
    rows = [{"text": torch.randn(7, 3)} for _ in range(2)]
    assert torch.equal(stacked(rows)["text"], torch.stack([each["text"] for each in rows]))


def test_halves_of_a_batch_are_padded_to_the_longer_with_what_is_masked():
    short, long = stacked([row(2)]), stacked([row(6)])
    assert short["mask"].shape == long["mask"].shape == (1, 0)
    both = joined([short, long])
    assert both["text"].shape == (2, 6, 3) and both["mask"].sum(1).tolist() == [2, 6]
    assert torch.equal(both["text"][:1, :2], short["text"]) and not both["text"][0, 2:].any()
    plain = joined([{"text": torch.ones(1, 7, 3)}, {"text": torch.zeros(2, 7, 3)}])
    assert plain["text"].shape == (3, 7, 3)


def test_rows_that_are_equally_long_have_a_mask_without_columns():
    batch = stacked([row(4), row(4)])
    assert batch["text"].shape == (2, 4, 3) and batch["mask"].shape == (2, 0) and batch["mask"].dtype == torch.bool
    both = joined([batch, stacked([row(4)])])
    assert both["text"].shape == (3, 4, 3) and both["mask"].shape == (3, 0)
    both = joined([batch, stacked([row(3), row(4)])])
    assert both["mask"].sum(1).tolist() == [4, 4, 3, 4]


def test_numbers_are_kept_in_full_and_masks_as_they_are():
    assert in_full(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert in_full(torch.ones(2, dtype=torch.bool)).dtype == torch.bool
