"""Z-Image as units: a block's attention and its MLP apart, of 63 and 118 million parameters.

The transformer's own clock runs the other way, from noise at 0 to the picture at 1, and it answers picture - noise. Here both
are turned round: the timestep is 1000 times the noise level, the prediction noise - picture.

In its sequence the picture comes first, and both parts are filled up to multiples of 32 tokens, each with a learnt token of its own,
which is attended to like the others. What a batch's longer prompts add beyond that is zeros, which are not:

    row i:  [picture, N | picture's filling | text, l_i | text's filling | zeros]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.models.dit.nextdit import units as nextdit
from trainer.models.dit.nextdit.units import JOINT, PICTURE, PLACES, SEEN, TEXT, TIME, TURN
from trainer.units import Unit, holder

CLASS = ZImageTransformer2DModel
MULTIPLE = 32  # tokens
PATCH = "2-1"  # two by two pixels of one picture: what its layers for them are called


def split(denoiser: nn.Module) -> list[Unit]:
    """Units of a ZImageTransformer2DModel. Reads sample (B, C, h, w), timestep (B,), text (B, L, C) and mask (B, L)."""
    assert denoiser.siglip_embedder is None, "Z-Image-Omni reads pictures, too, and is unknown here"
    before = [_time(denoiser), _places(denoiser), _text(denoiser), _picture(denoiser)]
    ends = nextdit.Ends(before, _joint, lambda hidden: _prediction(denoiser, hidden), _halves)
    return nextdit.split(denoiser, ends)


def call(denoiser: Any, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """The same through diffusers' own forward pass, which wants lists."""
    text, mask = values["text"], values["mask"]
    if sample.is_meta:
        return nextdit.through(
            split(denoiser), {"sample": sample, "timestep": timestep, "text": text, "mask": mask[:, :0]}
        )
    texts = [row[chosen] for row, chosen in zip(text, mask.bool(), strict=True)] if mask.shape[1] else list(text)
    answered = denoiser(list(sample.unsqueeze(2)), _clock(timestep), texts, return_dict=False)[0]
    return -torch.stack(list(answered)).squeeze(2)


