"""Prompts as embeddings and as token ids: each once, and kept by what they depend on."""

from contextlib import contextmanager

import pytest
import torch
from photos import finish

from trainer.data import texts
from trainer.data.texts import encode_prompts, token_ids
from trainer.events import PhaseEnded, PhaseProgress
from trainer.files.store import Store
from trainer.models import SD1, SDXL


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_embeddings_are_those_of_the_family_whether_made_or_found(family, tmp_path):
    parts, store = family.tiny(), Store(tmp_path)
    for encoded in (2, 0):
        events, found = finish(encode_prompts(parts, ["a dog", "", "a dog"], "cpu", store))
        assert next(e.detail for e in events if isinstance(e, PhaseEnded)).startswith(f"{encoded} prompts encoded")
        for prompt in ("a dog", ""):
            expected = parts.family.encode_text(parts, [prompt])
            assert found[prompt].keys() == expected.keys()
            assert all(torch.equal(found[prompt][name], rows[0]) for name, rows in expected.items())


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_each_layer_is_on_the_card_once_for_all_prompts_and_there_alone(family, monkeypatch):
    parts, there, seen = family.tiny(), [], []

    @contextmanager
    def visit(module, device):
        assert there == [], "one layer at a time"
        there.append(module)
        seen.extend(name for name, _ in module.named_parameters())
        yield module
        there.clear()

    monkeypatch.setattr(texts, "visiting", visit)
    finish(encode_prompts(parts, ["a dog", "a cat", ""], "cpu"))
    assert len(seen) == len(set(seen)), "once for all prompts"
    assert set(seen) == {name for unit in parts.family.text_units(parts) for name, _ in unit.module.named_parameters()}


def test_many_prompts_are_kept_as_they_are_done(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "TOGETHER", 2)
    parts, store, prompts = SD1.tiny(), Store(tmp_path), ["a dog", "a cat", "a bird", "a fish", ""]
    steps = encode_prompts(parts, prompts, "cpu", store)
    done = [event.done for event in steps if isinstance(event, PhaseProgress)]
    assert done == sorted(done) and done[-1] == 5
    begun = encode_prompts(parts, prompts, "cpu", Store(tmp_path / "another"))
    assert any(isinstance(event, PhaseProgress) and event.done == 3 for event in begun)
    begun.close()  # somebody stops it among the second two
    events, _ = finish(encode_prompts(parts, prompts, "cpu", Store(tmp_path / "another")))
    assert any(
        "3 prompts encoded, 2 from the cache" in event.detail for event in events if isinstance(event, PhaseEnded)
    )


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
