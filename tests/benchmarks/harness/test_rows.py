"""Rows know where they were measured, are written as they come, and read well."""

import json

import pytest
from trainer.benchmarks.harness import rows


def test_each_row_is_on_disk_before_the_next_is_measured(tmp_path, capsys):
    def measured():
        yield {"case": "first"}
        assert len((tmp_path / "suite.jsonl").read_text().splitlines()) == 1
        yield {"case": "second"}

    rows.run("suite", measured(), folder=tmp_path, quiet=True)
    written = [json.loads(line) for line in (tmp_path / "suite.jsonl").read_text().splitlines()]
    assert [row["case"] for row in written] == ["first", "second"] and all(row["origin"]["time"] for row in written)


def test_a_suite_that_is_cut_short_still_says_what_it_has(tmp_path, capsys):
    def measured():
        yield {"case": "first"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.run("suite", measured(), folder=tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == [{"case": "first"}]


def test_the_origin_names_processor_versions_and_commit():
    where = rows.origin()
    assert {"time", "gpu", "cpu", "threads", "python", "versions", "commit"} == where.keys()
    assert where["versions"]["torch"] and where["cpu"].rpartition("x")[2].isdigit()


def test_what_is_the_same_in_all_rows_stands_above_the_table_and_bytes_are_mib():
    where = {"gpu": None, "cpu": "a cpu", "threads": 1}
    made = rows.table("suite", [{"model": "sd1", "peak_bytes": 2**20}, {"model": "sd1", "peak_bytes": 2**21}], where)
    assert made.title == "suite on a cpu, 1 threads\nmodel sd1"
    assert [column.header for column in made.columns] == ["peak_MiB"]


@pytest.mark.parametrize(
    "name,value,text",
    [
        ("a_bytes", 3 * 2**20, "3.0"),
        ("a_bytes", 2**17, "0.12"),
        ("a_bytes", 0, "0.0"),
        ("x", 12345.6, "12,346"),
        ("x", 0.123456, "0.1235"),
        ("n", 1234567, "1,234,567"),
        ("x", None, ""),
        ("failed", "Traceback\nOSError: no room", "OSError: no room"),
    ],
)
def test_values_are_shown_as_short_as_they_can_be(name, value, text):
    assert rows.shown(name, value) == text
