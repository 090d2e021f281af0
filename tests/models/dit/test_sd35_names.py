"""The names of Stable Diffusion 3.5's single files, held against what diffusers and ComfyUI look for."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from trainer.models.dit import sd35_names
from trainer.models.dit.sd35 import SD35


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    """Every tensor that belongs to a file, by our full name, with values of its own."""
    found = {}
    for part, module in SD35.tiny().modules().items():
        for name, parameter in module.named_parameters():
            found[f"{part}.{name}"] = torch.rand_like(parameter)
    found[f"transformer.{sd35_names.PLACES}"] = torch.rand(1, 12 * 12, 32)
    return found


@pytest.fixture(scope="module")
def file(own) -> dict[str, Tensor]:
    """A single file, written as an export writes it."""
    stored = {}
    for entry in sd35_names.layout(SD35.tiny().modules()):
        stored[entry.key] = torch.full(entry.shape, float("nan"))
        for name in entry.names:
            first = entry.first(name)
            stored[entry.key].view(-1)[first : first + own[name].numel()] = entry.pack(own[name]).reshape(-1)
    return stored


def test_what_is_read_back_is_what_was_written(own, file):
    back = {}
    for entry in sd35_names.layout(SD35.tiny().modules()):
        back |= entry.unpack(file[entry.key])
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name].reshape(own[name].shape), own[name]) for name in own)
    assert not any(tensor.isnan().any() for tensor in file.values())


def test_diffusers_own_conversion_makes_the_transformer_of_it_again(own, file):
    stored = {key: tensor for key, tensor in file.items() if key.startswith(sd35_names.PLACE)}
    converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(stored)
    assert not stored, "tensors that diffusers does not know"
    assert {f"transformer.{name}" for name in converted} == {name for name in own if name.startswith("transformer.")}
    assert all(torch.equal(tensor, own[f"transformer.{name}"]) for name, tensor in converted.items())


def test_diffusers_own_conversions_make_the_other_parts_of_it_again(own, file):
    vae = SD35.tiny().vae
    converted = {
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(file), vae.config),
        "text": single_file_utils.convert_ldm_clip_checkpoint(dict(file), sd35_names.TEXT["text"]),
        "text_2": single_file_utils.convert_ldm_clip_checkpoint(dict(file), sd35_names.TEXT["text_2"]),
        "text_3": single_file_utils.convert_sd3_t5_checkpoint_to_diffusers(file),
    }
    for part, tensors in converted.items():
        mine = {name.removeprefix(f"{part}."): tensor for name, tensor in own.items() if name.startswith(f"{part}.")}
        assert tensors.keys() == mine.keys(), part
        assert all(torch.equal(tensors[name].reshape(mine[name].shape), mine[name]) for name in mine), part


def test_the_public_file_is_told_by_diffusers_and_has_what_comfyui_tells_it_by():
    """comfy/model_detection.py and supported_models.py (Comfy-Org 0b61ce5): a joint transformer by the context's fused q, k, v;
    its depth is the width over 64; sizes, table of places and layers that attend twice by these tensors."""
    whole = SD35.meta()
    entries = {entry.key: torch.empty(entry.shape, device="meta") for entry in sd35_names.layout(whole.modules())}
    assert single_file_utils.infer_diffusers_model_type(entries) == "sd35_medium"
    place = sd35_names.PLACE
    assert f"{place}joint_blocks.0.context_block.attn.qkv.weight" in entries
    assert entries[f"{place}x_embedder.proj.weight"].shape == (24 * 64, 16, 2, 2)
    assert entries[f"{place}final_layer.linear.weight"].shape == (16 * 4, 1536)
    assert entries[f"{place}y_embedder.mlp.0.weight"].shape == (1536, 2048)
    assert entries[f"{place}context_embedder.weight"].shape == (1536, 4096)
    assert entries[f"{place}pos_embed"].shape == (1, 384 * 384, 1536)
    assert f"{place}joint_blocks.0.context_block.attn.ln_q.weight" in entries
    twice = [key.split(".")[3] for key in entries if key.endswith(".x_block.attn2.qkv.weight")]
    assert twice == [str(i) for i in range(13)]
    assert sd35_names.MARK in entries
    assert single_file_utils.is_clip_sd3_model(entries) and single_file_utils.is_open_clip_sd3_model(entries)
    assert single_file_utils.is_t5_in_single_file(entries)


def test_adapters_keep_diffusers_module_paths():
    assert (
        sd35_names.adapter_path(SD35.tiny().denoiser)("transformer_blocks.1.attn.to_q")
        == "transformer_blocks.1.attn.to_q"
    )
