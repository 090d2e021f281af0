"""Photos among the class's latents: which, how many, and nothing else of the predictions changes."""

import torch
from photos import finish, settings

from trainer.data.texts import encode_prompts
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.events import PhaseStarted
from trainer.models import SD1
from trainer.policy import Drawing
from trainer.prior import contrast, prediction

OF_CLASS, OTHER = "a photo of a dog", "a photo of a car"


def test_photos_lie_evenly_among_the_latents_of_the_class(tmp_path):
    prompts = [OTHER, OF_CLASS] * 4
    assert contrast.places(settings(tmp_path, prior__contrast=0.5), prompts, photos=3) == {1: 0, 5: 1}
    assert contrast.places(settings(tmp_path, prior__contrast=1.0), prompts, photos=3) == {1: 0, 3: 1, 5: 2, 7: 0}
    assert contrast.places(settings(tmp_path), prompts, photos=3) == {}


def test_their_latents_take_the_place_of_drawn_ones_and_nothing_is_drawn_for_them(tmp_path):
    parts = SD1.tiny()
    texts = finish(encode_prompts(parts, [OF_CLASS, ""], "cpu"))[1]
    painter = Painter(parts, Look((64, 64)), Drawing(), torch.device("cpu"), texts)

    def ensure(config, photos=None):
        return finish(prediction.ensure(painter, config, tmp_path, prediction.Amount(4, 4, 2), photos))

    photos = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    config = settings(tmp_path, prior__contrast=0.5)
    events, made = ensure(config, photos)
    assert torch.equal(made.latents[[0, 2]], photos[:2].half())
    assert next(event.total for event in events if isinstance(event, PhaseStarted)) == 2 * 2 + 4
    _, drawn = ensure(settings(tmp_path))
    assert torch.equal(drawn.latents[[1, 3]], made.latents[[1, 3]])
    _, others = ensure(config, photos + 1)  # another subject
    assert not torch.equal(others.latents[0], made.latents[0])
    _, none = ensure(settings(tmp_path, prior__contrast=1.0), photos)
    assert torch.equal(none.latents, photos[[0, 1, 2, 0]].half())
