"""A probe measures what the phases do, and leaves no trace."""

import pytest
import torch
from tiny_run import prepared

from trainer.events import outcome
from trainer.run.measured.probe import probes
from trainer.run.stages import get_ready


@pytest.mark.parametrize("more", [(), ("--train_text_encoder", "--method", "lora")], ids=["full", "text lora"])
def test_a_probe_does_what_the_phases_do_and_changes_nothing(place, more):
    run = prepared(place, *more, run="probed")
    trained, painter = outcome(get_ready(run))
    before, position = {k: v.clone() for k, v in trained.engine.state_dict().items()}, trained.batches.state()
    found = probes(run, trained, painter)
    assert found.keys() == {"train", "sample", "save", "export"}
    for stand_in in found.values():
        stand_in()
    after = trained.engine.state_dict()
    assert all(torch.equal(before[k], after[k]) or before[k].isnan().all() for k in before)
    assert str(trained.batches.state()) == str(position)
    assert not (run.folder / "samples").exists()
