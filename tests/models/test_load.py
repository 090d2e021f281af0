"""What a model is said to be before it is loaded, and what is said when it cannot be."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

from trainer.errors import ConfigError
from trainer.files.safetensors_stream import Writer, header
from trainer.models import DEMO, SD1, SD2, SDXL, Source, check_vae, describe, load
from trainer.models.describe import check_weights
from trainer.models.sd import ldm
from trainer.objective import noise
from trainer.out import export
from trainer.out.formats import configurations

ROOT = ldm.UNET
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small SD 1.x model as a folder and as one file."""
    folder = tmp_path_factory.mktemp("sd1")
    list(export.write(SD1.tiny(), None, folder, ["diffusers", "single_file"], "fp32"))
    return folder


def checkpoint(path, tensors, metadata=None):
    with Writer(path, {name: tuple(t.shape) for name, t in tensors.items()}, torch.float32, metadata or {}) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    return str(path)


def original(text_width=768, channels=4):
    """The few tensors of an original checkpoint that tell what it is."""
    return {
        f"{ROOT}input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3),
        f"{ROOT}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, text_width),
    }


def refused(source, words, **more):
    with pytest.raises(ConfigError, match=words) as error:
        describe(Source(str(source), **more))
    assert error.value.fix
    return error.value


@pytest.mark.parametrize(
    ("width", "family", "resolution"),
    [(768, SD1, 512), (1024, SD2, 512), (2048, SDXL, 1024)],
    ids=["sd1", "sd2", "sdxl"],
)
def test_an_original_checkpoint_is_told_by_its_shapes(tmp_path, width, family, resolution):
    found, facts = describe(checkpoint(tmp_path / "m.safetensors", original(width)))
    assert found.name == family.name and found.resolution == facts.resolution == resolution
    assert facts.kind == "file" and facts.configs["unet"]["cross_attention_dim"] == width


def test_the_prediction_of_an_sd2_file_is_read_guessed_or_told(tmp_path):
    bias = f"{ROOT}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    wide, narrow = ({**original(1024), bias: torch.linspace(-side, side, 320)} for side in (0.3, 0.05))
    found, facts = describe(checkpoint(tmp_path / "wide.safetensors", wide))
    assert facts.prediction_type == "v_prediction" and "guess" in facts.prediction_from and found.resolution == 768
    found, facts = describe(checkpoint(tmp_path / "narrow.safetensors", narrow))
    assert facts.prediction_type == "epsilon" and found.resolution == 512 == facts.configs["unet"]["sample_size"] * 8
    said = checkpoint(tmp_path / "said.safetensors", narrow, {"modelspec.prediction_type": "v"})
    assert describe(said)[1].prediction_type == "v_prediction"
    assert describe(Source(said, prediction_type="epsilon"))[1].prediction_type == "epsilon"


def marked(tmp_path, *marks):
    """A small SDXL file as a merge leaves it: the marks of one model, the metadata of another."""
    list(export.write(SDXL.tiny(), None, tmp_path, ["single_file"], "fp32"))
    plain = tmp_path / "model.safetensors"
    tensors = load_file(plain) | {mark: torch.empty(0) for mark in marks}
    return checkpoint(tmp_path / "marked.safetensors", tensors, header(plain).metadata)


def test_marks_of_a_file_tell_its_prediction_and_its_schedule_before_any_metadata(tmp_path):
    source = marked(tmp_path, "v_pred", "ztsnr")
    facts = describe(source)[1]
    assert facts.prediction_type == "v_prediction" and "mark" in facts.prediction_from
    parts = load(source)
    scheduler = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    process, timesteps = parts.noise(), torch.tensor([0, 400, 999])
    assert process.ends_in_noise and torch.allclose(process.abar.float(), scheduler.alphas_cumprod, atol=2e-6)
    x, eps = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    torch.testing.assert_close(
        process.mix(x, eps, timesteps), scheduler.add_noise(x, eps, timesteps), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        process.target(x, eps, timesteps), scheduler.get_velocity(x, eps, timesteps), atol=2e-5, rtol=0
    )
    assert torch.equal(process.mix(x, eps, timesteps)[2], eps[2]), "nothing of the picture is left"
    walk = process.sampler(4)
    assert walk.config.rescale_betas_zero_snr and walk.timesteps[0] == 999, "previews begin where training ends"
    list(export.write(parts, None, tmp_path / "again", ["single_file"], "fp32"))
    assert {"v_pred", "ztsnr"} <= set(header(tmp_path / "again" / "model.safetensors").tensors)


