"""Identifiers: proposals are rare single tokens, and poor choices are named."""

import re

import pytest
import torch

from trainer.errors import ConfigError
from trainer.models import SD1, SDXL
from trainer.models.sd.text import tokenizer as clip_tokenizer
from trainer.prior import identifier
from trainer.settings.config import Config


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def test_proposals_are_single_rare_tokens_without_a_known_meaning(tokenizer):
    found = identifier.candidates(tokenizer, 40)
    assert len({candidate.word for candidate in found}) == 40
    for candidate in found:
        assert identifier.pieces(candidate.word, tokenizer) == [candidate.word]
        assert candidate.rank >= identifier.rare_from(tokenizer) >= 40_000 and candidate.word not in identifier.MEANINGS
        assert re.fullmatch(r"[a-z]{3,4}", candidate.word)
        assert not identifier.warnings_for(candidate.word, "dog", tokenizer)


def test_ordinary_words_are_unlike_proposals(tokenizer):
    proposed = {candidate.word for candidate in identifier.candidates(tokenizer, 100)}
    assert not proposed & {"dog", "fawn", "yawn", "kilt", "rune", "wags", "lili", "tobi", "sks"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sks", "a rifle"),
        ("SKS", "a rifle"),
        ("zwx", r"2 tokens .*z \+ wx"),
        ("my dog", "2 tokens"),
        ("toy", "frequent word"),
        ("dog", "the class itself"),
        ("", "empty"),
    ],
)
def test_poor_identifiers_are_named_with_better_ones(tokenizer, word, said):
    (notice,) = identifier.warnings_for(word, "dog", tokenizer)
    assert re.search(said, notice.text) and notice.level == "warning"
    assert identifier.candidates(tokenizer, 1)[0].word in notice.fix


def test_a_good_identifier_is_not_complained_about(tokenizer):
    assert identifier.warnings_for("ohwx", "dog", tokenizer) == [] == identifier.warnings_for("hta", None, tokenizer)


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def sentence_piece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Metaspace()
    return made, trainers.BpeTrainer(vocab_size=420)


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_vocabularies_of_language_models_are_searched_too(kind):
    """Theirs mark the space before a word, not its end."""
    from transformers import PreTrainedTokenizerFast

    made, how = kind()
    usual = "the photo dog house river green walks paper little garden window yellow animal people"
    lines = [f"a photo of a {word} and {other}" for word in usual.split() for other in usual.split()] * 3
    made.train_from_iterator([*lines, *["a photo of a hta and a zwq and a vkx"] * 2], how)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    proposed = [candidate.word for candidate in identifier.candidates(tokenizer, 3)]
    assert sorted(proposed) == ["hta", "vkx", "zwq"], "the rare ones, and no piece of another word"
    assert identifier.pieces("hta", tokenizer) == ["hta"] and len(identifier.pieces("htax", tokenizer)) > 1
    assert identifier.warnings_for("hta", "dog", tokenizer) == []
    assert "tokens" in identifier.warnings_for("vkhta", "dog", tokenizer)[0].text
    assert "frequent word" in identifier.warnings_for("photo", "dog", tokenizer)[0].text


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_the_effect_of_a_word_is_the_change_it_makes_to_the_prediction(family):
    parts = family.tiny()
    tried = identifier.effects(parts, ["hta", "sks"], "dog")
    assert all(0 < effect < 10 for effect in tried.values()) and tried["hta"] != tried["sks"]
    assert identifier.effects(parts, ["hta"], "dog") == {"hta": pytest.approx(tried["hta"], rel=1e-4)}


def test_a_word_that_changes_no_token_has_no_effect():
    assert identifier.effects(SD1.tiny(), [""], "dog") == {"": 0.0}


def test_words_are_tried_at_the_timesteps_of_the_models_own_noise():
    parts, told = SD1.tiny(), []
    parts.prediction_type, parts.scheduler_config = "flow", {"num_train_timesteps": 1000, "shift": 2.0}
    parts.denoiser.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    identifier.effects(parts, ["hta"], "dog", draws=3)
    expected = parts.noise().at(torch.linspace(0.5, 1, 3))
    assert len(told) == 3 and all(torch.allclose(timesteps, expected) for timesteps in told)


def test_with_a_model_proposals_are_ordered_by_effect(tokenizer, monkeypatch):
    monkeypatch.setattr(identifier, "TRIED", 6)
    found = identifier.propose(tokenizer, 4, SD1.tiny(), "dog")
    effects = [candidate.effect for candidate in found]
    assert len(found) == 4 and effects == sorted(effects)


def test_the_command_prints_a_table_and_judges_the_identifier_in_the_settings(capsys):
    assert identifier.main(Config(), 5) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"bits$", printed, re.M)) == 5 and "Nothing speaks against 'hta'" in printed


def test_the_command_judges_given_words(capsys):
    assert identifier.main(Config(), words=["ohwx", "toy"]) == 0
    printed = capsys.readouterr().out
    assert (
        "Nothing speaks against 'ohwx'" in printed and "'toy' is a frequent word" in printed and "bits" not in printed
    )


def test_no_proposals_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        identifier.main(Config(), 0)
