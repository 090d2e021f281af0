"""The identifier's rows alone: they learn, nothing else of the text encoder moves, and every export has them."""

import pytest
import torch
from photos import settings

from trainer.errors import ConfigError
from trainer.models import SD1, SDXL, word
from trainer.out import inversion
from trainer.out.export import again
from trainer.policy import AdamHyper, Policy
from trainer.run.assemble import make_engine


def engine_of(family, tmp_path, **hyper):
    parts = family.tiny()
    made = settings(tmp_path, train__train_text_encoder=True, train__text_part="identifier", data__identifier="sks")
    policy = Policy(hyper=AdamHyper(**hyper))
    return parts, made, make_engine(made, parts, policy, torch.device("cpu"))


def step(parts, engine, rates):
    tokens = parts.family.tokens(parts, ["a photo of sks dog"])
    values = {
        "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([500]),
    }
    values |= tokens | parts.family.extra_values((64, 64), (0, 0), (64, 64), 1)
    engine.step([values], lambda prediction, i: prediction.float().pow(2).mean(), rates)


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_only_the_words_own_rows_learn_of_the_text_encoders(family, tmp_path):
    parts, _, engine = engine_of(family, tmp_path)
    before = {name: value.clone() for name, value in engine.master()}
    known = word.words(parts)
    assert {name for name in before if name.startswith("text")} == set(known)
    assert all(len(ids) >= 1 for ids in known.values()) and len(known) == len(parts.text_encoders)
    step(parts, engine, {"text": 1e-2, "text_2": 1e-2})
    moved = {name for name, value in engine.master() if not torch.equal(value, before[name])}
    assert moved == set(known)


def test_an_anchor_does_not_hold_the_word(tmp_path):
    """It would be pulled back at its own rate, which is many times the denoiser's, and mean nothing."""
    found = {}
    for anchor in (0.0, 50.0):
        parts, _, engine = engine_of(SD1, tmp_path, weight_decay=0.0, anchor=anchor)
        step(parts, engine, {"text": 1e-2, "unet": 1e-3})
        found[anchor] = dict(engine.master())
    ((name, _),) = word.words(parts).items()
    assert torch.equal(found[0.0][name], found[50.0][name])
    assert not torch.equal(found[0.0]["unet.conv_in.weight"], found[50.0]["unet.conv_in.weight"])


def test_before_a_step_the_model_is_the_one_it_was(tmp_path):
    plain, engine = SD1.tiny(), engine_of(SD1, tmp_path)[2]
    tokens = plain.family.tokens(plain, ["a photo of sks dog"])
    values = {"sample": torch.ones(1, 4, 8, 8), "timestep": torch.tensor([500])} | tokens
    with torch.no_grad():
        expected = plain.family.denoise(plain, values | plain.family.encode_text(plain, ["a photo of sks dog"]))
    assert torch.allclose(engine.forward(values), expected, atol=1e-5)


def test_other_words_rows_stay_in_the_exported_table(tmp_path):
    parts, _, engine = engine_of(SD1, tmp_path)
    ((name, ids),) = word.words(parts).items()
    step(parts, engine, {"text": 1e-2})
    base = SD1.tiny().modules()["text"].get_parameter(f"{name.removeprefix('text.').removesuffix('.rows')}.weight")
    merged = dict(word.in_table(again(engine.master), {name: ids}, lambda _: base)())
    table = merged[f"{name.removesuffix('.rows')}.weight"]
    rest = torch.ones(len(base), dtype=torch.bool)
    rest[ids] = False
    assert torch.equal(table[rest], base[rest]) and not torch.equal(table[ids], base[ids])
    assert torch.equal(table[ids], dict(engine.master())[name])


def test_a_textual_inversion_has_the_keys_that_programs_read(tmp_path):
    for family, keys in ((SD1, ["emb_params"]), (SDXL, ["clip_l", "clip_g"])):
        parts, _, engine = engine_of(family, tmp_path)
        found = word.inversion(engine.master, word.words(parts))
        assert list(found) == keys and all(
            value.dim() == 2 and value.dtype == torch.float32 for value in found.values()
        )


def test_what_has_no_table_of_clips_words_is_refused(tmp_path):
    parts = SD1.tiny()
    parts.text_encoders[0] = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="no table"):
        word.inject(parts, "sks")


def test_diffusers_finds_the_word_in_the_file(tmp_path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts, _, engine = engine_of(SD1, tmp_path)
    step(parts, engine, {"text": 1e-2})
    (notice,) = inversion.write(parts, engine.master, tmp_path, "sks")
    assert "sks.safetensors" in notice.text
    base = SD1.tiny()
    pipe = StableDiffusionPipeline(base.vae, base.text_encoders[0], base.tokenizers[0], base.denoiser, DDIMScheduler(),
                                   None, None, requires_safety_checker=False)  # fmt: skip
    pipe.load_textual_inversion(str(tmp_path / "sks.safetensors"), token="<mine>")
    table = pipe.text_encoder.get_input_embeddings().weight
    (rows,) = (value for name, value in engine.master() if name.endswith(".rows"))
    assert torch.equal(table[pipe.tokenizer.convert_tokens_to_ids("<mine>")], rows[0])
