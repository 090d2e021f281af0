"""What is printed about a folder is what the batches hold: random folders as people have them, each written with a note of what
it means, which account and batches are held against."""

import json
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from photos import finish, noise_picture, settings
from PIL import Image

from trainer.data import photos as data
from trainer.data.batches import Batches
from trainer.data.encode import Encoder
from trainer.models import SD1
from trainer.objective.loss import Objective
from trainer.policy import Drawing

STEMS = ["IMG_1", "img-2", "Café", "straße", "Ωmega", "My Photo (3)", "été", "x.y", "Ñandú", "007", "ЁЖ", "b" * 60]
SUFFIXES = [".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".webp"]
COMMON = "a photo of hta dog"


@dataclass
class Meant:
    """prompt and repeats of every picture that is to be trained on; twins are to be left out, masks to be used."""

    prompts: dict[Path, str] = field(default_factory=dict)
    repeats: dict[Path, int] = field(default_factory=dict)
    twins: set[Path] = field(default_factory=set)
    masked: set[Path] = field(default_factory=set)


def form(name: str, chance: random.Random) -> str:
    """The same name to a person."""
    return unicodedata.normalize(chance.choice(["NFC", "NFD"]), name)


def without_case(name: str, chance: random.Random) -> str:
    """Another spelling that folds to the same: letters of which upper case is more than one stay as they are."""
    return "".join(
        letter.swapcase() if len(letter.upper()) == 1 and letter.swapcase().swapcase() == letter else letter
        for letter in form(name, chance)
    )


def caption(picture: Path, words: str, rows: dict[str, list], chance: random.Random) -> str:
    """Write `words` beside `picture` in one of the ways that people do it; the prompt that this means."""
    stem, folder = picture.stem, picture.parent
    kind = chance.choice(["none", "txt", "caption", "case", "form", "suffix inside", "utf-16", "empty", "jsonl", "csv"])
    beside = {
        "txt": f"{stem}.txt",
        "caption": f"{stem}.caption",
        "case": f"{without_case(stem, chance)}.TXT",
        "form": f"{form(stem, chance)}.txt",
        "suffix inside": f"{picture.name}.txt",
        "utf-16": f"{stem}.txt",
        "empty": f"{stem}.txt",
    }
    if kind == "none":
        return ""
    if kind in ("jsonl", "csv"):
        rows[kind].append((chance.choice(["", "./"]) + form(picture.name, chance), words))
        return words
    content = " \n" if kind == "empty" else f"{words}\n"
    (folder / beside[kind]).write_text(content, encoding="utf-16" if kind == "utf-16" else "utf-8")
    return "" if kind == "empty" else words


def fill(folder: Path, stems: list[str], repeats: int, prompt: str, meant: Meant, chance: random.Random) -> None:
    """A folder of pictures with captions of every kind, masks and twins, whose uncaptioned ones mean `prompt`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list] = {"jsonl": [], "csv": []}
    for stem in stems:
        picture = folder / (form(stem, chance) + chance.choice(SUFFIXES))
        noise_picture((chance.randint(64, 100), chance.randint(64, 100)), chance.randrange(10**9)).save(picture)
        words = caption(picture, f"hta dog number {chance.randrange(3)}", rows, chance)
        meant.prompts[picture], meant.repeats[picture] = words or prompt, repeats
        if chance.random() < 0.2:
            twin = folder / f"\U0001f408 {len(meant.prompts)}{picture.suffix}"  # after all others in the order of names
            twin.write_bytes(picture.read_bytes())
            if words:  # the same picture with other words is another thing to learn
                meant.prompts[twin], meant.repeats[twin] = prompt, repeats
            else:
                meant.twins.add(twin)
        if chance.random() < 0.2:
            Image.new("L", Image.open(picture).size, 255).save(folder / f"{picture.stem}.mask.png")
            meant.masked.add(picture)
    if rows["jsonl"]:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows["jsonl"]]
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if rows["csv"]:
        lines = ["file_name,text", *(f'"{name}","{text}"' for name, text in rows["csv"])]
        (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / ".DS_Store").touch()


def random_folder(root: Path, chance: random.Random) -> tuple[Meant, str]:
    """Pictures in `root` itself, in kohya's numbered folders or in plain ones; what they mean, and the answer to `--folders`."""
    meant, stems = Meant(), chance.sample(STEMS, chance.randint(3, len(STEMS)))
    cut = chance.randint(1, len(stems) - 1)
    halves = (stems[:cut], stems[cut:])
    match chance.choice(["flat", "numbered", "plain", "loose beside numbered"]):
        case "flat":
            fill(root, stems, 1, COMMON, meant, chance)
            return meant, "auto"
        case "numbered":
            for half, repeats in zip(halves, chance.sample([1, 2, 5], 2), strict=True):
                fill(root / f"{repeats}_hta dog {len(half)}", half, repeats, f"hta dog {len(half)}", meant, chance)
            fill(root / "2023_holiday", ["left alone"], 1, "", Meant(), chance)
            return meant, "auto"
        case "plain":
            for name, half in zip(("front", "Übersicht"), halves, strict=True):
                fill(root / name, half, 1, COMMON, meant, chance)
            return meant, "all"
        case _:
            fill(root, halves[0], 1, COMMON, Meant(), chance)
            fill(root / "3_hta dog", halves[1], 3, "hta dog", meant, chance)
            return meant, "numbered"


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


@pytest.mark.parametrize("seed", range(20))
def test_the_account_of_a_random_folder_is_what_it_means_and_what_the_batches_hold(tmp_path, parts, seed):
    chance = random.Random(seed)
    root = tmp_path / "photos"
    meant, which = random_folder(root, chance)
    config = settings(root, data__folders=which, data__masked_loss=bool(meant.masked))
    account = data.scan(config, 64)

    found = {Path(photo.path): photo for photo in account.photos}
    assert {path: photo.prompt for path, photo in found.items()} == meant.prompts
    assert {path: photo.repeats for path, photo in found.items()} == meant.repeats
    assert {path for path, photo in found.items() if photo.mask} == meant.masked
    assert {Path(left.path) for left in account.left if "the same picture" in left.why} == meant.twins

    printed = "\n".join(account.lines())
    shown = {prompt: int(count) for count, prompt in re.findall(r"^(\d+) x '(.*)' \(", printed, re.MULTILINE)}
    assert shown == Counter(meant.prompts.values())
    for folder in {path.parent for path in found} - {root}:
        taken = sum(path.parent == folder for path in found)
        assert re.search(rf"^{re.escape(folder.name)}: {taken} of \d+ taken", printed, re.MULTILINE), printed

    config.run.cache_dir = str(tmp_path / "cache")
    encoder = Encoder.of(parts, config, Drawing(), torch.device("cpu"))
    _, dataset = finish(encoder.dataset(account, None, config, ()))
    objective = Objective.of(config, parts.noise(False))
    batches = Batches(dataset, objective, None, seed=seed, batch_size=1, accumulation=1)
    epoch = [micro for _ in range(account.shown) for micro in batches.step()]
    assert Counter(micro.names[0] for micro in epoch) == {path.name: meant.repeats[path] for path in found}
    by_name = {path.name: prompt for path, prompt in meant.prompts.items()}
    for micro in epoch:
        assert torch.equal(micro.values["text"][0], dataset.texts[by_name[micro.names[0]]]["text"])
        assert micro.names[0] not in {twin.name for twin in meant.twins}
