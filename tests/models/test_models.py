"""Families: public sizes, text and noise schedules equal to diffusers', learning defaults."""

from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler

from trainer.models import DEMO, FAMILIES, SD1, SD2, SDXL, describe, family, guess
from trainer.models.sd import ldm
from trainer.models.sd.text import tokenizer
from trainer.settings.config import Model

STABLE = (SD1, SD2, SDXL)  # transformers have tests of their own, in dit
PROMPTS = ["a photo of a sks dog", "", "two cats, with hats; " * 30]


@pytest.fixture(scope="module", params=STABLE, ids=lambda each: each.name)
def parts(request):
    return request.param.tiny()


@pytest.fixture(scope="module", params=STABLE, ids=lambda each: each.name)
def whole(request):
    return request.param.meta()


def test_the_full_size_model_has_the_public_parameter_count_and_no_memory(whole):
    unet, *text = {
        "sd1": (859_520_964, 123_060_480),
        "sd2": (865_910_724, 340_387_840),
        "sdxl": (2_567_463_684, 123_060_480, 694_659_840),
    }[whole.family.name]
    assert sum(p.numel() for p in whole.denoiser.parameters()) == unet
    assert [sum(p.numel() for p in encoder.parameters()) for encoder in whole.text_encoders] == text
    assert sum(p.numel() for p in whole.vae.parameters()) == 83_653_863
    assert all(p.is_meta for module in whole.modules().values() for p in module.parameters())
    assert whole.prediction_type == ("v_prediction" if whole.family is SD2 else "epsilon")
    assert whole.family.resolution == whole.denoiser.config.sample_size * whole.latents.factor


def test_units_of_the_full_size_model_run_on_the_meta_device(whole):
    values = {"sample": torch.empty(2, 4, 16, 16), "timestep": torch.empty(2, dtype=torch.int64)}
    values |= whole.family.tokens(whole, PROMPTS[:2]) | whole.family.extra_values((8, 8), (0, 0), (8, 8), 2)
    values = {name: value.to("meta") for name, value in values.items()}
    for unit in whole.family.units(whole, text=True):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if torch.is_tensor(written) else written, strict=True))
    assert values["prediction"].shape == (2, 4, 16, 16) and values["prediction"].is_meta


def test_original_key_names_are_the_published_ones(whole):
    """Counts and names of the published checkpoints (without the buffers position_ids, logit_scale and model_ema)."""
    counts, last_text = {
        "sd1": ((686, 248, 196), "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight"),
        "sd2": ((686, 248, 4 + 12 * 23), "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"),
        "sdxl": ((1680, 248, 196 + 5 + 12 * 32), "conditioner.embedders.1.model.text_projection"),
    }[whole.family.name]
    keys = [entry.key for entry in ldm.layout(whole.modules(), whole.family.name)]
    assert tuple(sum(key.startswith(root) for key in keys) for root in (ldm.UNET, ldm.VAE, "cond")) == counts
    assert len(set(keys)) == len(keys) == sum(counts)
    upsampler = f"{ldm.UNET}output_blocks.2.{2 if whole.family is SDXL else 1}.conv.weight"
    some = {
        last_text,
        upsampler,
        f"{ldm.UNET}middle_block.1.proj_in.weight",
        f"{ldm.VAE}decoder.up.3.upsample.conv.weight",
    }
    assert some <= set(keys)
    assert (f"{ldm.UNET}label_emb.0.0.weight" in keys) == (whole.family is SDXL)


def test_encoded_text_is_what_the_diffusers_pipeline_encodes(parts):
    ours = parts.family.encode_text(parts, PROMPTS)
    pipeline = parts.family.pipeline(parts)
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    assert torch.equal(ours["text"], theirs[0])
    assert ours["text"].shape == (3, 77, parts.denoiser.config.cross_attention_dim)
    if len(parts.text_encoders) == 2:
        assert torch.equal(ours["pooled"], theirs[2])


def test_size_conditions_are_those_of_the_pipeline():
    parts = SDXL.tiny()
    theirs = SDXL.pipeline(parts)._get_add_time_ids(
        (70, 64), (0, 3), (64, 64), dtype=torch.float32, text_encoder_projection_dim=40
    )
    assert torch.equal(SDXL.extra_values((70, 64), (0, 3), (64, 64), 2)["time_ids"], theirs.repeat(2, 1))
    assert SD1.extra_values((70, 64), (0, 3), (64, 64), 2) == {}


def test_the_pipeline_draws_a_picture(parts):
    pipeline = parts.family.pipeline(parts)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == parts.prediction_type
    picture = pipeline("a dog", num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert picture.shape == (1, 3, 64, 64) and picture.isfinite().all()


def test_the_noise_schedule_is_diffusers_in_double_precision(parts):
    config = {key: value for key, value in parts.scheduler_config.items() if not key.startswith("_")}
    for zero in (False, True):
        scheduler = DDIMScheduler.from_config(config | {"rescale_betas_zero_snr": zero})
        ours = parts.noise(zero_terminal_snr=zero).abar
        assert ours.dtype == torch.float64 and ours.shape == (1000,)
        assert torch.allclose(ours.float(), scheduler.alphas_cumprod, atol=2e-6)
    assert parts.noise(zero_terminal_snr=True).ends_in_noise and not parts.noise().ends_in_noise


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [  # published ids of CLIP's vocabulary
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("Hello, World!", [49406, 3306, 267, 1002, 256, 49407]),
        ("sks", [49406, 48136, 49407]),
    ],
)
def test_the_shipped_vocabulary_gives_clips_token_ids(prompt, ids):
    assert tokenizer()(prompt).input_ids == ids


