"""How a step grows."""

from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import scaling

TINY = Options(tiny=True, repeats=1, warmup=0)


def test_scaling_grows_with_batch_and_resolution():
    rows = [scaling.measure(TINY, scaling.Policy(recompute_kernels=True), 64, pairs) for pairs in (1, 2)]
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[0]["live_peak_bytes"] < rows[1]["live_peak_bytes"]
