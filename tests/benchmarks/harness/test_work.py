"""Models of real size without a download: random weights that cost no minutes to draw."""

import torch
from trainer.benchmarks.harness import work


def test_random_weights_are_made_only_for_the_modules_that_run_and_no_two_rows_are_alike():
    made = work.family("sd1").tiny()
    source = torch.randn(101)
    work.fill(made.denoiser, source)
    weight = made.denoiser.mid_block.resnets[0].conv1.weight.flatten(1)
    assert len(weight.unique(dim=0)) == len(weight) and torch.isin(weight, source).all()
    assert (made.denoiser.conv_norm_out.weight == 1).all()