def test_a_velocity_mark_alone_leaves_the_usual_schedule(tmp_path):
    parts = load(marked(tmp_path, "v_pred"))
    assert parts.prediction_type == "v_prediction" and not parts.noise().ends_in_noise


def test_a_unet_that_was_trained_along_straight_lines_says_so_by_its_scheduler(tmp_path):
    list(export.write(SD1.tiny(), None, tmp_path, ["diffusers"], "fp32"))
    folder = tmp_path / "diffusers"
    for scheduler in (
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.5},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.5},
    ):
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        facts = describe(str(folder))[1]
        assert facts.prediction_type == "flow"
        assert noise.of(facts.configs["scheduler"], "flow").sampler(4).config.shift == 2.5
    refused(folder, "flow-matching", prediction_type="v_prediction")
    parts = load(str(folder))
    list(export.write(parts, None, tmp_path / "again", ["diffusers", "single_file"], "fp32"))
    again = json.loads((tmp_path / "again" / "diffusers" / "scheduler" / "scheduler_config.json").read_text())
    assert again["_class_name"] == "FlowMatchEulerDiscreteScheduler" and "prediction_type" not in again
    file = tmp_path / "again" / "model.safetensors"
    assert describe(str(file))[1].prediction_type == "flow"
    assert "modelspec.prediction_type" not in header(file).metadata and "v_pred" not in header(file).tensors


