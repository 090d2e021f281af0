"""An entry of data.subsets is read as it was written."""

import pytest

from trainer.errors import ConfigError
from trainer.settings import overlay
from trainer.settings.subsets import entry, subset


@pytest.mark.parametrize(("text", "found"), [
    ("photos", (None, "photos", "")), ("3 x a b", (3, "a b", "")), ("10 x a = a sks dog", (10, "a", "a sks dog")),
    ("C:\\x y = z", (None, "C:\\x y", "z")), ("2 x a=b", (2, "a=b", "")),
])  # fmt: skip
def test_an_entry_is_repeats_folder_and_prompt(text, found):
    assert subset(text) == found and subset(entry(*found)) == found


def test_an_empty_entry_is_refused_with_the_form():
    with pytest.raises(ConfigError, match="names no folder"):
        subset("  ")


def test_several_folders_are_own_photos_though_the_one_folder_is_left_open():
    config = overlay.load({"data.subsets": ["3 x photos/a", "photos/b"]})
    assert config.data.instance_data_dir == "photos/a" and config.model.name != "demo"