def values_of(
    x: Sequence[Tensor],
    t: Tensor,
    cap_feats: Sequence[Tensor],
    joint_attention_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """What a pipeline calls the transformer with, as named values."""
    assert not joint_attention_kwargs, f"unknown conditions {joint_attention_kwargs}"
    longest = max(len(text) for text in cap_feats)
    return {
        "sample": torch.stack(list(x)).squeeze(2),
        "timestep": 1000 * (1 - t.float()),
        "text": torch.stack([pad(text, (0, 0, 0, longest - len(text))) for text in cap_feats]),
        "mask": torch.stack([torch.arange(longest, device=text.device) < len(text) for text in cap_feats]),
    }


def answer(prediction: Tensor) -> list[Tensor]:
    """From our prediction to what the transformer answers: pictures of one frame each."""
    return list(-prediction.unsqueeze(2))


def _clock(timestep: Tensor) -> Tensor:
    return (1000 - timestep) / 1000


def _filled(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _time(denoiser: nn.Module) -> Unit:
    path = "transformer.t_embedder"

    def run(sample: Tensor, timestep: Tensor) -> Tensor:
        return denoiser.t_embedder(_clock(timestep) * denoiser.t_scale).type_as(sample)  # (B, 256)

    return Unit(path, holder({path: denoiser.t_embedder}), ("sample", "timestep"), (TIME,), run)


def _text(denoiser: nn.Module) -> Unit:
    """The text's tokens, with the learnt one behind each row's last: (B, L filled up, C)."""
    path = "transformer.cap_embedder"
    module = _with_token(holder({path: denoiser.cap_embedder}), denoiser, "cap_pad_token")

    def run(text: Tensor, lengths: Tensor) -> Tensor:
        length = _filled(text.shape[1])
        hidden = denoiser.cap_embedder(pad(text, (0, 0, 0, length - text.shape[1])))
        place = torch.arange(length, device=text.device)[None, :, None]
        hidden = torch.where(place < lengths[:, None, None], hidden, denoiser.cap_pad_token)
        return torch.where(place < _up(lengths)[:, None, None], hidden, 0.0)

    return Unit(path, module, ("text", PLACES), (TEXT,), run)


def _picture(denoiser: nn.Module) -> Unit:
    """The picture's tokens, with the learnt one behind the last: (B, N filled up, C)."""
    path = f"transformer.all_x_embedder.{PATCH}"
    embedder = denoiser.all_x_embedder[PATCH]
    module = _with_token(holder({path: embedder}), denoiser, "x_pad_token")

    def run(sample: Tensor) -> Tensor:
        tokens = nextdit.patches(sample, 2)
        count = tokens.shape[1]
        hidden = embedder(pad(tokens, (0, 0, 0, _filled(count) - count)))
        place = torch.arange(hidden.shape[1], device=sample.device)[:, None]
        return torch.where(place < count, hidden, denoiser.x_pad_token)

    return Unit(path, module, ("sample",), (PICTURE,), run)


def _with_token(module: nn.Module, denoiser: nn.Module, name: str) -> nn.Module:
    """`module` as the owner of a learnt token, too, under its full name."""
    module.get_submodule("transformer").register_parameter(name, getattr(denoiser, name))
    return module


def _up(lengths: Tensor) -> Tensor:
    return (lengths + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def _places(denoiser: nn.Module) -> Unit:
    """How long each prompt is, how every token is turned, and which ones are there at all. The text's places begin at 1, the
    picture is one further than the text's filling, and the picture's filling is nowhere."""
    rope = denoiser.rope_embedder

    def run(sample: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        rows, columns = nextdit.grid(sample, 2)
        lengths, device = nextdit.lengths_of(text, mask), sample.device
        tables = [_table(*size, rope.theta, device) for size in zip(rope.axes_dims, rope.axes_lens, strict=True)]
        place, patch = torch.arange(_filled(text.shape[1]), device=device), _patch(rows * columns, device)
        zero = torch.zeros_like(place)
        words = nextdit.turns(tables, [each[None].expand(len(text), -1) for each in (place + 1, zero, zero)])
        there = patch < rows * columns
        first = torch.where(there, _up(lengths)[:, None] + 1, 0)
        row, column = (torch.where(there, each, 0).expand_as(first) for each in (patch // columns, patch % columns))
        picture = nextdit.turns(tables, (first, row, column))
        seen = place < _up(lengths)[:, None]
        joint = torch.cat([torch.ones_like(first, dtype=torch.bool), seen], dim=1)
        if mask.shape[1] == 0 or text.shape[1] <= MULTIPLE:  # all are filled up to the same length
            seen = joint = mask[:, :0]
        return lengths, words, picture, torch.cat([picture, words], dim=1), seen, joint

    writes = (PLACES, TURN[TEXT], TURN[PICTURE], TURN[JOINT], SEEN[TEXT], SEEN[JOINT])
    return Unit(PLACES, nn.Module(), ("sample", "text", "mask"), writes, run)


def _patch(count: int, device: torch.device) -> Tensor:
    return torch.arange(_filled(count), device=device)


def _table(size: int, length: int, theta: float, device: torch.device) -> Tensor:
    """(length, size / 2) turns as diffusers makes them, on the device that needs them."""
    powers = torch.arange(0, size, 2, dtype=torch.float64, device=device) / size
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), 1.0 / theta**powers).float()
    return torch.polar(torch.ones_like(angles), angles)


def _joint(text: str, picture: str) -> Unit:
    return Unit(JOINT, nn.Module(), (picture, text), (JOINT,), lambda tokens, words: torch.cat([tokens, words], dim=1))


def _prediction(denoiser: nn.Module, hidden: str) -> Unit:
    path = f"transformer.all_final_layer.{PATCH}"
    layer = denoiser.all_final_layer[PATCH]

    def run(joint: Tensor, time: Tensor, sample: Tensor) -> Tensor:
        rows, columns = nextdit.grid(sample, 2)
        return -nextdit.assembled(layer(joint, c=time)[:, : rows * columns], sample, 2)

    return Unit(path, holder({path: layer}), (hidden, TIME, "sample"), ("prediction",), run)


def _halves(path: str, block: nn.Module, hidden: str, about: nextdit.About) -> list[Unit]:
    """A block as two units. Where it knows the time, the first also says how the second is scaled."""

    def attend(value: Tensor, *told: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        known = dict(zip(about, told, strict=True))
        asked = {"attention_mask": nextdit.attended(known.get("seen")), "freqs_cis": known["turn"]}
        if not block.modulation:
            return value + block.attention_norm2(block.attention(block.attention_norm1(value), **asked))
        scale, gate, *rest = block.adaLN_modulation(known["time"]).unsqueeze(1).chunk(4, dim=2)
        attended = block.attention(block.attention_norm1(value) * (1.0 + scale), **asked)
        return value + gate.tanh() * block.attention_norm2(attended), torch.cat(rest, dim=2)

    def think(value: Tensor, *modulation: Tensor) -> Tensor:
        if not modulation:
            return value + block.ffn_norm2(block.feed_forward(block.ffn_norm1(value)))
        scale, gate = modulation[0].chunk(2, dim=2)
        return value + gate.tanh() * block.ffn_norm2(block.feed_forward(block.ffn_norm1(value) * (1.0 + scale)))

    inside = ["attention", "attention_norm1", "attention_norm2", *(["adaLN_modulation"] if block.modulation else [])]
    first = holder({f"{path}.{name}": getattr(block, name) for name in inside})
    second = holder({f"{path}.{name}": getattr(block, name) for name in ("feed_forward", "ffn_norm1", "ffn_norm2")})
    between = (f"{path}.attended", *([f"{path}.modulation"] if block.modulation else []))
    return [
        Unit(f"{path}.attention", first, (hidden, *about.values()), between, attend),
        Unit(f"{path}.feed_forward", second, between, (path,), think),
    ]
