"""What was measured is found again as long as everything it is true of is the same, and damaged files are as good as none."""

from __future__ import annotations

import json
import os

import pytest
import torch

from trainer.machine import known

OF = {"card": "RTX 3060", "driver": "580", "torch": "2.11", "cuda": "13.0", "triton": "3.6", "work": "sd1"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "snugbooth" / "cards"


def test_what_was_kept_is_read_again(home):
    assert known.read(OF) is None
    kept = known.keep(OF, {"launch": 2e-5})
    assert known.read(OF) == kept and kept.found == {"launch": 2e-5} and kept.date.split()[-1].isdigit()
    assert [path.suffix for path in home.iterdir()] == [".json"], "no part of it is left"


@pytest.mark.parametrize("name", OF)
def test_another_card_driver_version_or_work_is_not_known(name):
    known.keep(OF, {})
    assert known.read(OF | {name: "another"}) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"of": 1}', '{"made": "x", "of": {}, "found": {}}', "null"])
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(home, damage):
    known.keep(OF, {"launch": 1.0})
    (path,) = home.iterdir()
    path.write_text(damage)
    assert known.read(OF) is None and not [*known.all_of({})]
    known.keep(OF, {"launch": 2.0})
    assert known.read(OF).found == {"launch": 2.0}


def test_a_file_under_anothers_name_is_not_believed(home):
    known.keep(OF, {})
    (path,) = home.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of": OF | {"driver": "1"}}))
    assert known.read(OF) is None


def test_what_is_known_of_a_machine_comes_newest_first(home, monkeypatch):
    for made, work in ((10.0, "sd1"), (30.0, "sdxl"), (20.0, "klein")):
        monkeypatch.setattr(known.time, "time", lambda made=made: made)
        known.keep(OF | {"work": work}, {})
    known.keep(OF | {"card": "RTX 4090"}, {})
    here = {name: OF[name] for name in ("card", "driver", "torch")}
    assert [each.of["work"] for each in known.all_of(here)] == ["sdxl", "klein", "sd1"]


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_home_that_cannot_be_written_to_is_an_error_of_the_system(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError):
        known.keep(OF, {})


def test_the_versions_of_a_cpu_name_what_computes_on_it():
    said = known.versions(torch.device("cpu"))
    assert said["card"] == "CPU" and said["torch"] == torch.__version__ and set(said) == set(OF) - {"work"}


def test_the_driver_is_named_by_its_release_where_the_system_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "DRIVER", tmp_path / "version")
    assert known.driver().startswith("CUDA ")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\nGCC\n")
    assert known.driver().endswith("580.65.06")
