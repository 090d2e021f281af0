"""Evaluation: does the judge see in the drawn pictures what the prompts asked for, as often as it does in real scenes?

    relative accuracy = accuracy on generated pictures / accuracy on real scenes of held-out drawings

The judge's errors cancel from the ratio, so it measures the generator. Everything the model card says is computed here
and written by `write_card`: no number in it was typed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.guard import judge as judges

from . import assets, backgrounds, cutouts, draw, judge, scenes, vae

STEPS, GUIDANCE = 20, 3.0
EXAMPLES = (
    "a photo of a cat on a beach",
    "a photo of a dog in the snow",
    "a photo of a car in a park",
    "a photo of a red ball on a blue background",
    "a photo of a fish under water",
    "a photo of a tree in a room",
    "a photo of a blue bag in space",
    "a photo of a house in a forest",
    "a photo of a green car on a white background",
)


def run(
    made_folder: Path,
    scene_folder: Path,
    classes: tuple[str, ...],
    pairs: list[tuple[str, str]],
    per_class: int = 12,
    per_context: int = 6,
    seed: int = 1000,
) -> tuple[dict, Image.Image]:
    """All numbers of the model and the judge in `made_folder`, and a sheet of the first pictures of every prompt."""
    model = made_folder / "model"
    eye, pipe = judges.load(str(made_folder / "judge")), draw.pipeline(model)
    numbers = {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "scheduler": "DDIM",
        "seed": seed,
        **real(eye, scene_folder, model),
    }
    rows = []

    named = [f"a photo of {article(c)} {c}" for c in classes]
    asked = [(c, prompt) for c, prompt in zip(classes, named, strict=True) for _ in range(per_class)]
    made = draw.pictures(pipe, [p for _, p in asked], STEPS, GUIDANCE, seed)
    saw = judges.probe(eye, made, "class")
    numbers["generated_class"] = share(saw, [c for c, _ in asked])
    numbers["generated_class_each"] = {
        c: share(saw[i * per_class : (i + 1) * per_class], [c] * per_class) for i, c in enumerate(classes)
    }
    rows += [(p, made[i * per_class : i * per_class + 6]) for i, p in enumerate(named)]
    numbers["class_pictures"] = len(made)

    rng = np.random.default_rng(seed)
    asked = [(classes[rng.integers(len(classes))], c) for c in backgrounds.CONTEXTS for _ in range(per_context)]
    made = draw.pictures(pipe, [f"a photo of {article(a)} {a} {c}" for a, c in asked], STEPS, GUIDANCE, seed + 1)
    saw = judges.probe(eye, made, "context")
    numbers["generated_context"] = share(saw, [c for _, c in asked])
    numbers["generated_context_each"] = {
        c: share(saw[i * per_context : (i + 1) * per_context], [c] * per_context)
        for i, c in enumerate(backgrounds.CONTEXTS)
    }
    numbers["generated_class_in_context"] = share(judges.probe(eye, made, "class"), [a for a, _ in asked])
    numbers["context_pictures"] = len(made)
    rows += [(f"a ... {c}", made[i * per_context : i * per_context + 6]) for i, c in enumerate(backgrounds.CONTEXTS)]

    held = [pair for pair in pairs for _ in range(3)]
    made = draw.pictures(pipe, [f"a photo of {article(a)} {a} {c}" for a, c in held], STEPS, GUIDANCE, seed + 2)
    numbers["unseen_pair_context"] = share(judges.probe(eye, made, "context"), [c for _, c in held])
    numbers["unseen_pair_class"] = share(judges.probe(eye, made, "class"), [a for a, _ in held])

    made = draw.pictures(pipe, [p for p in EXAMPLES for _ in range(6)], STEPS, GUIDANCE, seed + 3)
    rows += [(p, made[i * 6 : i * 6 + 6]) for i, p in enumerate(EXAMPLES)]
    numbers["relative_class"] = numbers["generated_class"] / numbers["real_class"]
    numbers["relative_context"] = numbers["generated_context"] / numbers["real_context"]
    return numbers, draw.sheet(rows)


@torch.no_grad()
def real(eye: judges.DemoJudge, scene_folder: Path, model: Path, count: int = 2048) -> dict:
    """The judge on scenes of held-out drawings, and the autoencoder on the same."""
    from diffusers import AutoencoderKL

    data, shows = (x[:count] for x in vae.pictures(scene_folder, "held"))
    pictures = [Image.fromarray(p.numpy()) for p in data]
    guessed = {kind: judges.probe(eye, pictures, kind) for kind in ("class", "context", "colour")}
    names = eye.labels
    own = shows[:, 3] == scenes.NO_COLOUR
    features = eye.images([p for p, keep in zip(pictures, own.tolist(), strict=True) if keep])
    coder = AutoencoderKL.from_pretrained(model / "vae").eval()
    x = vae.to_float(data[:128])
    back = coder.decode(coder.encode(x).latent_dist.mode()).sample
    return {
        "real_scenes": len(data),
        **trained(eye, scene_folder),
        **{
            f"real_{kind}": share(guessed[kind], [names[kind][i] for i in shows[:, column].tolist()])
            for kind, column in (("class", 0), ("context", 2), ("colour", 3))
        },
        "subject_auc": judge.auc(features, shows[own][:, 0], shows[own][:, 1]),
        "autoencoder_psnr": -10 * ((back.clamp(-1, 1) - x).square().mean() / 4).log10().item(),
    }


def trained(eye: judges.DemoJudge, scene_folder: Path, count: int = 768) -> dict:
    """The judge on scenes of drawings that did train: the stricter measure, because it knows them better."""
    data, shows = (x[:count] for x in vae.pictures(scene_folder, "calm"))
    pictures = [Image.fromarray(p.numpy()) for p in data]
    return {
        f"trained_{kind}": share(
            judges.probe(eye, pictures, kind), [eye.labels[kind][i] for i in shows[:, column].tolist()]
        )
        for kind, column in (("class", 0), ("context", 2))
    }


def row(name: str, generated: float, truth: float) -> str:
    return f"| {name} | {generated:.3f} | {truth:.3f} | {generated / truth:.3f} |"


def share(said: list[str], truth: list[str]) -> float:
    return sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def write_card(numbers: dict, split: dict, training: dict, folder: Path) -> None:
    """MODEL_CARD.md, NOTICE and numbers.json in the assets folder."""
    n = numbers
    real_class, real_context = n["real_class"], n["real_context"]
    each = " ".join(f"{k} {v:.2f}" for k, v in n["generated_class_each"].items())
    where = ", ".join(f"{k} {v:.2f}" for k, v in n["generated_context_each"].items())
    (folder / "numbers.json").write_text(json.dumps({"numbers": numbers, "training": training}, indent=1) + "\n")
    (folder / "split.json").write_text(json.dumps(split, indent=0) + "\n")
    (folder / "MODEL_CARD.md").write_text(f"""# The demo model

