"""Two runs never write one folder: the second is told who has it, and a process that dies lets go of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.files.claim import claimed, is_claim

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from trainer.files.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.communicate()


def test_the_second_is_told_who_holds_it_since_when_and_what_to_do(tmp_path, holder):
    with pytest.raises(ConfigError) as refused, claimed(tmp_path / "run"):
        pass
    assert f"process {holder.pid} on {os.uname().nodename}, since 20" in refused.value.what
    assert "watch" in refused.value.fix and "--output_dir" in refused.value.fix


def test_a_process_that_is_killed_lets_go(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(tmp_path / "run"):
        pass


def test_a_folder_is_made_and_empty_but_for_the_claim_afterwards(tmp_path):
    for _ in range(2):
        with claimed(tmp_path / "a" / "run"):
            (tmp_path / "a" / "run" / "file").touch()
    left = {path.name for path in (tmp_path / "a" / "run").iterdir() if not is_claim(path)}
    assert left == {"file"}
