"""Lumina's tensors under the names of its public files, as diffusers and ComfyUI read them."""

import torch
from diffusers import Lumina2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers
from safetensors.torch import save_file

from trainer.models.dit.nextdit import lumina2_names
from trainer.models.dit.nextdit.lumina2 import LUMINA2


def narrow() -> Lumina2Transformer2DModel:
    """As wide as the public one where diffusers' conversion names its numbers, and small elsewhere."""
    public = LUMINA2.config("transformer") | {"num_layers": 2, "multiple_of": 1, "ffn_dim_multiplier": 0.01}
    torch.manual_seed(0)
    return Lumina2Transformer2DModel.from_config(public).to(torch.bfloat16)


def stored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a file, each name's part where the layout says."""
    named = {f"transformer.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    file = {}
    for entry in lumina2_names.layout({"transformer": model}):
        tensor = torch.empty(entry.shape, dtype=torch.bfloat16)
        for name in entry.names:
            first, part = entry.first(name), entry.pack(named[name]).reshape(-1)
            tensor.view(-1)[first : first + part.numel()] = part
        file[entry.key] = tensor
    return file


def test_diffusers_conversion_reads_what_the_layout_writes(tmp_path):
    model = narrow()
    file = stored(model)
    again = convert_lumina2_to_diffusers(dict(file))
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())
    save_file(file, tmp_path / "model.safetensors")
    model.save_config(tmp_path)
    loaded = Lumina2Transformer2DModel.from_single_file(str(tmp_path / "model.safetensors"), config=str(tmp_path))
    assert all(torch.equal(loaded.get_parameter(name).bfloat16(), p) for name, p in model.named_parameters())


def test_the_layout_reads_back_what_it_wrote():
    model = narrow()
    file, again = stored(model), {}
    for entry in lumina2_names.layout({"transformer": model}):
        again |= entry.unpack(file[entry.key])
    assert len(again) == len(list(model.parameters()))
    assert all(torch.equal(again[f"transformer.{name}"], p) for name, p in model.named_parameters())


def test_keys_are_those_by_which_comfyui_knows_lumina():
    """comfy/model_detection.py: the width of cap_embedder.1.weight, and blocks counted by their names."""
    with torch.device("meta"):
        shapes = {entry.key: entry.shape for entry in lumina2_names.layout({"transformer": LUMINA2.meta().denoiser})}
    assert shapes["cap_embedder.1.weight"] == (2304, 2304)
    assert shapes["layers.25.attention.qkv.weight"] == (2304 + 768 + 768, 2304)
    assert len({key.split(".")[1] for key in shapes if key.startswith("layers.")}) == 26
    assert lumina2_names.MARK in shapes


def test_a_model_without_a_transformer_has_no_entries():
    assert lumina2_names.layout({"vae": LUMINA2.tiny().vae}) == []
