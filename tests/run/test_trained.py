"""One object resumes: whatever a checkpoint holds comes back, the guard's readings cut to its step."""

import json
from dataclasses import replace

import torch
from tiny_run import events, of, prepared

from trainer import memory
from trainer.events import CheckpointSaved, Meters, Notice, outcome
from trainer.machine.team import Team
from trainer.out import checkpoint
from trainer.run import assemble, saving
from trainer.run.stages import get_ready


def readings(folder):
    return [step for step, _ in json.loads((folder / "guard" / "readings.json").read_text())["history"]]


def watched(*more):
    """The words of a run that the guard watches every second step."""
    return ["--watch", "--judge", "none", "--interval", 2, "--checkpointing_steps", 2, *more]


def test_state_and_restore_are_inverse_to_each_other(place):
    run = prepared(place, "--ema", "--train_text_encoder", run="inverse")
    trained, _ = outcome(get_ready(run))
    loss = trained.objective.of_step
    for _ in range(2):
        micro = trained.batches.step()
        trained.engine.step([batch.values for batch in micro], loss(micro, 1), trained.rates.at(trained.step))
        trained.average.update(trained.engine.slices())
        trained.step += 1
    torch.manual_seed(3)
    point = checkpoint.save(run.folder, trained.state())
    expected = torch.rand(2)

    other, _ = outcome(get_ready(run))
    list(saving.resume(other, point))
    assert torch.equal(torch.rand(2), expected), "torch's own generator is put back, for dropout"
    torch.set_rng_state(torch.Generator().manual_seed(3).get_state())
    mine, theirs = trained.state(), other.state()
    assert mine.step == theirs.step == 2 and mine.facts == theirs.facts and mine.facts["ema_steps"] == 2
    assert str(mine.batches) == str(theirs.batches)
    for ours, same in ((mine.engine, theirs.engine), (mine.average, theirs.average)):
        assert ours.keys() == same.keys()
        assert all(torch.equal(ours[name], same[name]) or ours[name].isnan().all() for name in ours)


def test_a_new_run_in_an_old_folder_inherits_neither_readings_nor_checkpoints(place):
    events(place, *watched(), run="again")
    assert readings(place / "again") == [0, 2, 4]
    first = [path.name for path in checkpoint.found(place / "again")]
    found = events(place, *watched("--overwrite", "--max_train_steps", 3), run="again")
    assert [event.step for event in of(Meters, found)] == [0, 2]
    assert readings(place / "again") == [0, 2]
    assert [checkpoint.step_of(path) for path in checkpoint.found(place / "again")] == [2, 3]
    assert any("earlier-1" in event.text for event in of(Notice, found))
    earlier = place / "again" / "earlier-1"
    assert [path.name for path in checkpoint.found(earlier)] == first and readings(place / "again" / "earlier-1") == [
        0,
        2,
        4,
    ]


def test_a_resumed_run_takes_the_readings_after_its_checkpoint_again_and_no_others(place):
    events(place, *watched(), run="cut")
    whole = json.loads((place / "cut" / "guard" / "readings.json").read_text())
    found = events(place, *watched("--resume_from_checkpoint", "step-000002"), run="cut")
    assert [event.step for event in of(Meters, found)] == [4]
    assert json.loads((place / "cut" / "guard" / "readings.json").read_text()) == whole
    assert any("after step 2" in event.text for event in of(Notice, found))


def test_readings_of_a_version_that_kept_more_of_them_are_understood(place):
    events(place, *watched(), run="older")
    kept = place / "older" / "guard" / "readings.json"
    more = {"stale": 0, "best_score": -0.1, "named": [], "best": str(place / "older" / "step-000004")}
    kept.write_text(json.dumps(json.loads(kept.read_text()) | more))
    found = events(place, *watched("--resume_from_checkpoint", "latest"), run="older")
    assert not of(Meters, found) and readings(place / "older") == [0, 2, 4]


def test_the_best_checkpoint_stays_and_the_one_that_was_best_before_it_may_go(place):
    more = watched("--keep_best", "--checkpoints_total_limit", 1, "--max_train_steps", 6)
    found = events(place, *more, run="best")
    kept = json.loads((place / "best" / "guard" / "readings.json").read_text())
    steps = [checkpoint.step_of(path) for path in checkpoint.found(place / "best")]
    assert steps == sorted({kept["best_step"], 6})
    assert {event.kind for event in of(CheckpointSaved, found)} >= {"interval", "best", "last"}


def test_a_kernel_is_chosen_for_the_attention_of_this_runs_pictures_on_each_card(place, monkeypatch):
    """A card alone can time them; what it is asked to time is known without one."""
    run = prepared(place, "--train_batch_size", 2, run="attends")
    asked = []
    monkeypatch.setattr(memory.attention, "settle", lambda kinds, *how: asked.append((kinds, how)) or ["chosen"])
    trained, painter = outcome(get_ready(run))
    dataset = trained.batches.dataset
    for team, rows in ((Team(), 4), (Team(0, 3), 2)):
        on_card = replace(run, device=torch.device("cuda"), team=team)
        (said,) = assemble._attention(on_card, painter.parts, dataset)
        kinds, how = asked.pop()
        assert said.text == "chosen" and how == (run.plan.policy.math, torch.device("cuda"), "sdpa")
        assert {kind.batch for kind in kinds} == {rows}
        ((height, width),) = dataset.groups
        assert max(kind.queries for kind in kinds) == height * width
