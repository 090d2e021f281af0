"""Exports open in diffusers and in our own loader with exactly the rounded weights, and are compared before they count."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from trainer.errors import ConfigError
from trainer.events import Exported, PhaseEnded, PhaseStarted
from trainer.files.safetensors_stream import Writer, header
from trainer.files.whole import whole
from trainer.models import SD1, SD2, SDXL, STABLE, adapters, load
from trainer.out import export
from trainer.settings.config import Lora

PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def named(parts):
    return {
        f"{model}.{name}": p.detach()
        for model, module in parts.modules().items()
        for name, p in module.named_parameters()
    }


def of_pipeline(pipeline):
    modules = {"unet": pipeline.unet, "vae": pipeline.vae, "text": pipeline.text_encoder}
    if hasattr(pipeline, "text_encoder_2"):
        modules["text_2"] = pipeline.text_encoder_2
    return {f"{model}.{name}": p.detach() for model, module in modules.items() for name, p in module.named_parameters()}


def exported(parts, weights, folder, formats, precision="fp32", **more):
    events = list(export.write(parts, weights, folder, formats, precision, {"steps": "12"}, **more))
    assert isinstance(events[0], PhaseStarted) and isinstance(events[-1], PhaseEnded)
    return [event for event in events if isinstance(event, Exported)]


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), [
        n for n in ours if not torch.equal(ours[n], theirs[n])
    ][:3]


@pytest.fixture(scope="module", params=STABLE, ids=lambda family: family.name)
def made(request, tmp_path_factory):
    """One export of each family to both full formats, in fp32, with the UNet's weights coming from outside."""
    parts = request.param.tiny()
    folder = tmp_path_factory.mktemp(request.param.name)
    trained = {name: tensor + 0.01 for name, tensor in named(parts).items() if name.startswith("unet.")}
    events = exported(parts, lambda: iter(trained.items()), folder, ["diffusers", "single_file"])
    return parts, named(parts) | trained, folder, events


