"""Whole runs on tiny models: every phase, an interruption that changes nothing, failures that lose nothing."""

import json

import pytest
import torch
from photos import folder_of
from safetensors.torch import load_file
from tiny_run import events, of, words

from trainer.cli import parse as cli
from trainer.events import (
    CheckpointSaved,
    Controls,
    Exported,
    Finished,
    Meters,
    Notice,
    PhaseEnded,
    PhaseProgress,
    PhaseStarted,
    PhotosScanned,
    PlanReady,
    Sampled,
    Step,
)
from trainer.models import SD1, SDXL
from trainer.out import checkpoint
from trainer.run import stages


def test_a_run_goes_through_every_phase_and_says_where_everything_is(place):
    found = events(place, "--checkpointing_steps", 2, "--validation_steps", 2, run="whole")
    phases = list(dict.fromkeys(e.phase for e in of(PhaseEnded, found)))
    assert phases == ["load", "cache text", "class images", "cache images", "sample", "train", "save", "export"]
    assert [e.step for e in of(Step, found)] == [1, 2, 3, 4]
    assert [e.step for e in of(CheckpointSaved, found)] == [2, 4]
    assert [e.step for e in of(Sampled, found)] == [2, 4]
    assert {e.format for e in of(Exported, found)} == {"diffusers", "single file"}
    assert len(of(PlanReady, found)) == 1
    (scanned,) = of(PhotosScanned, found)
    assert scanned.account == ["3 x 'a photo of hta dog' (identifier and class_name)"], (
        "what is trained as prompt, and why"
    )
    assert found.index(scanned) < next(i for i, e in enumerate(found) if isinstance(e, PhaseStarted))
    (finished,) = of(Finished, found)
    assert finished.status == "done" and "python -m trainer sample" in finished.text
    assert (place / "whole" / "config.toml").is_file()


def test_saving_comes_before_drawing(place):
    found = events(place, run="order")
    kinds = [type(e) for e in found if isinstance(e, (CheckpointSaved, Sampled, Exported))]
    assert kinds.index(CheckpointSaved) < kinds.index(Sampled) < kinds.index(Exported)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--train_text_encoder", "--ema", "--caption_dropout", "0.3"),
        ("--method", "lora", "--with_prior_preservation", "--dropout", "0.1"),
        ("--by", "prediction", "--contrast", "0.5", "--others", "0.5", "--random_flip"),
        ("--train_text_encoder", "--text_part", "identifier"),
        ("--by", "dco", "--no-with_prior_preservation", "--anchor", "0.1", "--random_flip"),
        ("--others", "0.5", "--timesteps", "noisy", "--method", "lora", "--with_prior_preservation", "--anchor", "0.1"),
    ],
    ids=["full", "text-ema", "lora", "prediction", "word", "dco-anchor", "others-lora"],
)
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(place, more, request):
    name = request.node.callspec.id
    whole = place / f"{name}-whole"
    events(place, *more, run=whole.name)

    half = place / f"{name}-half"
    controls = Controls()
    config = cli.parse(words(place, *more, run=half.name)).config()
    for event in stages.run(config, controls):
        if isinstance(event, Step) and event.step >= 1:
            controls.quit = True
    assert 0 < checkpoint.step_of(checkpoint.found(half)[-1]) < 4
    again = events(place, *more, "--resume_from_checkpoint", "latest", run=half.name)
    assert of(Finished, again)[0].status == "done" and of(Finished, again)[0].step == 4
    expected, found = (load_file(checkpoint.found(run)[-1] / "engine.safetensors") for run in (whole, half))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    if "--ema" in more:
        averages = [load_file(checkpoint.found(run)[-1] / "ema.safetensors") for run in (whole, half)]
        assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


def test_a_run_resumed_at_its_end_says_how_far_it_is(place):
    events(place, run="ended")
    again = events(place, "--resume_from_checkpoint", "latest", run="ended")
    assert of(Finished, again)[0].step == 4 and not of(Step, again)


def test_quitting_saves_and_says_how_to_go_on(place):
    controls, found = Controls(), []
    for event in stages.run(cli.parse(words(place, run="quit")).config(), controls):
        found.append(event)
        controls.quit |= isinstance(event, PhaseStarted) and event.phase == "train"
    (finished,) = of(Finished, found)
    assert finished.status == "interrupted" and "--resume_from_checkpoint latest" in finished.text
    assert [e.step for e in of(CheckpointSaved, found)] == [1] and not of(Exported, found)


@pytest.mark.parametrize("phase", ["sample", "export"])
def test_a_stop_after_the_last_step_ends_at_once_and_the_next_start_goes_on(place, phase):
    run, controls, found = f"stopped-in-{phase}", Controls(), []
    for event in stages.run(cli.parse(words(place, run=run)).config(), controls):
        found.append(event)
        controls.quit |= isinstance(event, PhaseProgress) and event.phase == phase and bool(of(CheckpointSaved, found))
    (finished,) = of(Finished, found)
    assert finished.status == "interrupted" and len(of(Exported, found)) < 2
    assert not [path for path in (place / run).rglob(".*") if path.name != ".lock"], "nothing half done stays"
    again = events(place, "--resume_from_checkpoint", "latest", run=run)
    assert of(Finished, again)[0].status == "done" and len(of(Exported, again)) == 2 and of(Sampled, again)


