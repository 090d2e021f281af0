"""What is printed about a folder is what the batches hold: random folders as people have them, each written with a note of what
it means, which account and batches are held against."""

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from photos import finish, noise_picture, settings
from PIL import Image

from trainer.data import photos as data
from trainer.data.account import PhotoSet
from trainer.data.batches import Batches, ClassRows
from trainer.data.encode import Encoder, bucket_step
from trainer.models import SD1
from trainer.objective.loss import Objective
from trainer.policy import Drawing

STEMS = ["IMG_1", "img-2", "Café", "straße", "Ωmega", "My Photo (3)", "été", "x.y", "Ñandú", "007", "ЁЖ", "b" * 60]
SUFFIXES = [".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".webp"]
COMMON = "a photo of hta dog"
CLASS = "a photo of a dog"
LAST = "\U0001f408"  # begins the names of twins: after all others in the order of names


@dataclass
class Written:
    """A picture that was written: what it shows, and the prompt and repeats that are meant."""

    path: Path
    shows: int
    prompt: str
    repeats: int
    masked: bool = False


@dataclass
class Meant:
    """All pictures of the folders that count; files beside them that are neither pictures nor used, and what must be named."""

    written: list[Written] = field(default_factory=list)
    others: int = 0
    masks: int = 0
    astray: list[str] = field(default_factory=list)

    def sorted_out(self, root: Path) -> tuple[list[Written], list[Written]]:
        """(taken, twins): of the same picture with the same words the first counts, in the order of folders and names."""
        taken: dict[tuple[int, str], Written] = {}
        twins = []
        for each in sorted(self.written, key=lambda each: (each.path.parent != root, each.path)):
            if each is not taken.setdefault((each.shows, each.prompt), each):
                twins.append(each)
        return list(taken.values()), twins


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
    kinds = [
        "none",
        "txt",
        "caption",
        "case",
        "form",
        "suffix inside",
        "another inside",
        "utf-16",
        "empty",
        "jsonl",
        "csv",
    ]
    kind = chance.choice(kinds)
    beside = {
        "txt": f"{stem}.txt",
        "caption": f"{stem}.caption",
        "case": f"{without_case(stem, chance)}.TXT",
        "form": f"{form(stem, chance)}.txt",
        "suffix inside": f"{picture.name}.txt",
        "another inside": f"{stem}.heic.txt",  # converted after it was captioned
        "utf-16": f"{stem}.txt",
        "empty": f"{stem}.txt",
    }
    if kind == "none":
        return ""
    if kind in ("jsonl", "csv"):
        suffix = chance.choice([picture.suffix, ".heic"])  # converted after it was captioned
        rows[kind].append((chance.choice(["", "./", "D:\\old/"]) + form(stem, chance) + suffix, words))
        return words
    content = " \n" if kind == "empty" else f"{words}\n"
    (folder / beside[kind]).write_text(content, encoding="utf-16" if kind == "utf-16" else "utf-8")
    return "" if kind == "empty" else words


def fill(folder: Path, stems: list[str], repeats: int, prompt: str, meant: Meant, chance: random.Random) -> None:
    """A folder of pictures with captions of every kind, masks, twins, and things that belong to none of them, whose
    uncaptioned pictures mean `prompt`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list] = {"jsonl": [], "csv": []}
    for stem in stems:
        picture = folder / (form(stem, chance) + chance.choice(SUFFIXES))
        shows, size = chance.randrange(10**9), (chance.randint(64, 140), chance.randint(64, 100))
        noise_picture(size, shows).save(picture)
        words = caption(picture, f"hta dog number {chance.randrange(3)}", rows, chance)
        meant.written.append(Written(picture, shows, words or prompt, repeats))
        if chance.random() < 0.2:
            twin(meant.written[-1], folder, repeats, prompt, meant, chance)
        if chance.random() < 0.2:
            mask = Image.new("L", Image.open(picture).size, 0)
            mask.paste(255, (0, 0, mask.width // 2, mask.height))
            mask.save(folder / f"{picture.stem}.mask.png")
            next(each for each in meant.written if each.path == picture).masked = True
            meant.masks += 1
    if chance.random() < 0.4:
        astray(folder, rows, meant, chance)
    if rows["jsonl"]:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows["jsonl"]]
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if rows["csv"]:
        lines = ["file_name,text", *(f'"{name}","{text}"' for name, text in rows["csv"])]
        (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / ".DS_Store").touch()
    meant.others += 1


def twin(of: Written, folder: Path, repeats: int, prompt: str, meant: Meant, chance: random.Random) -> None:
    """The same picture again in `folder`, to the byte or saved in another format, without a caption: another thing to
    learn where other words are meant."""
    path = folder / f"{LAST} {len(meant.written)}{of.path.suffix}"
    if chance.random() < 0.5:
        path.write_bytes(of.path.read_bytes())
    else:
        Image.open(of.path).save(path := path.with_suffix(".bmp"))
    meant.written.append(Written(path, of.shows, prompt, repeats))


def astray(folder: Path, rows: dict[str, list], meant: Meant, chance: random.Random) -> None:
    """Words that were meant for a picture that is not there: a file, or a row."""
    name = f"gone {len(meant.astray)}"
    kind = chance.choice(["txt", "caption", "jsonl", "csv"])
    if kind in rows:
        name = f"{name}.png"
        rows[kind].append((name, "hta dog"))
    else:
        name = f"{name}.{kind}"
        (folder / name).write_text("hta dog")
        meant.others += 1
    meant.astray.append(name)


def halves_in(
    places: list[tuple[Path, int, str]], halves: tuple[list[str], ...], meant: Meant, chance: random.Random
) -> None:
    """The halves in two folders (folder, repeats, prompt), of which one has a picture of the other again, perhaps."""
    for (folder, repeats, prompt), half in zip(places, halves, strict=True):
        fill(folder, half, repeats, prompt, meant, chance)
    if chance.random() < 0.7:
        of, (folder, repeats, prompt) = chance.choice(meant.written), chance.choice(places)
        twin(of, folder, repeats, prompt, meant, chance)


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
            prompts = chance.choice([("hta dog", "hta dog"), ("hta dog", "hta dog asleep")])
            counts = chance.sample([1, 2, 5], 2)
            places = [(root / f"{n}_{words}", n, words) for n, words in zip(counts, prompts, strict=True)]
            halves_in(places, halves, meant, chance)
            fill(root / "2023_holiday", ["left alone"], 1, "", Meant(), chance)
            return meant, "auto"
        case "plain":
            halves_in([(root / "front", 1, COMMON), (root / "Übersicht", 1, COMMON)], halves, meant, chance)
            return meant, "all"
        case _:
            fill(root, halves[0], 1, COMMON, Meant(), chance)
            fill(root / "3_hta dog", halves[1], 3, "hta dog", meant, chance)
            fill(root / "2023_holiday", ["left alone"], 1, "", Meant(), chance)
            return meant, "numbered"


def random_class(root: Path, chance: random.Random) -> Meant:
    """Pictures of the class: whatever lies in the folder is meant, and numbers count as they do among photos."""
    meant, stems = Meant(), [f"other {stem}" for stem in chance.sample(STEMS, 4)]
    places = [(root, 1, CLASS), chance.choice([(root / "2_dog", 2, "dog"), (root / "2023_more", 1, CLASS)])]
    halves_in(places, (stems[:2], stems[2:]), meant, chance)
    return meant


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


def held(account: PhotoSet, meant: Meant, root: Path, masks: bool) -> None:
    """What is known, and what is printed, is what was meant."""
    taken, twins = meant.sorted_out(root)
    found = {Path(photo.path): photo for photo in account.photos}
    assert {path: photo.prompt for path, photo in found.items()} == {each.path: each.prompt for each in taken}
    assert {path: photo.repeats for path, photo in found.items()} == {each.path: each.repeats for each in taken}
    assert {path for path, photo in found.items() if photo.mask} == {
        each.path for each in taken if masks and each.masked
    }
    left = {Path(left.path) for left in account.left if "the same picture" in left.why}
    assert left == {each.path for each in twins}
    assert account.ignored == meant.others + (0 if masks else meant.masks)
    said = "\n".join(account.problems)
    assert all(name in said for name in meant.astray), said

    printed = "\n".join(account.lines())
    shown = {prompt: int(count) for count, prompt in re.findall(r"^(\d+) x '(.*)' \(", printed, re.MULTILINE)}
    assert shown == Counter(each.prompt for each in taken)
    for folder in {path.parent for path in found} - {root}:
        inside = [each for each in taken if each.path.parent == folder]
        times = f", each {inside[0].repeats} times an epoch" if inside[0].repeats > 1 else ""
        line = rf"^{re.escape(folder.name)}: {len(inside)} of \d+ taken{times}(,|$)"
        assert re.search(line, printed, re.MULTILINE), printed
    shapes = Counter(photo.size_cut for photo in account.photos)
    told = {
        (int(width), int(height)): int(count)
        for line in printed.splitlines()
        if line.startswith("buckets: ")
        for width, height, count in re.findall(r"(\d+) x (\d+) \((\d+)\)", line)
    }
    assert told == (shapes if len(shapes) > 1 else {})


def rows_of(batches: Batches, steps: int) -> Iterator[tuple[bool, str, torch.Tensor, tuple[int, int], bool]]:
    """(of the class, name, embedding, (width, height) in pixels, whether the loss is weighed) of every picture of `steps`."""
    for _ in range(steps):
        for order, micro in enumerate(batches.step()):
            for row, name in enumerate(micro.names):
                height, width = (8 * side for side in micro.target.shape[2:])
                weighed = micro.mask is not None and bool(micro.mask[row].std() > 0)
                of_class = order > 0 or row >= 1
                yield of_class, name, micro.values["text"][row], (width, height), weighed


@pytest.mark.parametrize("seed", range(24))
def test_the_account_of_a_random_folder_is_what_it_means_and_what_the_batches_hold(tmp_path, parts, seed):
    chance = random.Random(seed)
    root, of_class = tmp_path / "photos", tmp_path / "class"
    meant, which = random_folder(root, chance)
    meant_class = random_class(of_class, chance) if chance.random() < 0.5 else None
    taken, _ = meant.sorted_out(root)
    masks = any(each.masked for each in taken)
    buckets = chance.random() < 0.5
    config = settings(root, data__folders=which, data__masked_loss=masks, data__buckets=buckets)
    account = data.scan(config, 64, bucket_step(parts, 64))
    held(account, meant, root, masks)
    account_class = None
    if meant_class is not None:
        config.prior.with_prior_preservation = True
        account_class = data.scan_class(of_class, config, 64)
        held(account_class, meant_class, of_class, masks=False)

    config.run.cache_dir = str(tmp_path / "cache")
    encoder = Encoder.of(parts, config, Drawing(), torch.device("cpu"))
    _, dataset = finish(encoder.dataset(account, account_class, config, ()))
    objective = Objective.of(config, parts.noise(False))
    prior = ClassRows(dataset, objective) if account_class else None
    batches = Batches(dataset, objective, prior, seed=seed, batch_size=1, accumulation=1)
    classes = meant_class.sorted_out(of_class)[0] if meant_class else []
    expected = [*((each, False) for each in taken), *((each, True) for each in classes)]
    epochs = sum(each.repeats for each in classes) or 1
    steps = account.shown * epochs  # whole epochs of photos, and of class images where there are any
    times: Counter[str] = Counter()
    by_name = {each.path.name: (each, is_class) for each, is_class in expected}
    cut = {photo.name: photo.size_cut for each in (account, account_class) if each for photo in each.photos}
    for is_class, name, text, size, weighed in rows_of(batches, steps):
        each, meant_as_class = by_name[name]
        assert is_class == meant_as_class and size == cut[name]
        assert torch.equal(text, dataset.texts[each.prompt]["text"])
        assert weighed == (masks and each.masked and not is_class)
        times[name] += 1
    of_photos = {each.path.name: each.repeats * epochs for each, is_class in expected if not is_class}
    assert times == of_photos | {
        each.path.name: each.repeats * account.shown for each, is_class in expected if is_class
    }
