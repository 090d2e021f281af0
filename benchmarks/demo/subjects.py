"""Demo subjects: four held-out drawings, each photographed in six contexts, with the words to describe them.

They play the part of "my dog" in DreamBooth: the model knows the class and has never seen this individual. The first
one is what `python -m trainer` teaches when it is given nothing. Each keeps one context out of its photos, which the
model can draw, so that a sample sheet can show the subject where it was never seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import backgrounds, cutouts, scenes

SUBJECTS = {  # name -> (design, words, photo contexts, unseen context)
    "tuxedo-cat": (
        "cat/emojione/cat-face",
        "a grey and white cat face with green eyes",
        (
            "in a park",
            "on a red background",
            "in a room",
            "on a white background",
            "in the snow",
            "on a yellow background",
        ),
        "on a beach",
    ),
    "patch-dog": (
        "dog/noto/dog-face",
        "a cream dog face with brown ears and a brown eye patch",
        (
            "in a forest",
            "on a blue background",
            "in a city",
            "on a green background",
            "in the snow",
            "on a gray background",
        ),
        "on a beach",
    ),
    "blue-backpack": (
        "bag/emojione/backpack",
        "a light blue backpack with grey trim and a white zip",
        (
            "in a park",
            "on a white background",
            "in a room",
            "on a pink background",
            "in the snow",
            "on a yellow background",
        ),
        "on a beach",
    ),
    "lime-sneaker": (
        "shoe/emojione/running-shoe",
        "a dark grey running shoe with lime green laces",
        ("in a room", "on a white background", "in a park", "on a pink background", "at dawn", "on a blue background"),
        "in the snow",
    ),
}
ALSO_HELD_OUT = {"cat/emojione/cat"}  # the same tuxedo cat, sitting
HELD_OUT = {design for design, *_ in SUBJECTS.values()} | ALSO_HELD_OUT
SIDE = 128


def write(
    designs: list[cutouts.Design], cutout_folder: Path, modules: Path, folder: Path, identifier: str = "sks"
) -> None:
    """`<name>/00.png` ... and `subjects.json`; the same pictures every time."""
    maps, by_key, table = backgrounds.panoramas(modules), {d.key: d for d in designs}, {}
    for number, (name, (key, words, contexts, unseen)) in enumerate(SUBJECTS.items()):
        design, rng = by_key[key], np.random.default_rng([7, number])
        cutout = cutouts.load(cutout_folder, design)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, context in enumerate(contexts):
            ground = backgrounds.draw(context, SIDE, rng, maps)
            picture = scenes.compose(cutout, ground, rng, 0.15 if context in backgrounds.PLAIN else 0.35)
            Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)).save(
                folder / name / f"{index:02d}.png"
            )
        version, licence, source = cutouts.PACKAGES[cutouts.SETS[design.set_name][1]]
        table[name] = {
            "class_name": design.class_name,
            "identifier": identifier,
            "words": words,
            "design": key,
            "contexts": list(contexts),
            "unseen_context": unseen,
            "unseen_prompt": f"a photo of a {identifier} {design.class_name} {unseen}",
            "licence": licence,
            "source": f"{source} ({cutouts.SETS[design.set_name][1]} {version}) over Poly Haven panoramas (CC0)",
        }
    (folder / "subjects.json").write_text(json.dumps(table, indent=1) + "\n")
