"""The guard: rules on readings, and a reading that changes nothing."""

from copy import deepcopy

import pytest
import torch
from PIL import Image
from small_data import small_data

from trainer.data.batches import Batches
from trainer.events import Controls
from trainer.guard.guard import Guard
from trainer.guard.meters import Losses, Probe
from trainer.guard.rulings import Rulings
from trainer.models import SD1
from trainer.objective.loss import Objective
from trainer.settings.config import Guard as Settings
from trainer.step.engine import Engine, Policy


def reading(held, seen=1.0, **more):
    return {"held-out loss": held, "seen loss": seen, "class loss": 1.0} | more


def verdicts(readings, **settings):
    """All verdicts as (step, words), with a reading every ten steps."""
    rulings = Rulings(Settings(**settings))
    return [(10 * i, words) for i, values in enumerate(readings) for words in rulings.take(10 * i, values)[1]], rulings


def test_a_plateau_is_named_once_with_the_best_step():
    said, rulings = verdicts([reading(v) for v in (1.0, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84)], patience=3)
    assert [step for step, _ in said] == [50]
    assert said[0][1] == "plateau: no improvement in 3 readings; best at step 20"
    assert rulings.best_step == 20


def test_the_base_model_is_never_the_best():
    _, rulings = verdicts([reading(0.1), reading(0.5)])
    assert rulings.best_step == 10


def test_drift_of_pictures_and_of_the_class_loss_are_both_drift():
    said, _ = verdicts([reading(1.0, drift=0.0), reading(0.9, drift=0.5)], drift_limit=0.35)
    assert said == [(10, "drift: pictures of other prompts moved by 0.50 (limit 0.35)")]
    said, _ = verdicts([reading(1.0), reading(0.9) | {"class loss": 1.5}], drift_limit=0.35)
    assert said[0][1].startswith("drift: the class loss rose by 50%")


def test_overfitting_is_a_rising_held_out_loss_under_a_falling_seen_loss():
    said, _ = verdicts([reading(1.0, 1.0), reading(0.8, 0.7), reading(0.95, 0.5)], patience=9)
    assert said == [(20, "overfitting: the held-out loss rises while the loss on training crops falls")]
    both_rise, _ = verdicts([reading(1.0, 1.0), reading(0.8, 0.7), reading(0.95, 0.9)], patience=9)
    assert both_rise == []


def test_only_the_asked_verdict_stops():
    rulings = Rulings(Settings(early_stop="drift"))
    assert rulings.stops(["plateau: x"]) == "" and rulings.stops(["plateau: x", "drift: y"]) == "drift: y"
    assert Rulings(Settings()).stops(["drift: y"]) == ""


def test_with_a_judge_the_score_weighs_subject_prompt_and_drift():
    rulings = Rulings(Settings())
    assert rulings.score(reading(1.0, subject=0.5, prompt=0.25, drift=0.125)) == 0.625


@pytest.fixture(scope="module")
def small():
    return small_data()


def losses_of(parts, data, held):
    engine = Engine(SD1.units(SD1.tiny()), Policy(), "cpu")
    probe = Probe(data, Objective(parts.noise()), 2, 0)
    return Losses.of(engine, probe, {"held-out": held, "seen": data.instances[0]})


def test_readings_repeat_and_leave_training_as_it_is(small, tmp_path):
    def train(watched):
        parts = SD1.tiny()
        _, data, held = small
        objective = Objective(parts.noise())
        engine = Engine(SD1.units(parts), Policy(), "cpu")
        batches = Batches(data, objective, batch_size=1, accumulation=1, seed=0)
        losses = Losses.of(engine, Probe(data, objective, 2, 0), {"held-out": held, "seen": data.instances[0]})
        watch = Guard(tmp_path / str(watched), Settings(interval=1), losses, None)
        seen = []
        if watched:
            seen += [e.values for e in watch.begin()]
        for step in range(1, 4):
            (micro,) = batches.step()
            engine.step([micro.values], objective.of_step([micro], 1), 1e-3)
            if watched and watch.due(step):
                seen += [e.values for e in watch.read(step)]
        return dict(engine.master()), seen, losses

    with_guard, seen, losses = train(True)
    without, _, _ = train(False)
    assert len(seen) == 4 and seen[0].keys() == {"held-out loss", "seen loss"}
    assert len({values["seen loss"] for values in seen}) == 4
    assert losses.read(Controls()) == losses.read(Controls()) == seen[-1]
    assert all(torch.equal(with_guard[name], without[name]) for name in without)


def test_a_resumed_guard_goes_on_where_it_was(small, tmp_path):
    parts, data, held = small
    losses = losses_of(parts, data, held)
    first = Guard(tmp_path, Settings(interval=5), losses, None)
    list(first.begin())
    list(first.read(5))
    second = Guard(tmp_path, Settings(interval=5), losses, None)
    assert list(second.go_on(tmp_path / "guard", 5)) == []  # the base model is not read again from trained weights
    assert second.rulings == first.rulings and second.rulings.best_step == 5


