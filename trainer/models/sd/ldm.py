"""The key names of original checkpoints (LDM, SGM; what ComfyUI and A1111 read) for the modules diffusers has.

One map serves both directions. Most tensors only change their name; three kinds change shape: the VAE's attention is a
1x1 convolution there, OpenCLIP fuses q, k and v into one matrix, and keeps its text projection transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

UNET, VAE = "model.diffusion_model.", "first_stage_model."  # where the parts lie in a checkpoint
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of an original checkpoint.

    names: our full names of what it holds; three for a fused q, k, v
    shape: its shape in the checkpoint
    kind:  "same", "pixel" (a linear weight as a 1x1 convolution), "transposed", "halves" (shift and scale the other way
           round), or "fused"
    rows:  of a fused one, how many of its rows each name has; equally many where nothing is said
    """

    key: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str = "same"
    rows: tuple[int, ...] = ()

    def pack(self, tensor: Tensor) -> Tensor:
        """Our tensor as the checkpoint stores it (for "fused", its part of it)."""
        if self.kind == "halves":
            return tensor.roll(len(tensor) // 2, 0)
        return tensor.T if self.kind == "transposed" else tensor

    def first(self, name: str) -> int:
        """Element of the stored tensor at which `name` begins."""
        if self.kind != "fused":
            return 0
        return sum(self._parts()[: self.names.index(name)]) * prod(self.shape[1:])

    def unpack(self, stored: Tensor) -> dict[str, Tensor]:
        """Our tensors from the stored one."""
        if self.kind == "fused":
            return dict(zip(self.names, stored.split(self._parts()), strict=True))
        if self.kind == "pixel":
            stored = stored.reshape(stored.shape[:2])
        return {self.names[0]: self.pack(stored)}  # each of the others undoes itself

    def _parts(self) -> list[int]:
        """Rows of each name."""
        return list(self.rows or (self.shape[0] // len(self.names),) * len(self.names))


def layout(modules: Mapping[str, nn.Module], family: str) -> list[Entry]:
    """The entries that hold the parameters of `modules` (unet, vae, text, text_2) in a checkpoint of `family`: "sd2",
    "sdxl", and anything else is laid out as SD 1.x."""
    entries: list[Entry] = []
    if "unet" in modules:
        entries += _renamed(modules["unet"], "unet", UNET, unet_paths(modules["unet"]))
    if "vae" in modules:
        entries += _renamed(modules["vae"], "vae", VAE, _vae_paths(modules["vae"]))
    if "text" in modules and family == "sd2":
        entries += _openclip(modules["text"], "text", "cond_stage_model.model.")
    elif "text" in modules:
        place = (
            "conditioner.embedders.0.transformer.text_model."
            if family == "sdxl"
            else "cond_stage_model.transformer.text_model."
        )
        entries += _renamed(modules["text"], "text", place, {})
    if "text_2" in modules:
        entries += _openclip(modules["text_2"], "text_2", "conditioner.embedders.1.model.")
    return entries


def renamed(path: str, paths: Mapping[str, str]) -> str:
    """`path` with its longest known beginning replaced."""
    head, tail = path, ""
    while head and head not in paths:
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return paths[head] + tail if head else path


def _renamed(module: nn.Module, model: str, place: str, paths: Mapping[str, str]) -> list[Entry]:
    entries = []
    for name, parameter in module.named_parameters():
        pixel = model == "vae" and ".attentions." in name and parameter.dim() == 2
        shape = (*parameter.shape, 1, 1) if pixel else tuple(parameter.shape)
        entries.append(Entry(place + renamed(name, paths), (f"{model}.{name}",), shape, "pixel" if pixel else "same"))
    return entries


def unet_paths(unet: nn.Module) -> dict[str, str]:
    """Module path in diffusers' UNet -> module path in the original one."""
    paths = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    def resnet(ours: str, theirs: str) -> None:
        paths.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in RESNET.items()})

    place = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{place}.0")
            paths[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
            place += 1
        if block.downsamplers is not None:
            paths[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    paths["mid_block.attentions.0"] = "middle_block.1"
    resnet("mid_block.resnets.1", "middle_block.2")
    place = 0
    for i, block in enumerate(unet.up_blocks):
        attends = getattr(block, "has_cross_attention", False)
        for j in range(len(block.resnets)):
            resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{place}.0")
            paths[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
            place += 1
        if block.upsamplers is not None:  # in the same group as the block's last resnet
            paths[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{2 if attends else 1}.conv"
    return paths


def _vae_paths(vae: nn.Module) -> dict[str, str]:
    paths = {}
    for half, blocks, ours, theirs, sampler in (
        ("encoder", vae.encoder.down_blocks, "down_blocks", "down", "downsample"),
        ("decoder", vae.decoder.up_blocks, "up_blocks", "up", "upsample"),
    ):
        paths[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        resnets = {f"{half}.mid_block.resnets.{j}": f"{half}.mid.block_{j + 1}" for j in range(2)}
        for i, block in enumerate(blocks):
            level = i if half == "encoder" else len(blocks) - 1 - i  # the decoder is counted from the picture's side
            resnets |= {
                f"{half}.{ours}.{i}.resnets.{j}": f"{half}.{theirs}.{level}.block.{j}"
                for j in range(len(block.resnets))
            }
            paths[f"{half}.{ours}.{i}.{sampler}rs.0"] = f"{half}.{theirs}.{level}.{sampler}"
        paths |= resnets | {f"{a}.conv_shortcut": f"{b}.nin_shortcut" for a, b in resnets.items()}
        attention = f"{half}.mid_block.attentions.0"
        paths |= {f"{attention}.{a}": f"{half}.mid.attn_1.{b}" for a, b in VAE_ATTENTION.items()}
    return paths


def _openclip(encoder: nn.Module, model: str, place: str) -> list[Entry]:
    inner = getattr(encoder, "text_model", encoder)
    path = f"{model}.text_model" if inner is not encoder else model
    width = inner.config.hidden_size
    entries = [
        Entry(
            f"{place}token_embedding.weight",
            (f"{path}.embeddings.token_embedding.weight",),
            tuple(inner.embeddings.token_embedding.weight.shape),
        ),
        Entry(
            f"{place}positional_embedding",
            (f"{path}.embeddings.position_embedding.weight",),
            tuple(inner.embeddings.position_embedding.weight.shape),
        ),
    ]
    for i, layer in enumerate(inner.encoder.layers):
        ours, theirs = f"{path}.encoder.layers.{i}", f"{place}transformer.resblocks.{i}"
        for part, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            names = tuple(f"{ours}.self_attn.{each}_proj.{part}" for each in "qkv")
            entries.append(Entry(f"{theirs}.attn.in_proj_{part}", names, shape, "fused"))
        for a, b in OPENCLIP.items():
            for part, parameter in layer.get_submodule(a).named_parameters():
                entries.append(Entry(f"{theirs}.{b}.{part}", (f"{ours}.{a}.{part}",), tuple(parameter.shape)))
    for part in ("weight", "bias"):
        entries.append(Entry(f"{place}ln_final.{part}", (f"{path}.final_layer_norm.{part}",), (width,)))
    if inner is not encoder:
        shape = tuple(reversed(encoder.text_projection.weight.shape))
        entries.append(Entry(f"{place}text_projection", (f"{model}.text_projection.weight",), shape, "transposed"))
    return entries
