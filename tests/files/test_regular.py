"""What is no file is never waited for, and damage is one line."""

import os
import socket
import tomllib

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


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
def test_a_folder_for_a_library_may_hold_files_and_folders_only(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner").mkdir()
    (tmp_path / "nowhere.json").symlink_to("gone")
    regular.only_files(tmp_path, "copy it again")
    os.mkfifo(tmp_path / "merges.txt")
    with pytest.raises(ConfigError, match=r"merges\.txt cannot be read: a pipe, not a file") as error:
        regular.only_files(tmp_path, "copy it again")
    assert error.value.fix == "copy it again"


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


def test_a_text_is_read_with_and_without_its_mark_and_with_every_kind_of_line_end(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\rc = 3\n")
    assert regular.text(tmp_path / "a.toml", "") == "a = 1\nb = 2\nc = 3\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
def test_a_text_without_an_end_or_of_another_kind_is_one_line_with_its_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(regular, "TEXT_MIB", 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "long").write_bytes(b"#" * (2 << 20))
    (tmp_path / "bytes").write_bytes(b"a = '\xff'")
    said = {
        "pipe": "cannot be read: a pipe",
        "zero": "cannot be read: a device",
        "long": "larger than 1 MiB",
        "bytes": "byte 5 is no UTF-8",
        "gone": "there is no file",
        ".": "a folder",
    }
    for name, words in said.items():
        with pytest.raises(ConfigError, match=words) as error:
            regular.text(tmp_path / name, "name another")
        assert error.value.fix == "name another"


@pytest.mark.parametrize("text", ["x = " + "[" * 5000 + "]" * 5000, "x = " + "[" * 60 + "]" * 60, "x = " + "9" * 5000])
def test_values_that_no_person_writes_are_one_line(tmp_path, text):
    with pytest.raises(ConfigError, match="is not valid TOML: "):
        regular.parsed(tmp_path / "a.toml", "TOML", "mend it", lambda: tomllib.loads(text))


def test_aliases_that_name_themselves_or_multiply_are_counted_before_anybody_walks_them(tmp_path):
    itself = {}
    itself["a"] = itself
    many = ["x"]
    for _ in range(30):
        many = [many] * 10
    for found, said in ((itself, "nested too deep"), (many, "stands for more than")):
        with pytest.raises(ConfigError, match=said):
            regular.parsed(tmp_path / "a.yaml", "YAML", "mend it", lambda found=found: found)
