"""Batches: the order of photos, the halves of a step, and a state that decides everything to come."""

from collections import Counter

import torch

from trainer.data.batches import Batches, ClassRows
from trainer.data.dataset import Dataset, Example
from trainer.models import SD1, SDXL
from trainer.models.vae import Latents
from trainer.objective.loss import Objective
from trainer.objective.noise import DDPM

ABAR = torch.linspace(0.99, 0.01, 1000, dtype=torch.float64)


def example(name, prompt="a photo of sks dog", side=8, mask=None):
    generator = torch.Generator().manual_seed(hash(name) % 1000)
    mean = torch.randn(4, side, 8, generator=generator)
    return Example(name, mean, torch.full_like(mean, 0.1), prompt, mask, (64, 64), (0, 0), (64, 64))


def dataset(photos=3, classes=4, sides=(8,), family=SD1, masks=()):
    instances = [
        [example(f"p{i}", side=sides[i % len(sides)], mask=masks[i] if i < len(masks) else None)] for i in range(photos)
    ]
    prompts = ("a photo of sks dog", "a photo of a dog", "")
    texts = {
        p: {"text": torch.full((77, 8), float(i)), "pooled": torch.full((4,), float(i))} for i, p in enumerate(prompts)
    }
    return Dataset(
        instances,
        [example(f"c{i}", "a photo of a dog") for i in range(classes)],
        [1] * photos,
        texts,
        {},
        family,
        (64, 64),
        Latents(scale=0.5),
    )


def batches(data=None, seed=0, **settings):
    settings = {"batch_size": 1, "accumulation": 1} | settings
    data, objective = data or dataset(), Objective(DDPM(ABAR))
    return Batches(data, objective, ClassRows(data, objective) if data.classes else None, seed=seed, **settings)


def test_an_epoch_shows_every_photo_once():
    source = batches()
    for _ in range(3):
        assert sorted(source.step()[0].names[0] for _ in range(3)) == ["p0", "p1", "p2"]


def shown(source, steps):
    """How often each photo comes in `steps` steps."""
    return Counter(name for _ in range(steps) for micro in source.step() for name in micro.names[: micro.instances])


def test_an_epoch_of_several_buckets_shows_each_photo_as_often_as_it_repeats():
    data = dataset(photos=9, classes=0, sides=(8, 12, 16, 12))
    data.repeats[:] = [1, 2, 1, 1, 3, 1, 1, 1, 1]
    source, epoch = batches(data), {f"p{i}": times for i, times in enumerate(data.repeats)}
    for _ in range(3):
        assert shown(source, sum(data.repeats)) == epoch


def test_class_images_come_as_often_as_they_repeat():
    data = dataset(photos=1, classes=3)
    data.class_repeats[:] = [1, 2, 1]
    source = batches(data)
    names = Counter(source.step()[0].names[1] for _ in range(8))
    assert names == {"c0": 2, "c1": 4, "c2": 2}


def test_photos_that_fill_no_batch_of_their_bucket_wait_for_the_next_epoch():
    source = batches(dataset(photos=9, classes=0, sides=(8, 12, 16)), batch_size=2)  # three of each shape
    assert set(shown(source, 9).values()) == {2}  # two epochs are nine batches
    alone = batches(dataset(photos=3, classes=0, sides=(8, 12, 16)), batch_size=4)  # a bucket of one, batches of four
    assert set(shown(alone, 3).values()) == {4}


def test_buckets_left_in_an_epoch_are_resumed():
    def source(seed):
        return batches(dataset(photos=9, classes=0, sides=(8, 12, 16)), seed=seed, batch_size=2)

    first, second = source(0), source(5)
    for _ in range(3):
        first.step()
    second.restore(first.state())
    assert [first.step()[0].names for _ in range(20)] == [second.step()[0].names for _ in range(20)]


def test_a_state_of_before_buckets_had_epochs_goes_on():
    source = batches(dataset(photos=4, classes=0, sides=(8, 12)))
    state = {name: value for name, value in source.state().items() if name != "buckets"}
    source.restore(state)
    assert set(shown(source, 4).values()) == {1}


def test_photos_come_first_and_class_images_with_their_own_prompt_second():
    (micro,) = batches(batch_size=2).step()
    assert micro.instances == 2 and [n[0] for n in micro.names] == ["p", "p", "c", "c"]
    assert micro.values["text"][:, 0, 0].tolist() == [0, 0, 1, 1]
    assert micro.values["sample"].shape == (4, 4, 8, 8)


def test_latents_are_drawn_anew_from_the_distribution_every_step():
    data = dataset(photos=1, classes=0)
    source = batches(data)
    micro = [source.step()[0] for _ in range(400)]
    signal = ABAR.sqrt()[torch.cat([m.values["timestep"] for m in micro])].view(-1, 1, 1, 1)
    sigma = (1 - signal**2).sqrt()
    clean = torch.cat([m.values["sample"] for m in micro]) - sigma * torch.cat([m.target for m in micro])
    latents = clean / signal
    kept = latents[signal.flatten() > 0.5]
    torch.testing.assert_close(kept.mean(0), data.instances[0][0].mean.double() * 0.5, atol=0.03, rtol=0)
    assert abs(kept.std(0).mean() - 0.05) < 0.01


def test_pictures_of_another_shape_follow_in_a_micro_batch_of_their_own():
    shapes = set()
    source = batches(dataset(photos=4, sides=(8, 12)))
    for _ in range(20):
        micro = source.step()
        shapes.add(tuple(m.target.shape[-2:] for m in micro))
        if len(micro) == 2:
            assert micro[0].instances == 1 and micro[1].instances == 0
    assert shapes == {((8, 8),), ((12, 8), (8, 8))}


def test_accumulation_multiplies_micro_batches():
    assert len(batches(accumulation=3).step()) == 3


def test_a_restored_state_draws_the_same_steps():
    first = batches(caption_dropout=0.5, batch_size=2)
    for _ in range(5):
        first.step()
    state = first.state()
    expected = [first.step()[0] for _ in range(4)]
    second = batches(caption_dropout=0.5, batch_size=2, seed=123)
    second.restore(state)
    for want in expected:
        (got,) = second.step()
        assert got.names == want.names
        assert all(torch.equal(got.values[k], want.values[k]) for k in want.values) and torch.equal(
            got.target, want.target
        )


def test_caption_dropout_empties_photos_prompts_but_never_the_class():
    source = batches(caption_dropout=1.0)
    assert source.step()[0].values["text"][:, 0, 0].tolist() == [2, 1]


def test_masks_cover_photos_and_leave_class_images_whole():
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 2
    (micro,) = batches(dataset(photos=1, masks=(mask,))).step()
    assert torch.equal(micro.mask[0], mask) and torch.equal(micro.mask[1], torch.ones(1, 8, 8))


def test_sdxl_rows_carry_their_sizes():
    (micro,) = batches(dataset(family=SDXL)).step()
    assert micro.values["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2 and micro.values["pooled"].shape == (2, 4)
