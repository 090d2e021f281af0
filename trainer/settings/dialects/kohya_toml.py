"""kohya's data set files: folders with repeats, captions and class images, as flags of the same program.

    [general], [[datasets]], [[datasets.subsets]]    each may hold what the ones below it inherit

Of several data sets the first one's picture settings hold: one run has one resolution and one batch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.settings.dialects.files import shown
from trainer.settings.subsets import entry

Told = tuple[str, Any, str, "str | list[str]"]  # key, value, the flag that says it, and the flag's text

NAMES = {"batch_size": "train_batch_size", "class_tokens": "", "image_dir": "", "num_repeats": "", "is_reg": ""}


def words(tables: dict[str, Any]) -> Iterator[Told]:
    """Everything the file says, as flags; a flag "" is a key that the folders' flags speak for."""
    general = dict(tables.get("general", {}))
    datasets = tables.get("datasets", [])
    seen: set[str] = set()
    for key, value in general.items():
        seen.add(key)
        yield _pair(f"general.{key}", key, value)
    for number, dataset in enumerate(datasets):
        for key, value in dataset.items():
            if key == "subsets":
                continue
            again = key in seen and (number or general.get(key) != value)
            seen.add(key)
            yield (
                _pair(f"datasets.{key}", key, value)
                if not again
                else (f"datasets.{key}", value, "", "an earlier value holds")
            )
    subsets = [general | _own(dataset) | subset for dataset in datasets for subset in dataset.get("subsets", [])]
    for dataset in datasets:
        for subset in dataset.get("subsets", []):
            for key, value in subset.items():
                if key not in NAMES and key not in seen:
                    seen.add(key)
                    yield _pair(f"subsets.{key}", key, value)
    yield from _folders(
        [subset for subset in subsets if not subset.get("is_reg")], [s for s in subsets if s.get("is_reg")]
    )


def _own(dataset: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dataset.items() if key != "subsets"}


def _pair(full: str, key: str, value: Any) -> Told:
    flag = NAMES.get(key, key)
    text = ",".join(map(str, value)) if key == "resolution" and isinstance(value, list) else shown(value)
    return full, value, flag, text


def _folders(photos: list[dict[str, Any]], classes: list[dict[str, Any]]) -> Iterator[Told]:
    told = [entry(each.get("num_repeats", 1), each.get("image_dir", ""), each.get("class_tokens")) for each in photos]
    if told:
        yield "subsets.image_dir", told, "subsets", told
    for subset in classes:
        yield "subsets.image_dir (is_reg)", subset.get("image_dir"), "reg_data_dir", str(subset.get("image_dir"))
        if subset.get("class_tokens"):
            yield "subsets.class_tokens (is_reg)", subset["class_tokens"], "class_prompt", str(subset["class_tokens"])
