"""A whole job is planned and watched as a user would start it."""

import json

from trainer.benchmarks.harness import footprint
from trainer.benchmarks.harness.timing import Options


def test_a_whole_job_is_planned_and_its_resident_set_followed():
    (row,) = footprint.rows(Options("lumina2", tiny=True))
    assert row["exit"] == 0, row
    assert row["planned_bytes"] > 0 and row["train_bytes"] > 0 and row["peak_bytes"] >= row["export_bytes"]


def test_text_encoders_may_be_left_out_of_what_is_written(tmp_path):
    model = footprint.written(Options("sd35", tiny=True), tmp_path / "model", ["text_encoder_3"])
    index = json.loads((model / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None] and index["text_encoder_2"][0] == "transformers"