def test_padding_differs_between_the_encoders():
    tokens = SDXL.tokens(SDXL.tiny(), ["a"])
    assert tokens["input_ids"][0, 3].item() == 49407 and tokens["input_ids_2"][0, 3].item() == 0
    assert tokens["input_ids"].shape == tokens["input_ids_2"].shape == (1, 77)


def test_the_same_seed_builds_the_same_small_model_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = SD1.tiny(1), SD1.tiny(1), SD1.tiny(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.denoiser.conv_in.weight, again.denoiser.conv_in.weight)
    assert not torch.equal(first.denoiser.conv_in.weight, other.denoiser.conv_in.weight)
    assert first.digest == again.digest != other.digest


def test_learning_rates_follow_what_is_trained():
    defaults = SD1.defaults
    assert defaults.learning_rate("full", prior=True, text=False) == 2e-6
    assert defaults.learning_rate("full", prior=False, text=False) == 5e-6
    assert defaults.learning_rate("full", prior=True, text=True) == 1e-6 == defaults.text_learning_rate("full")
    assert defaults.learning_rate("dora", prior=True, text=True) == 1e-4
    assert (defaults.max_train_steps("full"), defaults.class_images, defaults.prior_loss_weight) == (800, 200, 1.0)


def test_families_are_found_by_name():
    assert [family(name) for name in ("sd1", "sd2", "sdxl", "demo")] == [SD1, SD2, SDXL, DEMO]
    with pytest.raises(KeyError):
        family("sd3")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", SDXL),
        ("somebody/AnimaXL-v3", SDXL),
        ("stabilityai/stable-diffusion-2-1", SD2),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", SD1),
        ("runwayml/anything-2", SD1),
    ],
)
def test_a_model_that_is_not_here_is_guessed_from_the_words_in_its_name(name, expected):
    assert guess(name) is expected


def test_facts_carry_their_family_with_the_defaults_and_the_resolution_of_this_model():
    found, facts = describe("demo")
    assert facts.family is found and found.resolution == 64
    assert found.build_meta(facts).family.defaults == DEMO.defaults


def test_the_public_facts_of_a_family_build_its_full_size_model(whole):
    facts = whole.family.public()
    assert (facts.family, facts.kind, facts.prediction_type) == (whole.family, "public", whole.prediction_type)
    sizes = [sum(p.numel() for p in parts.denoiser.parameters()) for parts in (whole, facts.family.build_meta(facts))]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("text", [False, True])
def test_the_inputs_that_a_family_names_are_those_that_its_units_read(parts, text):
    """The planner makes its micro-batches from them."""
    named = parts.family.inputs(parts, 3, (64, 48), text)
    given = parts.family.tokens(parts, PROMPTS) if text else parts.family.encode_text(parts, PROMPTS)
    given |= parts.family.extra_values((48, 64), (0, 0), (48, 64), 3)
    for name, value in given.items():
        assert named[name] == (tuple(value.shape), value.dtype)
    assert named["sample"] == ((3, 4, 6, 8), torch.float32)
    read = {name for unit in parts.family.units(parts, text) for name in unit.reads}
    written = {name for unit in parts.family.units(parts, text) for name in unit.writes}
    assert read - written == named.keys()


def test_what_a_family_calls_its_denoiser_with_it_names_again(parts):
    """A stand-in in a pipeline is called as the denoiser is."""
    given = parts.family.encode_text(parts, PROMPTS[:2]) | parts.family.extra_values((8, 8), (0, 0), (8, 8), 2)
    sample, timestep = torch.randn(2, 4, 8, 8), torch.tensor([7, 900])
    seen = {}

    def called(*args, **kwargs):
        kwargs.pop("return_dict")
        seen.update(parts.family.values_of(*args, **kwargs))
        return (sample,)

    parts.family.call(called, sample, timestep, given)
    expected = given | {"sample": sample, "timestep": timestep}
    assert seen.keys() == expected.keys() and all(torch.equal(seen[name], expected[name]) for name in seen)


@pytest.mark.parametrize("family", [*STABLE, DEMO], ids=lambda family: family.name)
def test_sides_divide_by_the_same_before_and_after_loading(family):
    facts, parts = family.public(), family.meta()
    assert facts.divides == parts.divides == parts.latents.factor * 2 ** (len(parts.denoiser.down_blocks) - 1)
    tiny = family.tiny()
    assert tiny.divides == tiny.latents.factor * 2, "two levels, so one halving"


def test_a_denoiser_that_names_no_levels_is_taken_to_halve_as_often_as_the_public_models():
    facts = SD1.public()
    del facts.configs["unet"]["block_out_channels"]
    assert facts.divides == 64


def test_the_settings_name_the_families_that_there_are():
    """They know no model: the folders of configurations are what they go by."""
    names = get_args(Model.model_fields["family"].annotation)
    assert sorted(names) == sorted(["auto", *(each.name for each in FAMILIES)])