def test_a_single_file_trained_along_straight_lines_is_told_so_and_diffusers_draws_from_its_export(tmp_path):
    list(export.write(SD1.tiny(), None, tmp_path, ["single_file"], "fp32"))
    parts = load(Source(str(tmp_path / "model.safetensors"), prediction_type="flow"))
    (written,) = [
        event
        for event in export.write(parts, None, tmp_path / "again", ["diffusers"], "fp32")
        if hasattr(event, "usage")
    ]
    pipeline = DiffusionPipeline.from_pretrained(written.path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == "flow_prediction" and pipeline.scheduler.config.use_flow_sigmas
    drawn = pipeline("a dog", num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert drawn.isfinite().all()
    with pytest.raises(ConfigError, match="no effect"):
        parts.noise(zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (original(channels=9), "inpainting"),
        (original(channels=8), "8 input channels"),
        (original(1280), "refiner"),
        (original(512), "text width"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": torch.zeros(1)}, "LoRA"),
        ({"lora_unet_x.lora_down.weight": torch.zeros(1)}, "LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "Flux"),
        ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "SD 3"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "part of a diffusers folder"),
        ({"something.else": torch.zeros(1)}, "no Stable Diffusion UNet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_something_else_is_called_by_its_name(tmp_path, tensors, words, record_property):
    record_property("shows", "bring|models of all|adapters, inpainting models, SD 3, Flux, the SDXL refiner|refused")
    refused(checkpoint(tmp_path / "m.safetensors", tensors), words)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, record_property):
    record_property("shows", "bring|models of all|.ckpt, .pt and .bin files|refused")
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(b"\x80")
        assert "weights_only=True" in refused(tmp_path / name, "pickle").fix


def test_missing_and_torn_files_are_named(tmp_path, exported):
    refused(tmp_path / "none.safetensors", "no file")
    refused("./nowhere/at/all", "no model")
    (tmp_path / "torn.safetensors").write_bytes(b"not safetensors at all")
    refused(tmp_path / "torn.safetensors", "not a safetensors file")
    torn = tmp_path / "short.safetensors"
    torn.write_bytes((exported / "model.safetensors").read_bytes()[:-1000])
    refused(torn, "cut short")
    folder = tmp_path / "folder"
    shutil.copytree(exported / "diffusers", folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(folder), parts=("vae",))


def test_a_file_of_the_family_with_other_shapes_is_refused(tmp_path):
    tensors = {entry.key: torch.zeros(entry.shape) for entry in ldm.layout({"unet": SD1.tiny().denoiser}, "sd1")}
    other = configurations(SD2.tiny()) | {"unet": configurations(SD1.tiny())["unet"] | {"cross_attention_dim": 48}}
    path = checkpoint(tmp_path / "m.safetensors", tensors, {"trainer.parts": json.dumps(other)})
    with pytest.raises(ConfigError, match="has shape"):
        load(path, parts=("denoiser",))


def test_a_folder_that_is_something_else_is_called_by_its_name(tmp_path, exported):
    refused(tmp_path, "no model_index.json")
    refused(exported / "diffusers" / "unet", "one part")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "LoRA")
    for parts, words in (
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "FluxPipeline"),
        ({"_class_name": "StableDiffusionInpaintPipeline", "unet": [1, 1], "text_encoder": [1, 1]}, "Inpaint"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(parts))
        refused(tmp_path, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"addition_embed_type": "text_time", "cross_attention_dim": 1280}, "refiner"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
        ({"class_embed_type": "timestep"}, "unknown here"),
    ],
)
def test_a_unet_with_other_conditions_is_refused(tmp_path, exported, change, words):
    folder = tmp_path / "model"
    shutil.copytree(exported / "diffusers", folder, ignore=shutil.ignore_patterns("*.safetensors", "vocab.json"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | change))
    refused(folder, words)


@pytest.mark.parametrize("change", [{"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_an_unknown_noise_schedule_is_refused(tmp_path, exported, change):
    folder = tmp_path / "model"
    shutil.copytree(exported / "diffusers", folder, ignore=shutil.ignore_patterns("*.safetensors", "vocab.json"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(folder, "unknown here")


def test_a_folder_is_described_without_reading_weights_and_missing_weights_are_named(tmp_path, exported):
    folder = tmp_path / "model"
    shutil.copytree(exported / "diffusers", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found, facts = describe(str(folder))
    assert (found.name, found.resolution, facts.kind, facts.prediction_type) == ("demo", 64, "folder", "epsilon")
    with pytest.raises(ConfigError, match=r"no .safetensors weights"):
        load(str(folder))
    (folder / "unet" / "config.json").unlink()
    refused(folder, "is missing")


def test_the_asked_family_must_be_the_model_s_own(exported):
    refused(exported / "diffusers", "not sdxl", family="sdxl")
    assert (
        describe(Source(str(exported / "diffusers"), family="sd1"))[0].name == DEMO.name
    )  # narrow, so with the demo's defaults


def test_parts_dtype_and_prediction_are_as_asked(exported):
    source = Source(str(exported / "model.safetensors"), prediction_type="v_prediction")
    parts = load(source, parts=("denoiser",), dtype=torch.bfloat16)
    assert parts.vae is None and parts.text_encoders == [] and parts.tokenizers == []
    assert parts.denoiser.dtype == torch.bfloat16 and parts.prediction_type == "v_prediction"
    assert all(p.requires_grad for p in parts.denoiser.parameters()) and not parts.denoiser.training


HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def in_its_file(tensor):
    """Whether a tensor's bytes are a mapped file's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, *_, last = line.split()
            first, end = (int(side, 16) for side in span.split("-"))
            if first <= tensor.data_ptr() < end:
                return last.endswith(".safetensors")
    return False


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_model_as_its_file_has_it_is_neither_rounded_nor_copied(tmp_path, precision):
    list(export.write(SD2.tiny(), None, tmp_path, ["diffusers", "single_file"], precision))
    for source in (tmp_path / "diffusers", tmp_path / "model.safetensors"):
        wide, stored = load(str(source)), load(str(source), dtype=None)
        for name, module in stored.modules().items():
            assert {p.dtype for p in module.parameters()} == {HALF.get(precision, torch.float32)}, name
            for ours, theirs in zip(module.parameters(), wide.modules()[name].parameters(), strict=True):
                assert torch.equal(ours.float(), theirs), name
            if Path("/proc/self/maps").exists():
                assert all(in_its_file(p) for p in module.parameters()), name


def test_parts_of_one_file_keep_their_own_precision_and_mixed_ones_the_wider(tmp_path):
    parts = SD1.tiny()
    names = {entry.key: entry for entry in ldm.layout(parts.modules(), "sd1")}
    odd = next(key for key in names if key.startswith(ldm.UNET))
    dtypes = dict.fromkeys(names, torch.float16)
    dtypes |= {key: torch.float32 for key in names if key.startswith(ldm.VAE)} | {odd: torch.float32}
    path = tmp_path / "m.safetensors"
    metadata = {"trainer.parts": json.dumps(configurations(parts))}
    generator = torch.Generator().manual_seed(0)
    values = {key: torch.rand(entry.shape, generator=generator) for key, entry in names.items()}
    with Writer(path, {key: entry.shape for key, entry in names.items()}, dtypes, metadata) as file:
        for key, value in values.items():
            file.write(key, value)
    found = load(str(path), dtype=None)
    assert (found.text_encoders[0].dtype, found.vae.dtype, found.denoiser.dtype) == (
        torch.float16,
        torch.float32,
        torch.float32,
    )
    first = dict(found.denoiser.named_parameters())[names[odd].names[0].removeprefix("unet.")]
    assert torch.equal(first, values[odd])  # as the file has it, not by way of fp16


def test_of_several_variants_the_one_that_is_read_decides_the_precision(tmp_path):
    list(export.write(SD1.tiny(), None, tmp_path, ["diffusers"], "fp32"))
    list(export.write(SD1.tiny(), None, tmp_path / "half", ["diffusers"], "fp16"))
    name = "diffusion_pytorch_model"
    shutil.copy(
        tmp_path / "half/diffusers/unet" / f"{name}.safetensors",
        tmp_path / "diffusers/unet" / f"{name}.fp16.safetensors",
    )
    for variant, dtype in (("fp16", torch.float16), (None, torch.float32)):
        assert (
            load(Source(str(tmp_path / "diffusers"), variant=variant), parts=("denoiser",), dtype=None).denoiser.dtype
            == dtype
        )


@pytest.mark.parametrize("shard", ["10GB", "500KB"], ids=["whole", "in shards"])
def test_a_folder_with_one_variant_loads_when_it_is_named_and_the_flag_is_told_when_it_is_not(
    tmp_path, shard, record_property
):
    record_property("shows", "bring|models of all|a diffusers folder, plain or fp16 variant, whole or in shards|works")
    pipeline = SD1.pipeline(SD1.tiny())
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shard)
    pipeline.save_pretrained(tmp_path / "plain", max_shard_size=shard)
    for folder, variant in (("half", "fp16"), ("plain", None)):
        check_weights(describe(str(tmp_path / folder))[1], variant)
        found = load(Source(str(tmp_path / folder), variant=variant), parts=("denoiser", "text")).modules()
        for name, module in found.items():
            expected = dict(SD1.tiny().modules()[name].named_parameters())
            assert all(torch.equal(tensor, expected[key]) for key, tensor in module.named_parameters())
    with pytest.raises(ConfigError, match="fp16") as error:
        check_weights(describe(str(tmp_path / "half"))[1], None)
    assert "--variant fp16" in error.value.fix
    with pytest.raises(ConfigError, match="no weights of the variant 'fp16'") as error:
        check_weights(describe(str(tmp_path / "plain"))[1], "fp16")
    assert "leave --variant out" in error.value.fix


def test_the_digest_follows_the_weights_not_what_was_loaded(tmp_path, exported):
    whole, part = load(str(exported / "diffusers")), load(str(exported / "diffusers"), parts=("denoiser",))
    assert whole.digest == part.digest
    other = shutil.copytree(exported / "diffusers", tmp_path / "other")
    with open(other / "unet" / "diffusion_pytorch_model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert load(str(other), parts=()).digest != whole.digest


def test_another_vae_takes_the_place_of_the_model_s(tmp_path, exported, record_property):
    record_property("shows", "bring|models of all|a VAE in a folder|works")
    list(export.write(SD1.tiny(seed=1), None, tmp_path, ["diffusers"], "fp32"))
    plain = load(str(exported / "diffusers"), parts=("vae",))
    for place in (tmp_path / "diffusers", tmp_path / "diffusers" / "vae"):
        other = load(Source(str(exported / "diffusers"), vae=str(place)), parts=("vae",))
        assert torch.equal(other.vae.encoder.conv_in.weight, SD1.tiny(seed=1).vae.encoder.conv_in.weight)
        assert other.digest != plain.digest
    with pytest.raises(ConfigError, match="no VAE"):
        load(Source(str(exported / "diffusers"), vae=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match="not a VAE"):
        load(Source(str(exported / "diffusers"), vae=checkpoint(tmp_path / "v.safetensors", original())))


@pytest.mark.parametrize("scale", [0.18215, 0.13025], ids=["of 1.x", "of SDXL"])
def test_latents_of_a_vae_that_lies_in_a_file_are_scaled_as_the_model_knows_them(
    tmp_path, exported, scale, record_property
):
    """A file says nothing of the scale; SDXL's latents by the number of 1.x would be 1.4 times too large."""
    record_property("shows", "bring|models of all|a VAE in a file of its own or in a checkpoint|works")
    model = shutil.copytree(exported / "diffusers", tmp_path / "model")
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": scale}))
    list(export.write(SD1.tiny(seed=1), None, tmp_path, ["single_file"], "fp32"))
    whole = load_file(tmp_path / "model.safetensors")
    alone = {key.removeprefix(ldm.VAE): tensor for key, tensor in whole.items() if key.startswith(ldm.VAE)}
    save_file(alone, tmp_path / "vae.safetensors")
    for file in ("vae.safetensors", "model.safetensors"):
        found = load(Source(str(model), vae=str(tmp_path / file)), parts=("vae",)).vae
        assert found.config.scaling_factor == scale
        assert torch.equal(found.decoder.conv_in.weight, SD1.tiny(seed=1).vae.decoder.conv_in.weight)


def test_a_vae_of_another_kind_of_latents_is_refused_and_one_that_says_nothing_takes_the_models_scale(
    tmp_path, exported
):
    place = shutil.copytree(exported / "diffusers" / "vae", tmp_path / "vae")
    facts = describe(str(exported / "diffusers"))[1]
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.13025}))
    for ask in (
        lambda: check_vae(str(place), facts),
        lambda: load(Source(str(facts.path), vae=str(place)), parts=("vae",)),
    ):
        with pytest.raises(ConfigError, match="another kind") as error:
            ask()
        assert "Stable Diffusion 1.x" in error.value.fix
    del config["scaling_factor"]
    (place / "config.json").write_text(json.dumps(config))
    other = tmp_path / "model"
    shutil.copytree(exported / "diffusers", other)
    (other / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert load(Source(str(other), vae=str(place)), parts=("vae",)).vae.config.scaling_factor == 0.5


def test_a_vae_that_is_a_pickle_or_lacks_its_configuration_is_named_with_the_way_out(tmp_path, exported):
    facts = describe(str(exported / "diffusers"))[1]
    (tmp_path / "x.vae.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle"):
        check_vae(str(tmp_path / "x.vae.pt"), facts)
    weights = exported / "diffusers" / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ConfigError, match="diffusers' key names") as error:
        load(Source(str(exported / "diffusers"), vae=str(weights)), parts=("vae",))
    assert str(weights.parent) in error.value.fix


def test_a_checkpoint_without_a_vae_says_so(tmp_path):
    keys = {entry.key: torch.zeros(entry.shape) for entry in ldm.layout({"unet": SD1.tiny().denoiser}, "sd1")}
    path = checkpoint(tmp_path / "m.safetensors", keys, {"trainer.parts": json.dumps(configurations(SD1.tiny()))})
    with pytest.raises(ConfigError, match="no VAE"):
        load(path, parts=("denoiser", "vae"))


def test_a_checkpoint_of_1_x_from_before_the_text_model_level_loads(tmp_path, exported, record_property):
    """The first SD 1 files kept the text encoder one level higher; the WebUI converts them when it loads them."""
    record_property("shows", "bring|models of all|an SD 1 file from before the text_model level|works")
    new, old = exported / "model.safetensors", tmp_path / "old.safetensors"
    renamed = {key.replace(".transformer.text_model.", ".transformer."): t for key, t in load_file(new).items()}
    assert renamed.keys() != load_file(new).keys()
    save_file(renamed, old, header(new).metadata)
    expected, found = load(str(new)), load(str(old))
    for name, tensor in expected.text_encoders[0].state_dict().items():
        assert torch.equal(tensor, found.text_encoders[0].state_dict()[name])


def test_a_hub_model_offline_names_both_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refused("stable-diffusion-v1-5/stable-diffusion-v1-5", "cannot be reached")
    assert "safetensors" in error.fix


def test_a_file_loads_with_the_network_forbidden(monkeypatch, exported, record_property):
    record_property("shows", "bring|models of all|one .safetensors checkpoint, without a network|works")

    def forbidden(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    parts = load(str(exported / "model.safetensors"))
    assert parts.family.encode_text(parts, ["a dog"])["text"].shape == (1, 77, 32)


@pytest.mark.hub
def test_a_hub_model_loads_and_a_missing_one_is_named(tmp_path):
    try:
        huggingface_hub.HfApi().model_info("hf-internal-testing/tiny-stable-diffusion-pipe", timeout=5)
    except (huggingface_hub.errors.HfHubHTTPError.__mro__[1], OSError) as error:
        pytest.skip(f"the model hub cannot be reached: {type(error).__name__}")
    refused("hf-internal-testing/there-is-no-such-model", "no model")
    parts = load("hf-internal-testing/tiny-stable-diffusion-pipe")
    assert parts.denoiser is not None and parts.digest
