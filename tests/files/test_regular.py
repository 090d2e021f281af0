"""What is no file is never waited for, and damage is one line."""

import os
import socket

import pytest

from trainer.errors import ConfigError
from trainer.files import regular


def test_a_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert regular.data(tmp_path / "a") == regular.data(tmp_path / "link") == b"abc"


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
def test_pipes_sockets_devices_and_folders_are_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    there = socket.socket(socket.AF_UNIX)
    there.bind(str(tmp_path / "socket"))
    for name, said in {"pipe": "a pipe", "zero": "a device", "socket": "a socket", ".": "a folder"}.items():
        with pytest.raises(OSError) as error:
            regular.data(tmp_path / name)
        assert error.value.strerror == f"{said}, not a file"
    there.close()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b"\xff", b"nul\0", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json_object_is_one_line_with_its_fix(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"a\.json is damaged") as error:
        regular.json_object(tmp_path / "a.json", "copy it again")
    assert error.value.fix == "copy it again"


def test_a_json_object_is_read_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "ü"}', encoding="utf-8")
    assert regular.json_object(tmp_path / "a.json", "") == {"a": "ü"}
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        regular.json_object(tmp_path / "b.json", "")
