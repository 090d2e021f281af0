"""A checkpoint is gone on from only by the run it belongs to; what differs is said with what it means."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import events, of

from trainer.errors import ConfigError
from trainer.events import CheckpointSaved, Finished, Notice, Step
from trainer.models import SD1
from trainer.out import checkpoint
from trainer.run import resuming

SAVING = ("--checkpointing_steps", 2)


@pytest.fixture(scope="module")
def begun(place):
    """A folder of photos, and a run of four steps over it."""
    photos = shutil.copytree(place / "photos", place / "mine")
    first = events(place, *SAVING, "--instance_data_dir", photos, run="begun")
    shutil.rmtree(place / "begun" / "step-000004")
    return photos, place / "begun", first


@pytest.fixture
def again(place, begun, tmp_path):
    """again(words) -> the events of going on in a copy of that run, whose photos may have been changed."""
    photos = shutil.copytree(begun[0], tmp_path / "photos")
    run = shutil.copytree(begun[1], tmp_path / "run")

    def go(*words):
        more = ["--instance_data_dir", photos, "--output_dir", run, "--resume_from_checkpoint", "latest", *words]
        return events(place, *SAVING, *more)

    go.photos, go.run = photos, run
    return go


def warned(found):
    return [event.text for event in of(Notice, found) if event.level == "warning" and "since step-" in event.text]


def test_the_same_run_goes_on_without_a_word_and_ends_with_the_same_bits(again, begun):
    found = again()
    assert warned(found) == [] and [event.step for event in of(Step, found)] == [3, 4]
    mine, whole = again.run / "model" / "model.safetensors", begun[1] / "model" / "model.safetensors"
    theirs = load_file(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_file(mine).items())


def test_fewer_photos_than_the_saved_deck_are_refused(again):
    sorted(again.photos.glob("*.png"))[0].unlink()
    with pytest.raises(ConfigError, match="was trained with 3 photos, and there are 2 now"):
        again()


def test_added_photos_are_said_once(again):
    shutil.copy(again.photos / "1.png", again.photos / "z.png")
    from PIL import Image

    with Image.open(again.photos / "1.png") as picture:
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(again.photos / "z.png")
    (said,) = warned(again())
    assert said.startswith("1 photos added since step-000002")


def test_changed_photos_and_captions_are_said(again):
    (again.photos / "0.txt").write_text("a photo of sks dog in a hat")
    assert any("Captions" in said for said in warned(again()))


def test_a_changed_rate_is_allowed_and_said_and_another_method_is_not(again):
    (said,) = warned(again("--learning_rate", "1e-7"))
    assert "train.learning_rate" in said and "1e-07" in said
    with pytest.raises(ConfigError, match=r"train\.method = full, and it is lora now"):
        again("--method", "lora")


def test_another_model_is_refused_before_anything_is_drawn_from_it(again, place):
    other = place / "other-model"
    if not other.exists():
        SD1.pipeline(SD1.tiny(seed=5)).save_pretrained(other)
    found = again("--model.name", other)
    (end,) = [event for event in found if type(event).__name__ == "Finished"]
    assert end.status == "failed" and "is of another model" in end.error and not of(Step, found)


def test_a_checkpoint_from_beyond_the_end_is_refused(again):
    with pytest.raises(ConfigError, match="was written after step 2, and this run ends with step 1"):
        again("--max_train_steps", 1)


def test_a_flipped_bit_is_refused(again):
    path = again.run / "step-000002" / "engine.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"step-000002 is damaged \(engine\.safetensors"):
        again()


def test_fewer_class_images_are_refused(again):
    found = again("--num_class_images", 1)
    assert "was trained with 2 class images, and there are 1 now" in found[-1].error


def test_a_run_resumed_at_its_end_leaves_its_last_checkpoint_as_it_is(again):
    again()
    last = again.run / "step-000004"
    before = {path.name: path.stat().st_mtime_ns for path in last.iterdir()}
    found = again()
    assert [event.step for event in of(CheckpointSaved, found)] == [4] and found[-1].status == "done"
    assert {path.name: path.stat().st_mtime_ns for path in last.iterdir()} == before


def test_a_checkpoint_of_a_version_that_said_nothing_is_gone_on_from(again):
    path = again.run / "step-000002" / "state.json"
    older = json.loads(path.read_text())
    for key in ("made_of", "files", "checksum"):
        del older[key]
    path.write_text(json.dumps(older))
    assert [event.step for event in of(Step, again())] == [3, 4]
    assert checkpoint.read_state(again.run / "step-000004")["made_of"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_earlier_run_is_set_aside_whole_and_the_persons_files_stay(tmp_path):
    for name in ("config.toml", "log.jsonl", "notes.txt", "report.html"):
        (tmp_path / name).write_text(name)
    for name in ("model", "samples", "drawn-2", "model-000004-fp16", "step-by-step", "unet"):
        (tmp_path / name).mkdir()
    mine = ["notes.txt", "step-by-step", "unet"]
    assert resuming.written(tmp_path) == sorted({*names(tmp_path)} - {*mine})
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": []}')
    assert {"unet", "model_index.json"} <= {*resuming.written(tmp_path)}, "of a run that leaves its pipeline there"


@pytest.fixture(scope="module")
def two_runs(place):
    """Four steps, and over them a run of two with one checkpoint kept and other formats."""
    events(place, *SAVING, run="twice")
    more = ("--overwrite", "--max_train_steps", 2, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1)
    return place / "twice", events(place, *more, "--formats", "diffusers", "--seed", 5, run="twice")


def test_a_shorter_run_in_the_same_folder_keeps_its_checkpoint_and_is_the_latest(place, two_runs):
    run, found = two_runs
    assert of(Finished, found)[0].status == "done"
    assert [e.step for e in of(CheckpointSaved, found)] == [1, 2]
    assert [path.name for path in checkpoint.found(run)] == ["step-000002"]
    assert [path.name for path in checkpoint.found(run / "earlier-1")] == ["step-000002", "step-000004"]
    assert {"config.toml", "log.jsonl", "model", "samples"} <= {*names(run / "earlier-1")}
    assert names(run / "model") == ["diffusers"], "nothing of the earlier run beside the new model"
    assert sum('"RunStarted"' in line for line in (run / "log.jsonl").read_text().splitlines()) == 1
    ids = [checkpoint.read_state(checkpoint.found(folder)[-1])["run"] for folder in (run, run / "earlier-1")]
    assert len(set(ids)) == 2


def test_going_on_from_an_earlier_step_leaves_the_later_ones_behind_and_is_the_same_run(place):
    run = place / "branch"
    events(place, "--checkpointing_steps", 1, run="branch")
    before = checkpoint.read_state(run / "step-000001")["run"]
    more = ("--resume_from_checkpoint", "step-000001", "--learning_rate", 1e-5, "--max_train_steps", 2)
    found = events(place, *more, "--formats", "diffusers", run="branch")
    assert [path.name for path in checkpoint.found(run)] == ["step-000001", "step-000002"]
    assert {"config.toml", "step-000002", "step-000003", "step-000004"} == {*names(run / "left-after-000001")}
    assert checkpoint.read_state(run / "step-000002")["run"] == before
    assert any("left-after-000001" in event.text for event in of(Notice, found))
    assert names(run / "model") == ["diffusers"] and names(run / "model-older") == ["model.safetensors"]
    assert any("model-older" in event.text for event in of(Notice, found))


def test_going_on_from_another_runs_checkpoint_sets_the_run_that_is_there_aside(place, two_runs):
    events(place, "--max_train_steps", 1, run="guest")
    found = events(
        place,
        "--resume_from_checkpoint",
        two_runs[0] / "step-000002",
        "--max_train_steps",
        3,
        "--overwrite",
        run="guest",
    )
    assert [e.step for e in of(CheckpointSaved, found)] == [3]
    assert [path.name for path in checkpoint.found(place / "guest")] == ["step-000003"]
    assert [path.name for path in checkpoint.found(place / "guest" / "earlier-1")] == ["step-000001"]
    other = checkpoint.read_state(two_runs[0] / "step-000002")["run"]
    assert checkpoint.read_state(place / "guest" / "step-000003")["run"] != other, "elsewhere it is a run of its own"


def test_an_average_that_begins_on_resume_begins_from_the_weights_as_they_are(place):
    fp32 = ("--formats", "diffusers", "--export.precision", "fp32")
    events(place, *fp32, run="averaged")
    folder = place / "averaged" / "model" / "diffusers" / "unet"
    weights = {
        name: tensor.clone() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    events(place, *fp32, "--ema", "--resume_from_checkpoint", "latest", run="averaged")
    average = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert all(weights[name].equal(average[name]) for name in weights)


def test_what_a_killed_run_left_between_its_files_is_gone_and_nothing_else_is(again):
    left = [
        ".config.toml.9999999.part",
        "samples/.step-000002.png.9999999.part",
        "samples/step-000002/.00-a-dog-0.png.9999999.part",
        "guard/.readings.json.9999999.part",
    ]
    mine = ["samples/mine.png.part", "samples/step-000002/.mine.part", "guard/.9.part"]
    for name in (*left, *mine):
        (again.run / name).parent.mkdir(parents=True, exist_ok=True)
        (again.run / name).write_text("half")
    again()
    assert [name for name in left if (again.run / name).exists()] == []
    assert all((again.run / name).read_text() == "half" for name in mine)
