"""The subject's word alone learns of the text encoders: its rows of the token embedding, everything else of them frozen.

    embedding(ids) = where(ids == identifier's tokens, rows, table[ids])

Pivotal tuning (arXiv 2106.05744; an embedding alone: arXiv 2208.01618): the name learns where it stands among the words,
the denoiser what the subject looks like, and no other word moves. The rows are parameters of their own, so gradients,
moments and checkpoints are a few hundred numbers instead of a text encoder's. What was learned is exported twice: in the
model's table, and as a textual-inversion file beside it.

Saves: weights, state and gradients of a text encoder that trains as a whole, and what that does to all other words.
Costs: the text encoders run in every step, forward and back, instead of once for a cache. Only in encoders with CLIP's
       table of words; tokens that the identifier shares with other words move with it.
Exact: yes: before a step the model is the one it was; no other row of the table ever differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import Parts

TABLE = "token_embedding"
LEARNED = f"{TABLE}.rows"
KEYS = ("clip_l", "clip_g")  # of SDXL's two encoders in a textual-inversion file; a single one's is emb_params

Trained = Callable[[], Iterable[tuple[str, Tensor]]]


class Word(nn.Module):
    """An embedding whose rows at `ids` are parameters. weight: (V, D) frozen; rows: (K, D)."""

    NEW = True  # units.new: no anchor holds a name to what it meant before it was given

    def __init__(self, embedding: nn.Embedding, ids: list[int]):
        super().__init__()
        self.weight, self.ids = embedding.weight, ids
        self.weight.requires_grad_(False)
        self.rows = nn.Parameter(self.weight.detach()[ids].clone())

    def forward(self, ids: Tensor) -> Tensor:
        found = nn.functional.embedding(ids, self.weight)
        for number, token in enumerate(self.ids):
            found = torch.where((ids == token)[..., None], self.rows[number], found)
        return found


def inject(parts: Parts, identifier: str) -> None:
    """Freeze the text encoders but for the identifier's rows. Call before `Family.units`, which must see the new module."""
    encoders = encoders_of(parts)
    for (name, encoder), tokenizer in zip(encoders.items(), parts.tokenizers, strict=False):
        encoder.requires_grad_(False)
        place = next((inner for inner, _ in encoder.named_modules() if inner.split(".")[-1] == TABLE), None)
        if place is None:
            raise ConfigError(
                f"{parts.family.title} reads prompts by {name}, which has no table of CLIP's words",
                "train all of the text encoder (--text_part all), or none of it",
            )
        ids = list(dict.fromkeys(tokenizer(identifier, add_special_tokens=False).input_ids))
        parent = encoder.get_submodule(place.rpartition(".")[0])
        setattr(parent, TABLE, Word(parent.get_submodule(TABLE), ids))


def encoders_of(parts: Parts) -> dict[str, nn.Module]:
    return {name: module for name, module in parts.modules().items() if name in parts.family.names.encoders}


def words(parts: Parts) -> dict[str, list[int]]:
    """Full name of learned rows -> the tokens that they belong to; empty where no word learns alone."""
    return {
        f"{name}.{inner}.rows": module.ids
        for name, encoder in encoders_of(parts).items()
        for inner, module in encoder.named_modules()
        if isinstance(module, Word)
    }


def in_table(trained: Trained, known: dict[str, list[int]], base: Callable[[str], Tensor]) -> Trained:
    """`trained` with learned rows in the whole table, as a model's files have it. base(name): the base model's parameter."""

    def values() -> Iterator[tuple[str, Tensor]]:
        for name, value in trained():
            if name not in known:
                yield name, value
                continue
            table = f"{name.removesuffix('.rows')}.weight"
            whole = base(table).detach().to(value.device, value.dtype).clone()
            whole[known[name]] = value
            yield table, whole

    return values


def inversion(trained: Trained, known: dict[str, list[int]]) -> dict[str, Tensor]:
    """What a textual-inversion file holds: (K, D) fp32 by encoder, as ComfyUI, the WebUIs and diffusers read it."""
    found = {name: value.float().cpu().contiguous() for name, value in trained() if name in known}
    if len(found) == 1:
        return {"emb_params": next(iter(found.values()))}
    return dict(zip(KEYS, (found[name] for name in known), strict=True))
