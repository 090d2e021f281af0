"""A run is understood, or refused with the fix, before anything is loaded or written."""

import pytest
import torch
from tiny_run import prepared, words

from trainer.cli import parse as cli
from trainer.errors import ConfigError
from trainer.events import Controls
from trainer.run import stages


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
