"""The loop: what happens when, and why it ends."""

import pytest
import torch
from tiny_run import of, prepared

from trainer.events import CheckpointSaved, Controls, Notice, Step, outcome
from trainer.run import loop, saving
from trainer.run.habits import Habits
from trainer.run.stages import get_ready


@pytest.fixture
def trained(place, tmp_path):
    """Ready to take four steps."""
    return outcome(get_ready(prepared(place, "--output_dir", tmp_path)))[0]


def no_preview(step):
    yield Notice(f"preview after step {step}")


def holds():
    return ""
    yield


def ran(trained, habits=None, preview=no_preview, controls=None, during=lambda event: None, drawn=(), outgrown=holds):
    """(events, why it ended early). drawn: the steps whose previews are there"""
    habits = habits or Habits()
    save = lambda kind: saving.save(trained, kind, habits)  # noqa: E731
    steps = loop.run(
        trained, habits, controls or Controls(), save, preview, drawn=lambda step: step in drawn, outgrown=outgrown
    )
    found = []
    while True:
        try:
            found.append(next(steps))
        except StopIteration as end:
            return found, end.value
        during(found[-1])


def test_all_steps_are_taken_and_habits_kept_but_not_after_the_last(trained):
    found, stopped = ran(trained, Habits(save_every=2, sample_every=2))
    assert stopped == "" and trained.step == 4
    assert [event.step for event in of(Step, found)] == [1, 2, 3, 4]
    assert [(event.step, event.kind) for event in of(CheckpointSaved, found)] == [(2, "interval")]
    assert [event.text for event in of(Notice, found)] == ["preview after step 2"]


def test_a_plan_is_looked_at_behind_everything_else_of_a_step_and_never_behind_the_last(trained):
    asked = []

    def outgrown():
        asked.append(trained.step)
        yield Notice("looked")
        return "too large" if trained.step == 3 else ""

    found, stopped = ran(trained, Habits(save_every=3), outgrown=outgrown)
    assert stopped == "too large" and asked == [1, 2, 3] and trained.step == 3
    assert [event.step for event in of(Step, found)] == [1, 2, 3]
    assert [type(event).__name__ for event in found][-3:] == ["Step", "CheckpointSaved", "Notice"]
    _, stopped = ran(trained)
    assert stopped == "" and trained.step == 4 and asked == [1, 2, 3]


@pytest.mark.parametrize("searches", [True, False])
def test_cudnn_searches_in_steps_alone_and_only_where_that_pays(trained, searches):
    seen, trained.searches = [], searches
    watching = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(torch.backends.cudnn.benchmark)
    )
    try:
        _, stopped = ran(trained, during=lambda event: seen.append(None if torch.backends.cudnn.benchmark else event))
    finally:
        watching.remove()
    flags = {flag for flag in seen if isinstance(flag, bool)}
    assert stopped == "" and flags == {searches} and None not in seen


def test_losses_are_read_one_step_late_but_before_their_step_is_saved(trained):
    taken = []
    found, _ = ran(trained, Habits(save_every=3), during=lambda event: taken.append(trained.step))
    assert [type(event).__name__ for event in found] == ["Step", "Step", "Step", "CheckpointSaved", "Step"]
    assert taken == [2, 3, 3, 3, 4]


def test_what_is_asked_for_between_steps_is_done_once(trained):
    controls = Controls(sample=True, checkpoint=True)
    found, _ = ran(trained, controls=controls)
    assert [event.step for event in of(CheckpointSaved, found)] == [1]
    assert [event.text for event in of(Notice, found)] == ["preview after step 1"]


def test_who_asks_to_stop_is_obeyed_after_the_step_even_while_the_run_is_paused(trained):
    controls = Controls(pause=True, quit=True)
    found, stopped = ran(trained, controls=controls)
    assert stopped == "asked to stop" and [event.step for event in of(Step, found)] == [1]


def test_the_guard_ends_training_with_its_reason(trained, place, tmp_path):
    run = prepared(place, "--watch", "--judge", "none", "--interval", 1, "--early_stop", "plateau", "--patience", 1,
                   "--output_dir", tmp_path / "watched")  # fmt: skip
    watched, _ = outcome(get_ready(run))
    list(watched.guard.begin())
    watched.guard.rulings.best_score = float("inf")  # no reading can be better
    found, stopped = ran(watched)
    assert stopped.startswith("plateau") and watched.step == 1 and len(of(Step, found)) == 1


def saved(trained, place, tmp_path, *more):
    """The same run, gone on with from its checkpoint."""
    ran(trained, loop.Habits(save_every=2), during=lambda event: None)
    run = prepared(place, "--output_dir", tmp_path, *more, "--resume_from_checkpoint", tmp_path / "step-000002")
    again, _ = outcome(get_ready(run))
    outcome(again.restore(run.resume))
    return again


def test_pictures_that_a_kill_prevented_are_drawn_from_the_checkpoint_of_their_step(trained, place, tmp_path):
    again = saved(trained, place, tmp_path)
    found, _ = ran(again, loop.Habits(sample_every=2))
    assert [event.text for event in of(Notice, found)] == ["preview after step 2"] and again.step == 4
    outcome(again.restore(again.folder / "step-000002"))
    assert of(Notice, ran(again, loop.Habits(sample_every=2), drawn=[2])[0]) == []
    again.folder = tmp_path / "another"
    outcome(again.restore(tmp_path / "step-000002"))
    assert of(Notice, ran(again, loop.Habits(sample_every=2))[0]) == [], "they are the other run's"


def test_who_asks_to_stop_while_that_is_made_up_for_leaves_the_run_where_it_was(trained, place, tmp_path):
    again = saved(trained, place, tmp_path)
    controls = Controls()

    def asked(step):
        controls.quit = True
        yield Notice("half of them")
        yield Notice("the rest")

    found, stopped = ran(again, loop.Habits(sample_every=2), asked, controls)
    assert stopped == "asked to stop" and again.step == 2 and again.resumed is not None
    assert [event.text for event in of(Notice, found)] == ["half of them"]
