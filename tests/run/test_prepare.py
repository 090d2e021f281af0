"""A run is understood, or refused with the fix, before anything is loaded or written."""

import shlex
from pathlib import Path

import pytest
import torch
from photos import folder_of
from tiny_run import events, prepared, words

from trainer.cli import parse as cli
from trainer.data.photos import scan_class
from trainer.errors import ConfigError
from trainer.events import Controls
from trainer.machine.team import Team
from trainer.run import prepare as preparing
from trainer.run import stages
from trainer.run.prepare import prepare
from trainer.settings import overlay


def test_a_missing_photo_folder_costs_one_message_and_writes_nothing(place):
    config = cli.parse([*words(place, run="nothing")]).config()
    config.data.instance_data_dir = str(place / "nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        next(stages.run(config, Controls()))
    assert not (place / "nothing").exists()


def test_an_unknown_checkpoint_is_refused_before_anything_is_loaded(place):
    config = cli.parse(words(place, "--resume_from_checkpoint", "step-000099", run="gone")).config()
    with pytest.raises(ConfigError, match="step-000099"):
        next(stages.run(config, Controls()))


def test_what_is_handed_to_the_stages_has_no_blanks_and_nothing_was_written(place):
    run = prepared(place, run="understood")
    assert run.cache == place / "cache" and run.folder == place / "understood" and not run.folder.exists()
    assert run.look.size == (64, 64) and run.device == torch.device("cpu")
    assert run.config.train.learning_rate and run.config.data.instance_prompt == "a photo of hta dog"
    assert run.plan.policy.weights == run.config.memory.weights


@pytest.mark.parametrize(
    "line",
    [
        "--instance_data_dir img --class_data_dir reg",
        "--instance_data_dir img --class_data_dir reg --class_name dog",
        "--instance_data_dir img --class_data_dir reg --class_prompt 'a dog' --num_class_images 3",
        "--instance_data_dir img --instance_prompt 'a photo of sks dog' --class_name dog",
        "--instance_data_dir 'img/3_sks dog' --class_name dog",
        "--subsets 'img/3_sks dog' '2 x img/1_sks dog asleep = sks dog, asleep' --class_name dog",
        "--instance_data_dir img --method lora",
    ],
)
def test_what_a_run_writes_down_means_the_same_words_and_class_images_when_it_is_repeated(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    for name in ("img/3_sks dog", "img/1_sks dog asleep", "reg/1_dog", "reg/2_old dog"):
        folder_of(Path(name), 2)
    Path("img/3_sks dog/00.txt").write_text("sks dog, awake")
    made = prepare(cli.parse(["--model", "demo", *shlex.split(line)]).config())
    overlay.write(made.config, made.config.provenance, Path("config.toml"))
    again = prepare(cli.parse(["--config", "config.toml"]).config())
    assert learned(again) == learned(made)


def learned(run):
    """What a run shows to the model, as far as it stands before a model is loaded."""
    photos = [(photo.path, photo.prompt, photo.repeats) for photo in run.photos.photos]
    config, prior = run.config, run.config.prior
    own = scan_class(Path(prior.class_data_dir), config, 64) if prior.class_data_dir else None
    asked = prior.num_class_images if config.chosen("prior.num_class_images") else None
    of_class = [(photo.path, photo.prompt, photo.repeats) for photo in own.photos] if own else []
    return {(Path(path).absolute(), *rest) for path, *rest in photos + of_class}, asked, len(run.photos.problems)


def test_a_card_beside_the_first_goes_on_where_it_is_told_and_changes_nothing_in_the_run(place, monkeypatch):
    """Two that finished or removed what a killed run left met each other's half-done work."""
    events(place, "--checkpointing_steps", 2, run="followed")
    folder = place / "followed"
    point = folder / "step-000002"
    (folder / "step-000004").rename(folder / ".step-000004.999999999.part")  # whole, and not named yet
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    class Follows(Team):
        def tell(self, value):
            return point if value is None else value

        def gather(self, value):
            return [value, value]

    monkeypatch.setattr(preparing, "choose_device", lambda config: (Follows(1, 2), torch.device("cpu")))
    run = prepared(place, "--resume_from_checkpoint", "latest", run="followed")
    assert run.resume == point
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
