"""What a disk refuses is one line with its fix; what is no disk's answer stays an exception."""

import errno
import os

import pytest

from trainer.files import disk


@pytest.mark.parametrize("number", disk.FIXES)
def test_each_refusal_names_the_file_and_what_to_do(number):
    refused = disk.refusal(OSError(number, os.strerror(number), "runs/x/log.jsonl"))
    assert (
        refused is not None and "runs/x/log.jsonl" in refused.what and "--resume_from_checkpoint latest" in refused.fix
    )


def test_a_refusal_without_a_name_says_what_the_system_said():
    assert "No space left on device" in disk.refusal(OSError(errno.ENOSPC, "No space left on device")).what


def test_what_is_no_disk_is_left_to_others():
    assert disk.refusal(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert disk.refusal(OSError("words only")) is None