def test_a_reading_between_a_checkpoint_and_a_kill_is_taken_by_the_next_start(place):
    every = ("--watch", "--judge", "none", "--interval", 2, "--checkpointing_steps", 2)
    for event in stages.run(cli.parse(words(place, *every, run="unread")).config(), Controls()):
        if isinstance(event, CheckpointSaved):
            break  # as a kill
    again = events(place, *every, "--resume_from_checkpoint", "latest", run="unread")
    assert [event.step for event in of(Meters, again)] == [2, 4]


def test_quitting_before_training_ends_cleanly_too(place):
    found = events(place, run="early", controls=Controls(quit=True))
    assert of(Finished, found)[0].status == "interrupted" and not of(Step, found)


def test_weights_that_are_no_numbers_stop_the_run_and_leave_the_last_good_checkpoint(place):
    wild = [
        "--learning_rate",
        "1e39",
        "--lr_scheduler",
        "constant_with_warmup",
        "--lr_warmup_steps",
        2,
        "--checkpointing_steps",
        1,
    ]
    found = events(place, *wild, run="diverged")
    (finished,) = of(Finished, found)
    assert finished.status == "failed" and "step 2" in finished.error and "fix:" in finished.error
    (good,) = checkpoint.found(place / "diverged")
    assert good.name == "step-000001"
    weights = load_file(good / "engine.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in weights.items() if not name.startswith("engine."))


def test_a_loss_that_is_no_number_names_step_pictures_and_cause(place):
    wild = ["--learning_rate", "1e39", "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 2]
    (finished,) = of(Finished, events(place, *wild, run="nan"))
    assert finished.status == "failed" and "in step 3" in finished.error
    assert ".png" in finished.error and "learning rate" in finished.error and not checkpoint.found(place / "nan")


def test_finished_work_is_found_and_skipped(place):
    events(place, run="first")
    found = events(place, run="second")
    details = [e.detail for e in of(PhaseEnded, found)]
    assert any("0 class images drawn, 2 reused" in d for d in details)
    assert any("0 pictures encoded" in d for d in details)


def test_the_written_settings_repeat_the_run(place):
    events(place, run="original")
    config = cli.parse(
        ["--config", str(place / "original" / "config.toml"), "--output_dir", str(place / "repeated")]
    ).config()
    list(stages.run(config, Controls()))
    runs = [load_file(checkpoint.found(place / name)[-1] / "engine.safetensors") for name in ("original", "repeated")]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_the_guard_reads_the_base_model_and_the_trained_one(place):
    found = events(place, "--watch", "--interval", 2, run="guarded")
    assert [e.step for e in of(Meters, found)] == [0, 2, 4]


def test_sdxl_runs_through_too(place):
    found = events(place, model="sdxl", run="xl")
    assert of(Finished, found)[0].status == "done"


@pytest.mark.parametrize(
    "more", [["--train_text_encoder", "--ema"], ["--method", "dora", "--rank", "2"]], ids=["full", "dora"]
)
def test_a_run_from_a_file_in_16_bits_is_the_run_from_the_same_numbers_in_fp32(place, more):
    """The weights are loaded as the file has them, and nowhere computed with in that precision."""
    engines = []
    for name, dtype in (("half", torch.float16), ("wide", torch.float32)):
        pipeline = SDXL.pipeline(SDXL.tiny()).to(torch.float16).to(dtype)
        pipeline.save_pretrained(place / name)
        run = f"{name}-{more[0]}"
        found = events(place, *more, "--checkpointing_steps", 2, model=name, run=run)
        assert of(Finished, found)[0].status == "done"
        files = sorted(checkpoint.found(place / run)[-1].glob("e*.safetensors"))
        engines.append([load_file(file) for file in files])
    for ours, theirs in zip(*engines, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_log_holds_every_event(place):
    found = events(place, run="logged")
    lines = [json.loads(line) for line in (place / "logged" / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] != "Notice"] == [
        type(e).__name__ for e in found if not isinstance(e, Notice)
    ]


def test_a_photo_that_is_kept_back_is_measured_with_its_own_caption(tmp_path):
    """And braces in captions, some of them placeholders, come through to the usage lines of the export."""
    SD1.pipeline(SD1.tiny()).save_pretrained(tmp_path / "sd1")
    folder_of(tmp_path / "photos", 8)
    for i in range(8):
        (tmp_path / f"photos/{i:02d}.txt").write_text(f"a photo of {{identifier}} dog {i} {{wet}}")
    found = events(tmp_path, "--watch", "--judge", "none", "--interval", 2)
    assert of(Finished, found)[0].status == "done" and len(of(Exported, found)) == 2
    assert [event.step for event in of(Meters, found)] == [0, 2, 4]
