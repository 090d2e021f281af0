"""A checkout's tests run against our command as they stand, and every one of them becomes a row."""

import pytest
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import scripts

from trainer.errors import ConfigError

THEIRS = """
import subprocess
from test_examples_utils import LAUNCH

LINE = "examples/dreambooth/train_dreambooth.py --instance_data_dir docs/source/en/imgs --instance_prompt photo"

def run(words):
    done = subprocess.run(["accelerate", *LAUNCH, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def test_help():
    run(LINE + " --help")

def test_dreambooth_if():
    run(LINE + " --pretrained_model_name_or_path hf-internal-testing/tiny-if-pipe --max_train_steps 1")

def test_nonsense():
    run(LINE + " --nonsense 1")
"""


def options(*words):
    return Options("sd1", None, True, 1, 1, words)


def test_each_of_their_tests_passes_or_is_refused_with_a_fix_or_failed(tmp_path):
    (tmp_path / "examples" / "dreambooth").mkdir(parents=True)
    (tmp_path / "examples" / "dreambooth" / "test_dreambooth.py").write_text(THEIRS)
    (tmp_path / "examples" / "test_examples_utils.py").write_text('LAUNCH = ["launch", "--config_file", "basic.yml"]')
    rows = {row["test"]: row for row in scripts.suite(options(f"diffusers={tmp_path}"))}
    assert [row["outcome"] for row in rows.values()] == ["passed", "refused", "failed"]
    assert "IFPipeline" in rows["test_dreambooth_if"]["said"]
    assert "--nonsense does not exist" in rows["test_nonsense"]["failed"], "only what is not built in may be refused"


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkout of diffusers"):
        next(scripts.suite(options(f"diffusers={tmp_path}")))
