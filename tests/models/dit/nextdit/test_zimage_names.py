"""Z-Image's tensors under the names of its public files, as diffusers and ComfyUI read them."""

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from trainer.models.dit.nextdit import zimage_names
from trainer.models.dit.nextdit.zimage import ZIMAGE


def narrow() -> ZImageTransformer2DModel:
    torch.manual_seed(0)
    model = ZIMAGE.tiny().denoiser.to(torch.bfloat16)
    torch.nn.init.normal_(model.cap_pad_token)
    return model


def stored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a file, each name's part where the layout says."""
    named = {f"transformer.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    file = {}
    for entry in zimage_names.layout({"transformer": model}):
        tensor = torch.empty(entry.shape, dtype=torch.bfloat16)
        for name in entry.names:
            first, part = entry.first(name), entry.pack(named[name]).reshape(-1)
            tensor.view(-1)[first : first + part.numel()] = part
        file[entry.key] = tensor
    return file


def test_diffusers_conversion_reads_what_the_layout_writes(tmp_path):
    model = narrow()
    file = stored(model)
    again = convert_z_image_transformer_checkpoint_to_diffusers(dict(file))
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())
    save_file(file, tmp_path / "model.safetensors")
    model.save_config(tmp_path)
    loaded = ZImageTransformer2DModel.from_single_file(str(tmp_path / "model.safetensors"), config=str(tmp_path))
    assert all(torch.equal(loaded.get_parameter(name).bfloat16(), p) for name, p in model.named_parameters())


def test_the_layout_reads_back_what_it_wrote():
    model = narrow()
    file, again = stored(model), {}
    for entry in zimage_names.layout({"transformer": model}):
        again |= entry.unpack(file[entry.key])
    assert len(again) == len(list(model.parameters()))
    assert all(torch.equal(again[f"transformer.{name}"], p) for name, p in model.named_parameters())


def test_keys_are_those_by_which_comfyui_knows_z_image():
    """comfy/model_detection.py: the width of cap_embedder.1.weight, and blocks counted by their names."""
    with torch.device("meta"):
        shapes = {entry.key: entry.shape for entry in zimage_names.layout({"transformer": ZIMAGE.meta().denoiser})}
    assert shapes["cap_embedder.1.weight"] == (3840, 2560)
    assert shapes["layers.29.attention.qkv.weight"] == (3 * 3840, 3840)
    assert len({key.split(".")[1] for key in shapes if key.startswith("layers.")}) == 30
    assert shapes[zimage_names.MARK] == (1, 3840)


def test_a_model_without_a_transformer_has_no_entries():
    assert zimage_names.layout({"vae": ZIMAGE.tiny().vae}) == []
