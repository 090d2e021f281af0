"""Pages of torch's caching allocator: what a step's tensors hold of a card beside their own bytes."""

import random

import pytest
import torch

from trainer.plan.pages import GRAIN, MIB, PAGE, SMALL_PAGE, Pages


def test_a_large_block_holds_whole_pages_and_a_small_one_a_small_page():
    pages = Pages()
    pages.take(10 * MIB)
    assert pages.most == PAGE
    pages.take(1)
    assert pages.most == PAGE + SMALL_PAGE
    pages.take(9 * MIB)  # what is left of the first page
    assert pages.most == PAGE + SMALL_PAGE


def test_what_is_free_as_a_whole_page_is_given_back_before_others_are_mapped():
    pages = Pages()
    first = pages.take(3 * PAGE)
    pages.give(first)
    pages.restart()
    assert pages.most == 3 * PAGE  # nothing needs it, so it stays
    pages.take(2 * PAGE)
    assert pages.large.held == 3 * PAGE and pages.most == 3 * PAGE
    pages.take(4 * PAGE)
    assert pages.large.held == 6 * PAGE and pages.most == 6 * PAGE  # the third page went, and came back as one of four


def test_a_tensor_that_is_left_over_keeps_its_page():
    pages, left = Pages(), []
    for _ in range(8):
        goes, stays = pages.take(18 * MIB), pages.take(2 * MIB)
        left.append(stays)
        pages.give(goes)
    assert pages.large.held < 8 * PAGE  # the next one takes the place of the one before
    pages, left = Pages(), []
    blocks = [(pages.take(18 * MIB), pages.take(2 * MIB)) for _ in range(8)]
    for goes, _ in blocks:
        pages.give(goes)
    pages.restart()
    pages.take(40 * MIB)  # 16 MiB in 8 pages, of which none is free as a whole
    assert pages.most == 8 * PAGE + 2 * PAGE


def test_blocks_that_were_given_back_grow_together():
    pages = Pages()
    blocks = [pages.take(5 * MIB) for _ in range(4)]
    for each in (blocks[2], blocks[0], blocks[1], blocks[3]):
        pages.give(each)
    pages.restart()
    pages.take(20 * MIB)
    assert pages.most == PAGE


def test_nothing_is_lost_and_nothing_is_counted_twice():
    source, pages, live = random.Random(0), Pages(), {}
    now = most = 0
    for number in range(4000):
        if live and source.random() < 0.5:
            size, block = live.pop(source.choice(list(live)))
            pages.give(block)
            now -= size
        else:
            size = source.choice([512, 40_000, MIB, 3 * MIB, 17 * MIB, 64 * MIB])
            live[number] = (size, pages.take(size))
            now += -(-size // GRAIN) * GRAIN
            most = max(most, now)
            assert pages.small.held + pages.large.held >= now
    assert most <= pages.most < 1.5 * most
    for _, block in live.values():
        pages.give(block)
    for pool in (pages.small, pages.large):
        assert sum(size for size, _, _ in pool.free) == pool.held  # all of it is free, and in order:
        assert all(block.size == size and block.at == at and not block.used for size, at, block in pool.free)
        pool._give_back()
        assert pool.held == 0 and len(pool.away) == 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA card: torch's own allocator is what this repeats"
)
def test_on_a_card_torch_holds_what_is_counted():
    """Under the least limit that is counted, or within a page of it; not where a fifth of that is missing."""
    device = torch.device("cuda", 0)
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    total, base = torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_reserved(device)

    def turns(allocate, free) -> None:
        source, live = random.Random(1), {}
        for number in range(600):
            if len(live) > 30:
                free(live.pop(source.choice(list(live))))
            else:
                live[number] = allocate(source.choice([100_000, 2 * MIB, 7 * MIB, 33 * MIB, 90 * MIB]))

    pages = Pages()
    turns(pages.take, pages.give)

    def run(limit: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((base + limit) / total, device)
        turns(lambda size: torch.empty(size, dtype=torch.uint8, device=device), lambda tensor: tensor.set_())

    try:
        run(pages.most + PAGE)
        with pytest.raises(torch.OutOfMemoryError):
            run(int(0.8 * pages.most))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")
