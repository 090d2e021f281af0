"""The protocol of the DreamBooth paper, in its short form, on the built-in model."""

from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import quality


def test_the_quality_suite_measures_a_way_to_train():
    (row,) = quality.suite(Options(tiny=True))
    assert row["way"] == "class images" and row["floor"] < row["ceiling"]
    assert row["class_drift"] >= 0 and row["seconds"] > row["prior_seconds"] > 0
