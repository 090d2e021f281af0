"""Long prompts: each window is read as a prompt of its own, and nothing is lost or changed in between."""

from dataclasses import replace

import pytest
import torch
from tiny_run import events, of, words

from trainer.cli.parse import parse
from trainer.errors import ConfigError
from trainer.events import Exported, Finished, Sampled
from trainer.models import SD1, STABLE
from trainer.models.windows import widened

FIRST, SECOND = "very " * 75, "small wooden boat"


@pytest.fixture(scope="module", params=STABLE, ids=lambda family: family.name)
def parts(request):
    return request.param.tiny()


def test_a_long_prompt_is_its_windows_side_by_side(parts):
    wide = widened(parts, 225)
    ids = wide.family.tokens(wide, [FIRST + SECOND])
    alone = parts.family.tokens(parts, [FIRST, SECOND, ""])
    for name, rows in ids.items():
        assert torch.equal(rows.reshape(3, 77), alone[name])
    together, apart = (
        wide.family.encode_text(wide, [FIRST + SECOND]),
        parts.family.encode_text(parts, [FIRST, SECOND, ""]),
    )
    torch.testing.assert_close(together["text"], torch.cat(list(apart["text"]))[None])
    if "pooled" in together:
        torch.testing.assert_close(together["pooled"], apart["pooled"][:1])


def test_several_prompts_keep_their_windows_apart(parts):
    wide = widened(parts, 150)
    prompts = ["a photo of sks dog", FIRST + SECOND, ""]
    together = wide.family.encode_text(wide, prompts)
    for row, prompt in enumerate(prompts):
        alone = wide.family.encode_text(wide, [prompt])
        for name in together:
            torch.testing.assert_close(together[name][row], alone[name][0])


def test_the_usual_length_changes_nothing_and_another_is_another_model(parts):
    assert widened(parts, 75) is parts
    assert widened(parts, 150).digest != parts.digest != widened(parts, 225).digest


def test_what_a_step_is_given_is_as_long_as_the_prompts(parts):
    wide = replace(parts, windows=2)
    given = wide.family.inputs(wide, 2, (64, 64), text=False)
    assert given["text"][0][:2] == (2, 154)
    assert wide.family.inputs(wide, 2, (64, 64), text=True)["input_ids"][0] == (2, 154)


@pytest.mark.parametrize("text", [False, True])
def test_a_run_learns_from_words_beyond_the_first_window(tmp_path, text):
    SD1.pipeline(SD1.tiny()).save_pretrained(tmp_path / "sd1")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"a photo of hta dog, {'very ' * 70} {'boat' if i else 'house'}")
    more = ["--num_validation_images", 1, *(["--train_text_encoder"] if text else [])]
    ends = {}
    for length in (75, 150):
        found = events(tmp_path, "--max_token_length", length, *more, run=f"run{length}")
        assert of(Finished, found)[0].status == "done" and of(Sampled, found) and len(of(Exported, found)) == 2
        warned = [event.text for event in found if "is too long" in getattr(event, "text", "")]
        assert bool(warned) == (length == 75)
        ends[length] = [row.loss for row in found if hasattr(row, "loss")]
    assert ends[75] != ends[150]


def test_other_lengths_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_token_length"):
        parse(words(tmp_path, "--max_token_length", 77)).config()


def picture(seed):
    from PIL import Image

    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((80, 64))
