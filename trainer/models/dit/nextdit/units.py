"""Lumina's NextDiT as units, the skeleton that Lumina Image 2.0 (arXiv 2503.21758) and Z-Image (arXiv 2511.22699) share.

    text     -> 2 context refiners ---+
                                      +-> text and picture as one sequence -> 26 or 30 equal layers -> picture
    picture  -> 2 noise refiners -----+

Where a token stands is told to attention by turning queries and keys (rotary embeddings) along three axes: its place in the text,
and a patch's row and column, which come after the text's end. Prompts of one batch are of different lengths, so all of that
depends on the mask, and diffusers reads the lengths on the host. Here the same places are computed on the device, and sequences
are laid out by index: no step waits for a mask's contents, and the real tokens' numbers are the same bits.

A mask without columns, (B, 0), says that no row is padded: attention then needs none, which the faster kernels ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.units import Unit, holder

# values that several units read
TIME, PLACES = "transformer.time", "transformer.places"
TEXT, PICTURE, JOINT = "transformer.text", "transformer.picture", "transformer.joint"
TURN = {part: f"{part}.turn" for part in (TEXT, PICTURE, JOINT)}  # (B, tokens, half a head) complex
SEEN = {
    part: f"{part}.seen" for part in (TEXT, JOINT)
}  # (B, tokens) bool: which ones may be attended to, or (B, 0): all

About = Mapping[
    str, str
]  # what a block is told beside its tokens ("turn", "seen", "time"), and the names of these values
Block = Callable[[str, nn.Module, str, About], list[Unit]]


@dataclass(frozen=True)
class Ends:
    """What differs between the models: what comes before the refiners, between them and the layers, and after these; and how
    a block becomes units. `between` reads `refined`."""

    before: Sequence[Unit]
    between: Callable[[str, str], Unit]
    after: Callable[[str], Unit]
    block: Block


def split(denoiser: nn.Module, ends: Ends) -> list[Unit]:
    units = list(ends.before)

    def through(stack: str, part: str, *told: str) -> str:
        """All blocks of a stack; the name of what leaves it."""
        value = part
        names = {"turn": TURN[part], "seen": SEEN.get(part, ""), "time": TIME}
        for i, block in enumerate(getattr(denoiser, stack)):
            path = f"transformer.{stack}.{i}"
            units.extend(ends.block(path, block, value, {name: names[name] for name in told}))
            value = path
        return value

    text = through("context_refiner", TEXT, "turn", "seen")
    picture = through("noise_refiner", PICTURE, "turn", "time")
    units.append(ends.between(text, picture))
    units.append(ends.after(through("layers", JOINT, "turn", "seen", "time")))
    return units


def through(units: Sequence[Unit], given: Mapping[str, Tensor]) -> Tensor:
    """The prediction of units one after the other, each value for as long as something reads it: for plans, which have no
    lengths that the transformers' own forward pass could read."""
    values = dict(given)
    for k, unit in enumerate(units):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
        wanted = {"prediction", *(name for later in units[k + 1 :] for name in later.reads)}
        values = {name: value for name, value in values.items() if name in wanted}
    return values["prediction"]


def whole(path: str, block: nn.Module, hidden: str, about: About) -> list[Unit]:
    """A block as one unit."""

    def run(value: Tensor, *told: Tensor) -> Tensor:
        known = dict(zip(about, told, strict=True))
        return block(value, attended(known.get("seen")), known["turn"], known.get("time"))

    return [Unit(path, holder({path: block}), (hidden, *about.values()), (path,), run)]


def attended(seen: Tensor | None) -> Tensor | None:
    """What attention is given; a mask where there is something to be masked."""
    return None if seen is None or seen.shape[1] == 0 else seen.bool()


def lengths_of(text: Tensor, mask: Tensor) -> Tensor:
    """(B,) tokens of each prompt."""
    if mask.shape[1] == 0:
        return torch.full(text.shape[:1], text.shape[1], dtype=torch.int64, device=text.device)
    return mask.sum(1, dtype=torch.int64)


def trimmed(text: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """As long as the longest prompt; for callers outside of a step, since it waits for the lengths."""
    longest = int(mask.sum(1).max())
    return {"text": text[:, :longest], "mask": mask[:, :longest].bool()}


def turns(tables: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The turn of every token, (B, tokens, D / 2), from one table (positions, D_i / 2) and one place (B, tokens) an axis."""
    return torch.cat([table[place] for table, place in zip(tables, places, strict=True)], dim=-1)


def grid(sample: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = sample.shape[-2:]
    assert height % patch == 0 and width % patch == 0, f"latent sides must be multiples of {patch}"
    return height // patch, width // patch


def patches(sample: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> (B, N, patch patch C), row by row."""
    rows, columns = grid(sample, patch)
    parts = sample.reshape(*sample.shape[:2], rows, patch, columns, patch)
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def assembled(tokens: Tensor, sample: Tensor, patch: int) -> Tensor:
    """The inverse of `patches`, for pictures of the size of `sample`."""
    parts = tokens.reshape(len(tokens), *grid(sample, patch), patch, patch, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
