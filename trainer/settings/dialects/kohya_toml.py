"""kohya's data set files: folders with repeats, captions and class images, as flags of the same program.

    [general], [[datasets]], [[datasets.subsets]]    each may hold what the ones below it inherit

The nearest value holds, as in sd-scripts' library/config_util.py: the subset's before the data set's before [general]'s.
Of several data sets or subsets the first one of photos has the say: one run has one resolution and one batch here.
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
    folders = [(dataset, subset) for dataset in datasets for subset in dataset.get("subsets", [])]
    folders.sort(key=lambda pair: bool(pair[1].get("is_reg")))  # the photos' settings before the class images'
    levels = [("general", general), *(("datasets", _own(dataset)) for dataset in datasets)]
    levels += [("subsets", {key: subset[key] for key in subset if key not in NAMES}) for _, subset in folders]
    near_to_far = [1 + len(datasets), 1 + datasets.index(folders[0][0]), 0] if folders else []
    holder: dict[str, int] = {}
    for number in [*near_to_far, *range(len(levels))]:
        for key in levels[number][1]:
            holder.setdefault(key, number)
    for number, (place, table) in enumerate(levels):
        for key, value in table.items():
            if holder[key] == number:
                yield _pair(f"{place}.{key}", key, value)
            else:
                yield f"{place}.{key}", value, "", f"the value in [{levels[holder[key]][0]}] holds"
    subsets = [general | _own(dataset) | subset for dataset, subset in folders]
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
