"""Batches: the order of photos, the halves of a step, and a state that decides everything to come."""

import torch

from trainer.data.batches import Batches, ClassRows
from trainer.data.dataset import Dataset, Example
from trainer.models import SD1, SDXL
from trainer.objective.loss import Objective

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
        0.5,
    )


def batches(data=None, seed=0, **settings):
    settings = {"batch_size": 1, "accumulation": 1} | settings
    data, objective = data or dataset(), Objective(ABAR)
    return Batches(data, objective, ClassRows(data, objective) if data.classes else None, seed=seed, **settings)


def test_an_epoch_shows_every_photo_once():
    source = batches()
    for _ in range(3):
        assert sorted(source.step()[0].names[0] for _ in range(3)) == ["p0", "p1", "p2"]


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
