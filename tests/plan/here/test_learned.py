"""A card's own numbers in the place of assumed ones: measured once, kept, and measured again when something changed."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from trainer.machine import known, probe
from trainer.machine.convolutions import Shape
from trainer.machine.probe import Seen
from trainer.models import family
from trainer.plan import calibration
from trainer.plan.calibration import ASSUMED, GIB, LATER_BYTES, MIB
from trainer.plan.here import learned
from trainer.settings import overlay

CPU = torch.device("cpu")
SEEN = Seen(GIB // 3, GIB // 2, 100 * MIB, 120 * MIB, 40e12, 50e12, 60e12, 20e9, 24e9, 15e9)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "snugbooth" / "cards"


@pytest.fixture
def learn():
    """Calls `learned.learn` for SD 1 on this CPU, whose measurement is handed in; `learn.asked` counts how often it was taken."""

    def learn(launch: float = 2e-5) -> calibration.Constants:
        def measure(work, device):
            learn.asked += 1
            return {"seen": asdict(SEEN), "launch": launch}

        return learned.learn(overlay.load({}), family("sd1").public(), CPU, torch.bfloat16, measure)

    learn.asked = 0
    return learn


def test_a_second_run_measures_nothing(learn):
    first, second = learn(), learn(launch=9.0)
    assert first == second and learn.asked == 1
    assert first.launch.amount == 2e-5 and first.launch.here and first.date in first.launch.source


@pytest.mark.parametrize("change", ["driver", "torch", "cuda", "triton", "card"])
def test_another_card_driver_or_version_is_measured_again(learn, monkeypatch, change):
    learn()
    before = known.versions(CPU)
    monkeypatch.setattr(known, "versions", lambda device: before | {change: "another"})
    learn()
    assert learn.asked == 2


@pytest.mark.parametrize("damage", ["{", '{"of": {}, "made": 1, "found": {}}'])
def test_what_is_damaged_is_measured_again(learn, home, damage):
    learn()
    (path,) = home.iterdir()
    path.write_text(damage)
    learn()
    assert learn.asked == 2


@pytest.mark.parametrize("found", [{}, {"seen": asdict(SEEN)}, {"seen": asdict(SEEN) | {"up": -1}, "launch": 1e-5}])
def test_what_lacks_a_number_is_measured_again(learn, found):
    learn()
    (kept,) = known.all_of({})
    known.keep(kept.of, found)
    assert learn().launch.amount == 2e-5 and learn.asked == 2


def test_without_a_place_to_keep_it_each_run_measures(learn, home):
    home.parent.parent.mkdir(exist_ok=True)
    home.parent.write_text("a file where the folder should be")
    assert learn() == learn() and learn.asked == 2


def test_each_number_that_was_measured_replaces_its_assumption_and_no_other():
    made = learned.constants(SEEN, 1e-5, "today")
    assert made.context.amount == GIB // 2 + LATER_BYTES.amount and made.launch.amount == 1e-5
    assert made.bus.amount == 20e9 and made.duplex.amount == 0.75
    assert made.flops.amount == pytest.approx(2 / (1 / 40e12 + 1 / 60e12))
    assert made.workspaces == ASSUMED.workspaces, (
        "two levels of a denoiser may show that more is needed, never that less is"
    )
    assert made.allocator == ASSUMED.allocator
    assert learned.constants(replace(SEEN, workspaces=GIB), 1e-5, "").workspaces.amount == GIB


@pytest.mark.parametrize("context", [0, 3 * GIB])
def test_a_context_that_nobody_could_read_or_that_others_disturbed_stays_assumed(context):
    assert learned.constants(replace(SEEN, context=context), 1e-5, "").context == ASSUMED.context


def test_a_search_for_algorithms_pays_where_it_is_faster_within_the_planned_workspaces():
    assert learned.searches(SEEN)
    assert not learned.searches(replace(SEEN, quick=1.01 * SEEN.plain)), "not worth its seconds"
    assert not learned.searches(replace(SEEN, searched=GIB)), "no plan has that memory"
    assert learned.searches(replace(SEEN, searched=GIB, workspaces=GIB)), "it is planned anyway"


def test_the_work_is_that_of_the_run():
    config = overlay.load({"data.resolution": 512, "prior.with_prior_preservation": True})
    work = learned.work_of(config, family("sd1").public(), torch.bfloat16)
    assert work.convolutions == (Shape(2, 320, 64, 64), Shape(2, 640, 32, 32)) and work.dtype == "bfloat16"
    assert work.products == ((2 * 4096, 320, 2560), (2 * 1024, 640, 5120)) and work.attention == (2, 8, 4096, 40)
    work = learned.work_of(overlay.load({}), family("klein").public(), torch.bfloat16)
    assert not work.convolutions and work.products == ((2 * 4096, 3072, 3072), (2 * 4096, 3072, 12288))
    assert work.attention == (2, 24, 4096, 128)


@pytest.mark.parametrize("name", ["sd2", "sdxl", "sd35", "lumina2", "zimage"])
def test_every_family_has_work_to_measure(name):
    work = learned.work_of(overlay.load({}), family(name).public(), torch.bfloat16)
    assert all(size > 0 for product in work.products for size in product) and min(work.attention) > 0


def test_the_hosts_time_for_an_operator_is_that_of_a_small_models_steps():
    """On a CPU the arithmetic is in it."""
    assert 1e-6 < learned.launch_seconds(CPU, torch.float32) < 5e-2


def test_the_newest_that_is_known_of_a_device_is_there_for_a_look(learn):
    assert learned.latest(CPU) is None
    made = learn()
    assert learned.latest(CPU)[0] == made and learned.latest(CPU)[1] > 1e9


def test_everything_is_measured_on_this_cpu_and_believed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = probe.Work("float32", (Shape(1, 16, 8, 8),), ((64, 32, 64),), (1, 2, 16, 8))
    monkeypatch.setattr(learned, "work_of", lambda *words: small)
    made = learned.learn(overlay.load({}), family("sd1").public(), CPU, torch.float32)
    assert {"arithmetic", "the bus", "both ways of it at once", "the host's time for an operator"} == {
        words for name, words in calibration.WORDS.items() if name in made.values() and made.values()[name].here
    }
    assert made.context == ASSUMED.context, "a CPU has none"
    assert 0 < made.duplex.amount <= 1 and made.bus.amount > 0 and made.flops.amount > 0
