"""The names of FLUX.2's public files, held against what diffusers and ComfyUI look for."""

import pytest
import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from torch import Tensor

from trainer.models.dit import klein_names
from trainer.models.dit.klein import KLEIN

OURS = "transformer."


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    return {f"{OURS}{name}": tensor for name, tensor in KLEIN.tiny().denoiser.state_dict().items()}


@pytest.fixture(scope="module")
def file(own) -> dict[str, Tensor]:
    """A public file, written as an export writes it."""
    stored = {}
    for entry in klein_names.layout(KLEIN.tiny().modules()):
        stored[entry.key] = torch.full(entry.shape, float("nan"))
        for name in entry.names:
            first = entry.first(name)
            stored[entry.key].view(-1)[first : first + own[name].numel()] = entry.pack(own[name]).reshape(-1)
    return stored


def test_diffusers_own_conversion_makes_the_model_of_it_again(own, file):
    converted = single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers(dict(file))
    assert {f"{OURS}{name}" for name in converted} == own.keys()
    assert all(torch.equal(tensor, own[f"{OURS}{name}"]) for name, tensor in converted.items())
    assert single_file_utils.infer_diffusers_model_type(file) == "flux-2-dev"  # its only name for FLUX.2


def test_what_is_read_back_is_what_was_written(own, file):
    back = {}
    for entry in klein_names.layout(KLEIN.tiny().modules()):
        back |= entry.unpack(file[entry.key])
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)


def test_the_public_file_holds_the_tensors_that_comfyui_tells_the_model_by():
    """comfy/model_detection.py: FLUX.2 by its shared modulations, its depths by counting, its widths by img_in and txt_in."""
    entries = {entry.key: entry.shape for entry in klein_names.layout({"transformer": KLEIN.meta().denoiser})}
    assert {klein_names.MARK, "double_blocks.0.img_attn.norm.key_norm.scale"} <= entries.keys()
    assert entries["img_in.weight"] == (3072, 128) and entries["txt_in.weight"] == (3072, 7680)
    assert sum(key.endswith("img_attn.qkv.weight") for key in entries) == 5
    assert sum(key.endswith("linear1.weight") for key in entries) == 20
    assert len(entries) == 9 + 5 * 12 + 20 * 4 and "guidance_in.in_layer.weight" not in entries
    assert entries["double_blocks.0.txt_attn.qkv.weight"] == (9216, 3072)


def test_the_other_parts_are_in_files_of_their_own():
    assert not klein_names.layout({"vae": KLEIN.tiny().vae})


def test_paths_of_adapters_are_those_that_kohyas_and_diffusers_readers_know():
    denoiser = KLEIN.tiny().denoiser
    path = klein_names.adapter_path(denoiser)
    tensors = {}
    for name, module in denoiser.named_modules():
        if (
            isinstance(module, torch.nn.Linear)
            and ".to_q" not in name
            and ".add_q" not in name
            and "modulation" not in name
        ):
            key = "lora_unet_" + path(name).replace(".", "_")
            if key in ("lora_unet_final_layer_adaLN_modulation_1",) or ".to_k" in name or ".to_v" in name:
                continue
            if ".add_" in name:
                continue
            tensors[f"{key}.lora_down.weight"] = torch.ones(2, module.in_features)
            tensors[f"{key}.lora_up.weight"] = torch.ones(module.out_features, 2)
    read = lora_conversion_utils._convert_kohya_flux2_lora_to_diffusers(dict(tensors))
    modules = {
        name.removesuffix(".lora_A.weight").removeprefix(OURS) for name in read if name.endswith("lora_A.weight")
    }
    assert len(modules) == len(tensors) // 2 and modules <= {name for name, _ in denoiser.named_modules()}
    assert (
        path("transformer_blocks.1.attn.to_k")
        == path("transformer_blocks.1.attn.to_q")
        == "double_blocks.1.img_attn.qkv"
    )
