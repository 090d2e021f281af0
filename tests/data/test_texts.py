"""Prompts as embeddings and as token ids: each once, and kept by what they depend on."""

import pytest
import torch
from photos import finish

from trainer.data.texts import encode_prompts, token_ids
from trainer.events import PhaseEnded
from trainer.files.store import Store
from trainer.models import SD1, SDXL


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_embeddings_are_those_of_the_family_whether_made_or_found(family, tmp_path):
    parts, store = family.tiny(), Store(tmp_path)
    for encoded in (2, 0):
        events, texts = finish(encode_prompts(parts, ["a dog", "", "a dog"], "cpu", store))
        assert next(e.detail for e in events if isinstance(e, PhaseEnded)).startswith(f"{encoded} prompts encoded")
        for prompt in ("a dog", ""):
            expected = parts.family.encode_text(parts, [prompt])
            assert texts[prompt].keys() == expected.keys()
            assert all(torch.equal(texts[prompt][name], rows[0]) for name, rows in expected.items())


def test_other_encoders_find_nothing(tmp_path):
    finish(encode_prompts(SD1.tiny(), ["a dog"], "cpu", Store(tmp_path)))
    events, _ = finish(encode_prompts(SD1.tiny(seed=1), ["a dog"], "cpu", Store(tmp_path)))
    assert any("1 prompts encoded" in event.detail for event in events if isinstance(event, PhaseEnded))


def test_token_ids_are_rows_of_the_families_and_absent_without_a_tokenizer():
    parts = SD1.tiny()
    ids = token_ids(parts, ["a dog", ""])
    assert torch.equal(ids["a dog"]["input_ids"], parts.family.tokens(parts, ["a dog"])["input_ids"][0])
    parts.tokenizers = []
    assert token_ids(parts, ["a dog"]) == {} == token_ids(SD1.tiny(), [])
