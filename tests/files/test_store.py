"""A store gives back what was put into it, or says that it has nothing."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.files.store import Store, checksum, key

NAMES = ("mean", "std")


def tensors(seed=0, height=8):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, height, 8, generator=generator) for name in NAMES}


def same(found, expected):
    return found is not None and all(torch.equal(found[name], expected[name]) for name in NAMES)


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path)
    found.put("a", tensors())
    return found


def test_what_was_put_in_comes_out(store):
    assert same(store.get("a", NAMES), tensors()) and store.get("b", NAMES) is None and store.remade == 0


def test_a_bit_flipped_anywhere_is_never_given_back(store):
    path = store.path("a")
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        found = store.get("a", NAMES)
        assert found is None or same(found, tensors()), place
    path.write_bytes(good)
    assert same(store.get("a", NAMES), tensors())


def test_a_file_that_was_cut_anywhere_is_never_given_back(store):
    path = store.path("a")
    good = path.read_bytes()
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        assert store.get("a", NAMES) is None, length
    assert store.remade == len(range(0, len(good), 97))


def test_files_that_changed_places_are_made_again(store):
    store.put("b", tensors(1))
    shutil.copy(store.path("b"), store.path("a"))
    assert store.get("a", NAMES) is None and store.remade == 1 and same(store.get("b", NAMES), tensors(1))


def test_another_shape_under_the_same_checksum_is_made_again(store):
    marks = {"key": "a", "checksum": checksum(tensors())}
    save_file(tensors(height=4), store.path("a"), marks)
    assert store.get("a", NAMES) is None and store.remade == 1


def test_a_file_without_a_checksum_is_made_again_and_not_called_damaged(store):
    save_file(load_file(store.path("a")), store.path("a"))
    assert store.get("a", NAMES) is None and store.remade == 0


def test_a_checksum_counts_names_types_and_shapes(store):
    one = tensors()
    assert checksum(one) == checksum(dict(reversed(one.items())))
    assert checksum(one) != checksum({"mean": one["std"], "std": one["mean"]})
    assert checksum({"a": torch.zeros(4)}) != checksum({"a": torch.zeros(2, 2)})
    assert checksum({"a": torch.zeros(2)}) != checksum({"a": torch.zeros(2, dtype=torch.int32)})


def test_keys_name_facts_in_any_order():
    assert key(a=1, b=2) == key(b=2, a=1) != key(a=1, b=3) and len(key()) == 32