def test_the_folder_opens_in_diffusers(made):
    parts, expected, folder, events = made
    pipeline = PIPELINES[parts.family.name].from_pretrained(folder / "diffusers", local_files_only=True)
    equal(expected, of_pipeline(pipeline))
    assert pipeline.scheduler.config.prediction_type == parts.prediction_type
    ids = pipeline.tokenizer(["a photo of a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(ids, parts.family.tokens(parts, ["a photo of a cat"])["input_ids"])
    assert events[0].max_error == 0 and events[0].size_bytes > 4 * sum(t.numel() for t in expected.values())


def test_the_single_file_opens_in_diffusers(made):
    parts, expected, folder, events = made
    pipeline = PIPELINES[parts.family.name].from_single_file(
        str(folder / "model.safetensors"),
        config=str(folder / "diffusers"),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    equal(expected, of_pipeline(pipeline))
    assert events[1].format == "single file"


def test_our_loader_reads_both_back(made):
    parts, expected, folder, _ = made
    for source in (folder / "diffusers", folder / "model.safetensors"):
        again = load(str(source))
        equal(expected, named(again))
        assert again.prediction_type == parts.prediction_type
        assert again.family.resolution == 64


def test_the_single_file_says_what_it_is(made):
    parts, _, folder, _ = made
    metadata = header(folder / "model.safetensors").metadata
    assert metadata["modelspec.architecture"].startswith(
        {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "sdxl": "stable-diffusion-xl"}[parts.family.name]
    )
    assert metadata["modelspec.prediction_type"] == ("v" if parts.family is SD2 else "epsilon")
    assert metadata["trainer.steps"] == "12" and metadata["trainer.precision"] == "fp32"
    assert json.loads(metadata["trainer.parts"])["unet"]["in_channels"] == 4


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_is_rounded_once_and_its_error_reported(tmp_path, precision):
    parts = SD1.tiny()
    dtype = export.PRECISIONS[precision]
    (event,) = exported(parts, None, tmp_path, ["single_file"], precision)
    again = named(load(str(tmp_path / "model.safetensors"), dtype=dtype))
    equal({name: tensor.to(dtype) for name, tensor in named(parts).items()}, again)
    assert event.max_error == max(
        (tensor - again[name].float()).abs().max().item() for name, tensor in named(parts).items()
    )
    assert 0 < event.max_error < 0.05


def test_parts_that_were_freed_come_from_the_source(tmp_path):
    exported(SD1.tiny(), None, tmp_path / "a", ["diffusers"])
    parts = load(str(tmp_path / "a" / "diffusers"), parts=("denoiser",))
    exported(parts, None, tmp_path / "b", ["diffusers"])
    equal(named(SD1.tiny()), named(load(str(tmp_path / "b" / "diffusers"))))


BOTH = ["lora_diffusers", "lora_kohya"]
CASES = [(SD1, False, BOTH), (SDXL, False, BOTH), (SD2, True, BOTH[:1])]


@pytest.mark.parametrize(("family", "dora", "formats"), CASES, ids=["sd1", "sdxl", "sd2-dora"])
def test_adapters_open_in_diffusers_under_both_kinds_of_names(tmp_path, family, dora, formats):
    parts = family.tiny()
    targets = ["to_q", "to_k", "to_v", "to_out.0"] if dora else ["to_q", "to_out.0", "ff.net.0.proj", "proj_in"]
    adapters.inject(parts, Lora(rank=4, alpha=2, targets=targets), dora=dora, text=True)
    with torch.no_grad():
        for _, parameter in adapters.trainable(parts):
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    given = {"sample": torch.ones(1, 4, 8, 8), "timestep": torch.tensor([10])}
    given |= family.tokens(parts, ["a dog"]) | family.extra_values((64, 64), (0, 0), (64, 64), 1)
    with torch.no_grad():
        wanted = family.denoise(parts, given)
    for event in exported(parts, None, tmp_path, formats):
        file = Path(event.path).name
        fresh = family.tiny()
        with torch.no_grad():
            before = family.denoise(fresh, given)
            family.pipeline(fresh).load_lora_weights(str(tmp_path), weight_name=file)
            assert torch.allclose(family.denoise(fresh, given), wanted, atol=1e-5), file
        assert not torch.allclose(before, wanted, atol=1e-4)


def test_kohya_names_are_the_real_ones(tmp_path, record_property):
    record_property("shows", "take|kohya's sd-scripts, ComfyUI, WebUIs|names of an adapter; SD 1, SDXL|works")
    for family, some in (
        (
            SD1,
            [
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
                "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
            ],
        ),
        (
            SDXL,
            [
                "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_out_0.lora_up.weight",
                "lora_te1_text_model_encoder_layers_0_self_attn_k_proj.alpha",
                "lora_te2_text_model_encoder_layers_1_self_attn_out_proj.lora_up.weight",
            ],
        ),
    ):
        parts = family.tiny()
        adapters.inject(parts, Lora(rank=2, alpha=1), text=True)
        exported(parts, None, tmp_path / family.name, ["lora_kohya"])
        with safe_open(tmp_path / family.name / "lora_kohya.safetensors", "pt") as file:
            assert set(some) <= set(file.keys())
            assert file.get_tensor(next(key for key in file.keys() if key.endswith(".alpha"))).item() == 1.0  # noqa: SIM118
        assert header(tmp_path / family.name / "lora_kohya.safetensors").metadata["ss_network_dim"] == "2"


def test_dora_under_kohyas_names_is_the_formula_of_the_paper(tmp_path, record_property):
    """diffusers 0.42 leaves dora_scale out, so the file is checked against W' = m (W + s B A) / ||W + s B A||."""
    record_property("shows", "take|kohya's sd-scripts, LyCORIS|DoRA by the paper's formula, checked without them|works")
    parts = SDXL.tiny()
    adapters.inject(parts, Lora(rank=4, alpha=2, targets=["to_q", "conv1"]), dora=True)
    with torch.no_grad():
        for _, parameter in adapters.trainable(parts):
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    (event,) = exported(parts, None, tmp_path, ["lora_kohya"])
    assert "diffusers" not in event.usage and "load_lora_weights" not in event.usage
    folded, plain = dict(adapters.merged(parts)), named(SDXL.tiny())
    with safe_open(event.path, "pt") as file:
        for name, key in (
            (
                "unet.mid_block.attentions.0.transformer_blocks.1.attn2.to_q.weight",
                "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_q",
            ),
            ("unet.down_blocks.0.resnets.0.conv1.weight", "lora_unet_input_blocks_1_0_in_layers_2"),
        ):
            down, up = file.get_tensor(f"{key}.lora_down.weight"), file.get_tensor(f"{key}.lora_up.weight")
            update = (up.flatten(1) @ down.flatten(1)).reshape(plain[name].shape) * file.get_tensor(f"{key}.alpha") / 4
            whole = plain[name] + update
            norm = whole.flatten(1).norm(dim=1).reshape(-1, *[1] * (whole.dim() - 1))
            assert torch.allclose(file.get_tensor(f"{key}.dora_scale") * whole / norm, folded[name], atol=1e-6)


def test_full_formats_fold_adapters_in(tmp_path):
    parts = SD1.tiny()
    adapters.inject(parts, Lora(rank=4))
    trained = {name: torch.full_like(p, 0.1) for name, p in adapters.trainable(parts)}  # names as the engine has them
    exported(parts, trained, tmp_path, ["diffusers", "single_file", "lora_diffusers"])
    adapters.load_state_dict(parts, {adapters.saved_name(name): tensor for name, tensor in trained.items()})
    folded = dict(adapters.merged(parts))
    equal(folded, named(load(str(tmp_path / "diffusers"))))
    equal(folded, named(load(str(tmp_path / "model.safetensors"))))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(named(SD1.tiny())[name], folded[name])


def test_nothing_is_overwritten_unless_asked(tmp_path):
    parts = SD1.tiny()
    exported(parts, None, tmp_path, ["single_file"])
    first = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        exported(parts, None, tmp_path, ["single_file"])
    assert (tmp_path / "model.safetensors").read_bytes() == first
    exported(SD1.tiny(seed=1), None, tmp_path, ["single_file"], replace=True)
    assert (tmp_path / "model.safetensors").read_bytes() != first


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match="GiB free"):
        exported(SD1.tiny(), None, tmp_path, ["single_file"])
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_fp16_or_nan_is_refused_and_leaves_nothing(tmp_path):
    parts = SD1.tiny()
    for value, words in ((1e6, "fp32"), (float("nan"), "diverged")):
        weights = {"unet.conv_in.bias": torch.full((32,), value)}
        with pytest.raises(ConfigError, match=words):
            exported(parts, weights, tmp_path, ["single_file"], "fp16")
        assert list(tmp_path.iterdir()) == []


def test_the_writer_takes_pieces_in_any_order_and_leaves_no_torso(tmp_path):
    path = tmp_path / "x.safetensors"
    with Writer(path, {"a": (4,), "b": (2, 2)}, torch.bfloat16, {"k": "v"}) as file:
        file.write("b", torch.ones(2, 2))
        file.write("a", torch.tensor([3.0, 4.0]), first=2)
        file.write("a", torch.tensor([1.0, 2.0]))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("a").tolist() == [1, 2, 3, 4] and file.metadata() == {"k": "v"}
    assert header(path).tensors == {"a": ("BF16", (4,)), "b": ("BF16", (2, 2))}
    with (
        pytest.raises(AssertionError, match="never written"),
        whole(tmp_path / "y") as part,
        Writer(part, {"a": (4,)}, torch.float32, {}),
    ):
        pass
    assert not (tmp_path / "y").exists()