def test_readings_taken_after_the_checkpoint_are_still_to_come(small, tmp_path):
    parts, data, held = small
    losses = losses_of(parts, data, held)
    first = Guard(tmp_path, Settings(interval=5), losses, None)
    list(first.begin())
    list(first.read(5))
    before = deepcopy(first.rulings)
    list(first.read(10))
    second = Guard(tmp_path, Settings(interval=5), losses, None)
    list(second.go_on(tmp_path / "guard", 9))
    assert second.rulings == before
    third = Guard(tmp_path / "another run", Settings(interval=5), losses, None)
    assert list(third.go_on(tmp_path / "guard", 9)) == [] and third.rulings == before
    assert (tmp_path / "another run" / "guard" / "readings.json").is_file()


def test_a_new_run_in_an_old_folder_inherits_no_readings(small, tmp_path):
    parts, data, held = small
    losses = losses_of(parts, data, held)
    old = Guard(tmp_path, Settings(interval=5), losses, None)
    list(old.begin())
    list(old.read(800))
    (tmp_path / "guard" / "base-0.png").touch()
    new = Guard(tmp_path, Settings(interval=5), losses, None)
    assert [event.step for event in new.begin()] == [0]
    assert [step for step, _ in new.rulings.history] == [0] and new.rulings.best_step is None
    again = Guard(tmp_path, Settings(interval=5), losses, None)
    assert list(again.go_on(tmp_path / "guard", 900)) == [] and again.rulings == new.rulings
    assert not (tmp_path / "guard" / "base-0.png").exists()


def test_a_run_that_was_not_watched_has_its_base_model_read_when_it_goes_on(small, tmp_path):
    parts, data, held = small
    watch = Guard(tmp_path, Settings(interval=5), losses_of(parts, data, held), None)
    assert [event.step for event in watch.go_on(tmp_path / "guard", 40)] == [0]


@pytest.mark.parametrize(
    "left", ["", "{", "[]", '{"history": 3}', '{"history": [[5, {"seen loss": "low"}]]}', '{"history": [7]}']
)
def test_damaged_readings_cost_themselves_and_not_the_run(small, tmp_path, left):
    parts, data, held = small
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "readings.json").write_text(left)
    watch = Guard(tmp_path, Settings(interval=5), losses_of(parts, data, held), None)
    said = list(watch.go_on(tmp_path / "guard", 40))
    assert "damaged" in said[0].text and said[-1].step == 0 and [step for step, _ in watch.rulings.history] == [0]


def test_a_reading_that_a_kill_prevented_is_still_to_be_taken(small, tmp_path):
    parts, data, held = small
    watch = Guard(tmp_path, Settings(interval=5), losses_of(parts, data, held), None)
    list(watch.begin())
    assert watch.missed(5) and not watch.missed(0) and not watch.missed(7)
    list(watch.read(5))
    assert not watch.missed(5)


def test_who_asks_to_stop_does_not_wait_for_a_reading_and_the_next_start_takes_it(small, tmp_path):
    parts, data, held = small
    watch = Guard(tmp_path, Settings(interval=5), losses_of(parts, data, held), None)
    list(watch.begin())
    watch.controls = Controls()
    forward, seen = watch.meters["losses"].engine.forward, []

    def asked(given):
        watch.controls.quit = True
        return seen.append(given) or forward(given)

    watch.meters["losses"].engine.forward = asked
    assert list(watch.read(5)) == [] and len(seen) == 1
    assert watch.missed(5) and not watch.improved and not watch.stop
    watch.controls = Controls()
    watch.meters["losses"].engine.forward = forward
    assert [event.step for event in watch.read(5)] == [5]


class Watched:
    """What a guard asks of pictures, drawn in one colour that tells which weights drew them."""

    def __init__(self):
        self.base, self.colour, self.prompts = [], "red", ["one", "two"]

    def read(self, controls):
        drawn = [Image.new("RGB", (8, 8), self.colour) for _ in self.prompts]
        self.base = self.base or drawn
        return {"drift": float(self.base[0].getpixel((0, 0)) != drawn[0].getpixel((0, 0)))}


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_picture_of_the_base_model_is_drawn_again_before_the_trained_weights_come(small, tmp_path, damage):
    parts, data, held = small
    losses = losses_of(parts, data, held)
    first, again = Watched(), Watched()
    list(Guard(tmp_path, Settings(interval=5), losses, first).begin())
    damage(tmp_path / "guard" / "base-1.png")
    watch = Guard(tmp_path, Settings(interval=5), losses, again)
    assert "drawn again" in next(iter(watch.go_on(tmp_path / "guard", 5))).text
    list(watch.go_on(tmp_path / "guard", 5))
    again.colour = "blue"  # what the trained weights draw
    assert again.read(Controls()) == {"drift": 1.0}
    assert all(Image.open(tmp_path / "guard" / f"base-{n}.png").getpixel((0, 0)) == (255, 0, 0) for n in range(2))


def test_without_an_interval_readings_stay_within_their_share(small, tmp_path):
    parts, data, held = small
    losses = losses_of(parts, data, held)
    watch = Guard(tmp_path, Settings(), losses, None)
    list(watch.begin())
    watch.cost["losses"] = 1.0
    watch.begun -= 10.0  # ten seconds of training: a reading of one second would be 10 %
    assert not watch.due(7)
    watch.begun -= 45.0
    assert watch.due(8)