A small text-to-image diffusion model in Stable Diffusion's layout, so that DreamBooth can be tried, tested and measured
without downloading anything. It draws {len(split["classes"])} classes of emoji-like things in {len(backgrounds.PLACES)} places and on
{len(backgrounds.COLOURS)} plain colours, {scenes.SIDE} x {scenes.SIDE} pixels. It is a measuring instrument, not an artist.

Written by `python -m benchmarks demo`, which also trains it; do not edit by hand.

| part | what | bytes |
|---|---|---|
| unet | {training["unet_parameters"]:,} parameters on 16 x 16 x 4 latents | {assets.size_bytes(folder / "model/unet"):,} |
| text_encoder | CLIP, width 64, 3 layers, all 49,408 words | {assets.size_bytes(folder / "model/text_encoder"):,} |
| vae | AutoencoderKL, factor 4 | {assets.size_bytes(folder / "model/vae"):,} |
| tokenizer | CLIP's own | {assets.size_bytes(folder / "model/tokenizer"):,} |
| all of model/ | fp16 safetensors | {assets.size_bytes(folder / "model"):,} |
| judge/ | dual encoder | {assets.size_bytes(folder / "judge"):,} |

Classes: {", ".join(split["classes"])}.
Places: {", ".join(backgrounds.PLACES)}.
Colours, of things and of backgrounds: {", ".join(backgrounds.COLOURS)}.
Captions it was trained on: "a photo of a dog", "a photo of a red dog in a forest", "a picture of a dog on a blue background",
the same without "a photo of"; one in ten empty; one in ten with a random rare word before the class.

