"""The text path of Stable Diffusion 3.5: as the pipeline of diffusers makes it, and layer by layer the same to the bit."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from small_sd35 import config, denoiser, encoders, run

from trainer import units as schedule
from trainer.errors import ConfigError
from trainer.models.dit import sd35_text, sd35_units

PROMPTS = ["a photo of the dog", "a watercolour of two cats, with hats" + " and shoes" * 90, ""]


@pytest.mark.parametrize("t5", [True, False], ids=["t5", "clip alone"])
def test_units_equal_the_encoders_own_forward_bit_for_bit(t5):
    models = encoders(t5)
    tokens = sd35_text.tokens(sd35_text.small_tokenizers()[: len(models)], PROMPTS)
    units = sd35_text.split(models)
    schedule.check(units, set(tokens))
    with torch.no_grad():
        expected, found = sd35_text.encode(models, tokens), run(units, tokens)
    assert all(torch.equal(expected[name], found[name]) for name in sd35_text.VALUES)
    assert expected["text"].shape == ((3, 333, 96) if t5 else (3, 77, 80))
    assert expected["pooled"].shape == (3, 72)
    assert not torch.equal(expected["text"][0], expected["text"][1])


@pytest.mark.parametrize("t5", [True, False], ids=["t5", "clip alone"])
def test_prompts_become_what_the_pipeline_of_diffusers_makes_of_them(t5):
    models, model, tokenizers = encoders(t5), denoiser(), sd35_text.small_tokenizers()
    third = {"text_encoder_3": models[2] if t5 else None, "tokenizer_3": tokenizers[2] if t5 else None}
    pipeline = StableDiffusion3Pipeline(
        transformer=model, scheduler=None, vae=None, text_encoder=models[0], tokenizer=tokenizers[0],
        text_encoder_2=models[1], tokenizer_2=tokenizers[1], **third,
    )  # fmt: skip
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, "cpu", do_classifier_free_guidance=False)
        values = run(sd35_text.split(models), sd35_text.tokens(tokenizers[: len(models)], PROMPTS))
    assert torch.equal(values["pooled"], pooled)
    if t5:
        assert torch.equal(values["text"], text)
    given = {"sample": torch.randn(3, 16, 8, 8), "timestep": torch.tensor([10.0, 500.0, 1000.0])}
    with torch.no_grad():  # without T5 the zeros are put in by the denoiser's own unit
        theirs = model(given["sample"], text, pooled, given["timestep"], return_dict=False)[0]
        assert torch.equal(run(sd35_units.split(model), given | values)["prediction"], theirs)


def test_every_parameter_that_has_a_say_is_in_one_unit():
    models = encoders()
    inside = [name for unit in sd35_text.split(models) for name, _ in unit.module.named_parameters()]
    named = [
        f"{model}.{name}"
        for model, encoder in zip(("text", "text_2", "text_3"), models, strict=True)
        for name, _ in encoder.named_parameters()
    ]
    assert sorted(inside) == sorted(named)


def test_the_largest_of_the_public_encoders_units_is_a_twentieth_of_them():
    with torch.device("meta"):
        models = [kind(kind.config_class(**config(part))) for part, kind in sd35_text.ENCODERS.items()]
    sizes = [sum(p.numel() for p in unit.module.parameters()) for unit in sd35_text.split(models)]
    assert (
        sum(sizes)
        == sum(p.numel() for m in models for p in m.parameters())
        == 123_650_304 + 694_659_840 + 4_762_310_656
    )
    assert max(sizes) < sum(sizes) / 20
    prompt = {name: ids.to("meta") for name, ids in sd35_text.tokens(sd35_text.small_tokenizers(), ["a dog"]).items()}
    found = run(sd35_text.split(models), prompt)
    configs = {part: config(part) for part in sd35_text.ENCODERS} | {"transformer": config("transformer")}
    planned = sd35_text.shapes(configs, 1)
    assert {name: (tuple(found[name].shape), found[name].dtype) for name in sd35_text.VALUES} == planned
    del configs["text_encoder_3"]
    found = run(sd35_text.split(models[:2]), prompt)
    assert all(found[name].shape == shape for name, (shape, _) in sd35_text.shapes(configs, 1).items())


def test_tokenizers_come_with_the_model_and_those_of_clip_are_shipped(tmp_path):
    for folder, tokenizer in zip(
        ("tokenizer", "tokenizer_2", "tokenizer_3"), sd35_text.small_tokenizers(), strict=True
    ):
        tokenizer.save_pretrained(tmp_path / folder)
    (tmp_path / "text_encoder_3").mkdir()
    ours, read = sd35_text.small_tokenizers(), sd35_text.tokenizers(tmp_path)
    expected = sd35_text.tokens(ours, PROMPTS)
    found = sd35_text.tokens(read, PROMPTS)
    assert expected.keys() == found.keys() == {"input_ids", "input_ids_2", "input_ids_3"}
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    shipped = sd35_text.tokens(sd35_text.tokenizers(tmp_path / "nothing"), PROMPTS)
    assert shipped.keys() == {"input_ids", "input_ids_2"}
    assert all(torch.equal(expected[name], shipped[name]) for name in shipped)


def test_a_t5_without_its_tokenizer_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "text_encoder_3").mkdir()
    with pytest.raises(ConfigError, match=r"tokenizer_3/tokenizer\.json"):
        sd35_text.tokenizers(tmp_path)
