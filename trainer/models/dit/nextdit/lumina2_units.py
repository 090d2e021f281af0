"""Lumina Image 2.0 as units: one a block, of 87 million parameters.

The transformer's own clock runs the other way, from noise at 0 to the picture at 1, and it answers picture - noise. Here both
are turned round: the timestep is 1000 times the noise level, the prediction noise - picture.

In its sequence the text comes first and the picture follows at once, so that row i of a batch holds its tokens
[text, l_i | picture, N | padding] and the picture begins elsewhere in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn

from trainer.models.dit.nextdit import units as nextdit
from trainer.models.dit.nextdit.units import JOINT, PICTURE, PLACES, SEEN, TEXT, TIME, TURN
from trainer.units import Unit, holder

CLASS = Lumina2Transformer2DModel


def split(denoiser: nn.Module) -> list[Unit]:
    """Units of a Lumina2Transformer2DModel. Reads sample (B, C, h, w), timestep (B,), text (B, L, C) and mask (B, L)."""
    before = [_time(denoiser), _places(denoiser), _text(denoiser), _picture(denoiser)]
    ends = nextdit.Ends(before, _joint, lambda hidden: _prediction(denoiser, hidden), nextdit.whole)
    return nextdit.split(denoiser, ends)


def call(denoiser: Any, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """The same through diffusers' own forward pass."""
    text, mask = values["text"], values["mask"]
    if sample.is_meta:
        return nextdit.through(
            split(denoiser), {"sample": sample, "timestep": timestep, "text": text, "mask": mask[:, :0]}
        )
    mask = mask if mask.shape[1] else mask.new_ones(text.shape[:2])
    return answer(denoiser(sample, _clock(timestep), text, mask, return_dict=False)[0])


def values_of(
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor,
    attention_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """What a pipeline calls the transformer with, as named values."""
    assert not attention_kwargs, f"unknown conditions {attention_kwargs}"
    text = nextdit.trimmed(encoder_hidden_states, encoder_attention_mask)
    return {"sample": hidden_states, "timestep": 1000 * (1 - timestep.float()), **text}


def answer(prediction: Tensor) -> Tensor:
    """From our prediction to what the transformer answers, and back."""
    return -prediction


def _clock(timestep: Tensor) -> Tensor:
    return 1 - timestep / 1000


def _time(denoiser: nn.Module) -> Unit:
    embed = denoiser.time_caption_embed
    path = "transformer.time_caption_embed.timestep_embedder"

    def run(sample: Tensor, timestep: Tensor) -> Tensor:
        return embed.timestep_embedder(embed.time_proj(_clock(timestep)).type_as(sample))  # (B, 1024)

    return Unit(path, holder({path: embed.timestep_embedder}), ("sample", "timestep"), (TIME,), run)


def _text(denoiser: nn.Module) -> Unit:
    embedder = denoiser.time_caption_embed.caption_embedder
    path = "transformer.time_caption_embed.caption_embedder"
    return Unit(path, holder({path: embedder}), ("text",), (TEXT,), lambda text: embedder(text))


def _picture(denoiser: nn.Module) -> Unit:
    path, patch = "transformer.x_embedder", denoiser.config.patch_size

    def run(sample: Tensor) -> Tensor:
        return denoiser.x_embedder(nextdit.patches(sample, patch))  # (B, N, C)

    return Unit(path, holder({path: denoiser.x_embedder}), ("sample",), (PICTURE,), run)


def _places(denoiser: nn.Module) -> Unit:
    """Where the picture begins in each row, how every token is turned, and which ones are there at all."""
    rope, patch = denoiser.rope_embedder, denoiser.config.patch_size

    def run(sample: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        rows, columns = nextdit.grid(sample, patch)
        begins = nextdit.lengths_of(text, mask)
        # tables as diffusers makes them, on the device that needs them
        tables = [
            get_1d_rotary_pos_embed(
                size, torch.arange(length, device=sample.device), rope.theta, freqs_dtype=torch.float64
            )
            for size, length in zip(rope.axes_dim, rope.axes_lens, strict=True)
        ]
        place, inside = _inside(begins, text.shape[1], rows * columns)
        patch_number = inside.clamp(0, rows * columns - 1)
        joint = nextdit.turns(
            tables, (torch.minimum(place, begins[:, None]), patch_number // columns, patch_number % columns)
        )
        picture = joint.gather(1, _picture_places(begins, rows * columns, joint.shape[-1]))
        seen = inside < rows * columns if mask.shape[1] else mask
        return begins, joint[:, : text.shape[1]], picture, joint, mask, seen

    writes = (PLACES, TURN[TEXT], TURN[PICTURE], TURN[JOINT], SEEN[TEXT], SEEN[JOINT])
    return Unit(PLACES, nn.Module(), ("sample", "text", "mask"), writes, run)


def _inside(begins: Tensor, length: int, patches: int) -> tuple[Tensor, Tensor]:
    """(B, L + N) each: the place in the sequence, and the number of the patch there; text is below 0, padding from N on."""
    place = torch.arange(length + patches, device=begins.device)[None].expand(len(begins), -1)
    return place, place - begins[:, None]


def _picture_places(begins: Tensor, patches: int, width: int) -> Tensor:
    """(B, N, width): where in the sequence the picture's tokens are, as `gather` wants it."""
    places = begins[:, None] + torch.arange(patches, device=begins.device)
    return places[..., None].expand(-1, -1, width)


def _joint(text: str, picture: str) -> Unit:
    def run(words: Tensor, tokens: Tensor, begins: Tensor) -> Tensor:
        place, inside = _inside(begins, words.shape[1], tokens.shape[1])
        source = torch.where(inside < 0, place, words.shape[1] + inside.clamp(max=tokens.shape[1] - 1))
        joint = torch.cat([words, tokens], dim=1).gather(1, source[..., None].expand(-1, -1, words.shape[2]))
        return torch.where((inside < tokens.shape[1])[..., None], joint, 0.0)  # (B, L + N, C), zeros at the end

    return Unit(JOINT, nn.Module(), (text, picture, PLACES), (JOINT,), run)


def _prediction(denoiser: nn.Module, hidden: str) -> Unit:
    path, patch = "transformer.norm_out", denoiser.config.patch_size

    def run(joint: Tensor, time: Tensor, begins: Tensor, sample: Tensor) -> Tensor:
        out = denoiser.norm_out(joint, time)
        rows, columns = nextdit.grid(sample, patch)
        out = out.gather(1, _picture_places(begins, rows * columns, out.shape[2]))  # (B, N, patch patch C)
        return answer(nextdit.assembled(out, sample, patch))

    return Unit(path, holder({path: denoiser.norm_out}), (hidden, TIME, PLACES, "sample"), ("prediction",), run)
