"""CLIP text encoders: the tokenizer, the plain forward pass, and the same as units.

SD 1.x and 2.x condition on the last hidden state after the final norm; SDXL on the penultimate hidden states of two
encoders side by side, plus the second encoder's projected embedding of the end-of-text token ("pooled").

A prompt that is longer than the 77 tokens of CLIP is read in windows of 75, each between a begin and an end of its own, whose
states then stand one after the other, as in AUTOMATIC1111's WebUI and ComfyUI; "pooled" is the first window's, as there.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer.units import Unit, holder

LENGTH = 77  # tokens, of every CLIP


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer from the shipped merges. SD 1.x pads with end-of-text, SD 2.x and SDXL's second encoder with "!"."""
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), pad_token=pad, model_max_length=LENGTH)


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids follow from the merges: 256 bytes, the bytes at a word's end, one token per merge, two special ones."""
    packed = resources.files("trainer").joinpath("assets/models/clip_merges.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(packed).decode().split("\n")]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def tokenize(tokenizers: list[CLIPTokenizer], prompts: list[str], windows: int = 1) -> dict[str, Tensor]:
    """{"input_ids": (B, 77 n), "input_ids_2": (B, 77 n)} in `windows` n, cut off or padded to them."""
    named = zip(("input_ids", "input_ids_2"), tokenizers, strict=False)
    if windows > 1:
        return {name: _in_windows(each, prompts, windows) for name, each in named}
    return {
        name: each(prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
        for name, each in named
    }


def _in_windows(tokenizer: CLIPTokenizer, prompts: list[str], windows: int) -> Tensor:
    """(B, 77 n): every window what the tokenizer makes of a prompt that consists of its 75 tokens."""
    inner, rows = LENGTH - 2, []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        row: list[int] = []
        for first in range(0, windows * inner, inner):
            window = [tokenizer.bos_token_id, *ids[first : first + inner], tokenizer.eos_token_id]
            row += window + [tokenizer.pad_token_id] * (LENGTH - len(window))
        rows.append(row)
    return torch.tensor(rows)


def _apart(ids: Tensor) -> Tensor:
    """(B, 77 n) -> (B n, 77): an encoder reads every window as a prompt."""
    return ids.reshape(-1, LENGTH)


def _joined(hidden: Tensor, windows: int) -> Tensor:
    """(B n, 77, C) -> (B, 77 n, C)."""
    return hidden.reshape(-1, LENGTH * windows, hidden.shape[-1])


def encode(encoders: list[nn.Module], tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain forward pass of the text path, with gradients: {"text"} or {"text", "pooled"}."""
    windows = tokens["input_ids"].shape[-1] // LENGTH
    ids = _apart(tokens["input_ids"])
    if len(encoders) == 1:
        return {"text": _joined(encoders[0](ids)[0], windows)}
    first = encoders[0](ids, output_hidden_states=True).hidden_states[-2]
    second = encoders[1](_apart(tokens["input_ids_2"]), output_hidden_states=True)
    text = torch.cat([first, second.hidden_states[-2]], dim=-1)
    return {"text": _joined(text, windows), "pooled": second.text_embeds[::windows]}


def split(encoders: list[nn.Module], windows: int = 1) -> list[Unit]:
    """Units of the text path: read input_ids (and input_ids_2) of so many windows, write text (and pooled).

    SDXL never uses the first encoder's last layer and final norm, so they belong to no unit.
    """
    units: list[Unit] = []
    if len(encoders) == 1:
        encoder = encoders[0]
        hidden = layers(units, "text", encoder, "input_ids", len(encoder.encoder.layers))
        module = holder({"text.final_layer_norm": encoder.final_layer_norm})
        run = lambda value: _joined(encoder.final_layer_norm(value), windows)  # noqa: E731
        units.append(Unit("text.final_layer_norm", module, (hidden[-1],), ("text",), run))
        return units
    first, second = encoders
    one = layers(units, "text", first, "input_ids", len(first.encoder.layers) - 1)
    two = layers(units, "text_2.text_model", second.text_model, "input_ids_2", len(second.text_model.encoder.layers))
    join = lambda a, b: _joined(torch.cat([a, b], dim=-1), windows)  # noqa: E731
    units.append(Unit("text_2.join", nn.Module(), (one[-1], two[-2]), ("text",), join))
    units.append(pooled("text_2", second, (two[-1], "input_ids_2"), "pooled", windows))
    return units


def layers(units: list[Unit], path: str, encoder: nn.Module, ids: str, count: int) -> list[str]:
    """Append the embeddings and the first `count` layers of the CLIP at `path`; the names of the hidden states, embeddings
    first."""

    # CLIP attends to earlier tokens only, and torch's own attention does that by a flag: without a mask to be made, which
    # transformers' helper for it did under another signature in each of its releases.
    assert encoder.config._attn_implementation == "sdpa", "another attention would need the mask"

    def through(layer: nn.Module):
        def run(hidden: Tensor) -> Tensor:  # (B n, 77, C)
            return layer(hidden, None, is_causal=True)

        return run

    names = [f"{path}.embeddings"]
    module = holder({names[0]: encoder.embeddings})
    units.append(Unit(names[0], module, (ids,), (names[0],), lambda value: encoder.embeddings(input_ids=_apart(value))))
    for i, layer in enumerate(encoder.encoder.layers[:count]):
        name = f"{path}.encoder.layers.{i}"
        units.append(Unit(name, holder({name: layer}), (names[-1],), (name,), through(layer)))
        names.append(name)
    return names


def pooled(name: str, encoder: nn.Module, reads: tuple[str, str], writes: str, windows: int = 1) -> Unit:
    """Final norm, the end-of-text token's state, the projection: of the first window. Reads the last hidden state and the
    token ids of the encoder called `name`, which has a projection."""
    model = encoder.text_model
    path = f"{name}.text_model.final_layer_norm"
    module = holder({path: model.final_layer_norm, f"{name}.text_projection": encoder.text_projection})

    def run(value: Tensor, ids: Tensor) -> Tensor:
        value, ids = model.final_layer_norm(value), _apart(ids)
        # Old configurations say eos_token_id = 2 and mean the largest id, which end-of-text is in CLIP's vocabulary.
        end = ids.int() if model.eos_token_id == 2 else (ids == model.eos_token_id).int()
        rows = torch.arange(value.shape[0], device=value.device)
        return encoder.text_projection(value[rows, end.argmax(dim=-1)])[::windows]  # (B, P)

    return Unit(f"{name}.text_projection", module, reads, (writes,), run)