## Measured

Generated with {n["scheduler"]}, {n["steps"]} steps, guidance {n["guidance"]}, seeds from {n["seed"]}; read by the shipped judge, whose
own accuracy is taken on {n["real_scenes"]:,} scenes of drawings that neither it nor the model trained on.

| | generated | real, held-out drawings | relative |
|---|---|---|---|
{row(f'class, "a photo of a CLASS" ({n["class_pictures"]} pictures)', n["generated_class"], real_class)}
{row(f'context, "a photo of a CLASS CONTEXT" ({n["context_pictures"]} pictures)', n["generated_context"], real_context)}
{row("class of those", n["generated_class_in_context"], real_class)}
{row("held-out class-place pairs: class", n["unseen_pair_class"], real_class)}
{row("held-out class-place pairs: context", n["unseen_pair_context"], real_context)}

Against the stricter measure, real scenes of the drawings that trained (class {n["trained_class"]:.3f}, context {n["trained_context"]:.3f}):
class {n["generated_class"] / n["trained_class"]:.3f}, context {n["generated_context"] / n["trained_context"]:.3f}.
Class by class: {each}.
Context by context: {where}.
Judge: colour accuracy {n["real_colour"]:.3f}; chance that two scenes of one held-out drawing are closer than scenes of two drawings of
its class (AUC) {n["subject_auc"]:.3f}. Autoencoder on held-out scenes: {n["autoencoder_psnr"]:.1f} dB.

## Training

{training["words"]}

## Held out

{len(split["held_out"])} drawings of {len(split["held_out"]) + len(split["train"])} (the four demo subjects among them)
and {len(split["pairs"])} class-place pairs, listed in `split.json`.

## Limits

Everything is drawn, centred and about the same size; it knows no people, no text and no words beyond the lists above.
Pictures are small and soft. The drawings' licences are in NOTICE.
""")
    used = {cutouts.SETS[key.split("/")[1]][1] for key in [*split["train"], *split["held_out"]]} | {
        "@pmndrs/assets",
        "emojibase-data",
    }
    lines = [
        f"- {name} {version}, {licence}: {what}"
        for name, (version, licence, what) in cutouts.PACKAGES.items()
        if name in used
    ]
    (folder / "NOTICE").write_text(
        "The demo model, its judge and the demo subjects were made from these works.\n\n"
        + "\n".join(lines)
        + """
- clip-anytorch 2.6.0 (MIT), OpenAI CLIP (MIT): the byte-pair vocabulary of the tokenizer

Pictures of drawings were turned, scaled, tinted and set on backgrounds. Attribution under CC-BY-4.0
(https://creativecommons.org/licenses/by/4.0/): Twemoji, copyright Twitter, Inc and other contributors;
EmojiOne 2, copyright Ranks.com Inc. The other sets: Fluent Emoji, copyright Microsoft Corporation (MIT);
Noto Emoji, copyright Google LLC (Apache-2.0); FxEmojis, copyright Mozilla Foundation (Apache-2.0);
emojibase, copyright Miles Johnson (MIT); panoramas by Poly Haven (CC0).
"""
    )
