"""A preset is measured as a user would start it."""

from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import presets


def test_a_preset_goes_through_all_phases_of_a_run():
    (row,) = presets.suite(Options(preset="24gb", tiny=True))
    assert row["exit"] == 0, row
    assert row["status"] == "done"
    assert {"images_per_second", "spread", "peak_bytes"} <= row.keys()
    assert row["train_bytes"] > 0 and row["export_bytes"] > 0
