"""The doctor on what is there: packages against what was tested, and the disk."""

import time
from dataclasses import asdict
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from trainer.cli import installed
from trainer.machine import known, releases
from trainer.machine.probe import Seen
from trainer.settings.overlay import load


@pytest.fixture
def config():
    return load({"run.device": "cpu"})


@pytest.fixture
def seeming(monkeypatch):
    """Sets the version that a package seems to have; None is not installed. The others have the tested one."""
    set_here: dict[str, str | None] = {}

    def version(name: str) -> str:
        found = set_here.get(name, releases.tested().get(name))
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(installed.importlib, "import_module", lambda name: None)
    return set_here


def found(config, hidden=None):
    return {line.name: line for line in installed.versions(config, hidden)}


def test_the_tested_set_is_all_well(config, seeming):
    assert {line.state for line in found(config).values()} <= {"ok", "off"}


@pytest.mark.parametrize("name", ["torch", "diffusers", "transformers", "safetensors", "rich"])
def test_what_training_needs_is_bad_when_it_is_missing(config, seeming, name):
    seeming[name] = None
    line = found(config)[name]
    assert line.state == "bad" and "missing" in line.detail
    assert line.fix.endswith(f" -m pip install -c {releases.CONSTRAINTS} {name}")


@pytest.mark.parametrize("name", sorted(installed.SPARED))
def test_what_some_runs_use_is_lost_and_says_what_works_without_it(config, seeming, name):
    seeming[name] = None
    line = found(config)[name]
    assert line.state == "lost" and "works" in line.without and name in line.fix


@pytest.mark.parametrize("name", ["peft", "pydantic"])
def test_a_version_too_old_is_named_and_whether_it_works_is_left_to_what_is_tried(config, seeming, name):
    seeming[name] = "0.0.1"
    line = found(config)[name]
    assert line.state == "lost" and line.detail.startswith("0.0.1 (needs ") and name in line.fix


def test_a_version_newer_than_the_tested_one_is_no_fault(config, seeming):
    seeming["accelerate"] = "1.99"
    line = found(config)["accelerate"]
    assert line.state == "off" and "newer than" in line.detail and line.fix


def test_an_optional_package_that_is_absent_costs_nothing(config, seeming):
    line = found(config)["xformers"]
    assert (line.state, line.fix) == ("off", "") and "optional" in line.detail


def test_what_was_set_aside_because_it_does_not_load_says_why(config, seeming):
    line = found(config, {"peft": "undefined symbol"})["peft"]
    assert line.state == "lost" and "does not load: undefined symbol" in line.detail


def test_what_nobody_here_asked_for_and_was_set_aside_costs_nothing_and_is_named(config, seeming):
    line = found(config, {"torchvision": "operator torchvision::nms does not exist"})["torchvision"]
    assert line.state == "off" and "operator torchvision::nms" in line.detail and "uninstall torchvision" in line.fix


def test_a_package_whose_import_raises_costs_its_own_line(config, seeming, monkeypatch):
    def import_module(name: str) -> None:
        if name == "safetensors":
            raise OSError("wrong ELF class")

    monkeypatch.setattr(installed.importlib, "import_module", import_module)
    lines = found(config)
    assert lines["safetensors"].state == "bad" and "does not load: wrong ELF class" in lines["safetensors"].detail
    assert lines["diffusers"].state == "ok"


def test_disk_names_the_folder_it_looked_at_and_makes_none(config, tmp_path):
    config.settle("run.output_dir", str(tmp_path / "new"), "test")
    (line,) = [line for line in installed.disk(config) if line.name == "run folder"]
    assert str(tmp_path) in line.detail and not (tmp_path / "new").exists()


@pytest.fixture
def cards(monkeypatch, tmp_path):
    """Makes torch see these cards: (name, GiB) each."""

    def cards(*them: tuple[str, float]) -> None:
        properties = [SimpleNamespace(name=name, total_memory=int(g * 2**30), major=8, minor=6) for name, g in them]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(them))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties[device.index].name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        total = [each.total_memory for each in properties]
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (total[index], total[index]))
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)

    return cards


def test_one_card_is_called_the_card(config, cards):
    cards(("RTX 3060", 12))
    assert [line.name for line in installed.card(config)] == ["card", "video memory", "bf16", "measured"]


def test_what_plans_know_of_a_card_is_shown_with_its_age(config, cards, monkeypatch):
    cards(("RTX 3060", 12))
    *_, line = installed.card(config)
    assert line.state == "off" and "nothing yet" in line.detail
    seen = Seen(1, 2**29, 0, 0, 40e12, 50e12, 60e12, 20e9, 24e9, 15e9)
    of = known.versions(torch.device("cuda", 0)) | {"work": "any"}
    now = time.time()
    monkeypatch.setattr(known.time, "time", lambda: now - 3 * 3600)
    known.keep(of, {"seen": asdict(seen), "launch": 2e-5})
    monkeypatch.undo()
    cards(("RTX 3060", 12))
    *_, line = installed.card(config)
    assert line.state == "ok" and line.detail.startswith("3 hours ago: context 0.61 GiB") and "20.0 GB/s" in line.detail


@pytest.mark.parametrize("seconds,words", [(5, "5 seconds"), (150, "2 minutes"), (7300, "2 hours"), (10**6, "11 days")])
def test_an_age_is_told_in_the_largest_unit_of_which_there_are_two(seconds, words):
    assert installed.age(seconds) == words


def test_of_several_cards_each_has_its_lines_and_how_to_use_them_together(config, cards):
    cards(("RTX 3060", 12), ("RTX 4090", 24))
    lines = {line.name: line for line in installed.card(config)}
    assert "RTX 4090" in lines["card 1"].detail and "24.0 GiB" in lines["video memory 1"].detail
    assert "--cards 2" in lines["several cards"].detail and "smallest (12.0 GiB)" in lines["several cards"].detail


def test_several_cards_without_nccl_train_one_at_a_time(config, cards, monkeypatch):
    cards(("RTX 3060", 12), ("RTX 3060", 12))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    *_, line = installed.card(config)
    assert line.state == "lost" and line.without == "a run on one card works" and "torch" in line.fix
