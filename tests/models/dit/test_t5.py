"""T5's encoder as units, and how it is read."""

import pytest
import torch
from small_sd35 import T5, encoders, run
from torch import Tensor

from trainer import units as schedule
from trainer.models.dit import t5

PROMPTS = ["a photo of the dog", "zebras in the snow" * 9, ""]


def tokens(length: int = 24) -> Tensor:
    return t5.tokens(t5.small_tokenizer(), PROMPTS, length)


def test_units_equal_the_forward_of_transformers_bit_for_bit():
    encoder, ids = encoders()[2], tokens()
    units = t5.split(encoder, "text_3", "ids", "states")
    schedule.check(units, {"ids"})
    with torch.no_grad():
        assert torch.equal(run(units, {"ids": ids})["states"], t5.encode(encoder, ids))


def test_prompts_are_cut_off_or_padded_behind_the_end():
    ids = tokens()
    assert ids.shape == (3, 24)
    assert ids[2].tolist() == [1] + [0] * 23
    assert ids[1, -1] == 1


def test_units_run_on_shapes_alone():
    encoder = encoders()[2].to("meta")
    assert run(t5.split(encoder, "text_3", "ids", "states"), {"ids": tokens().to("meta")})["states"].shape == (
        3,
        24,
        96,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_is_read_as_it_is(tmp_path, dtype):
    encoders()[2].to(dtype).save_pretrained(tmp_path)
    read = t5.T5EncoderModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in read.parameters()} == {dtype}
    assert read.shared.weight is read.encoder.embed_tokens.weight


def test_the_small_tokenizer_knows_words_and_letters():
    tokenizer = t5.small_tokenizer()
    assert len(tokenizer) <= T5["vocab_size"]
    assert tokenizer.tokenize("a photo of zebras") == ["▁a", "▁photo", "▁of", "▁", *"zebras"]
