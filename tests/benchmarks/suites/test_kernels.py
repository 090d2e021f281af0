"""Kernels are measured beside what they replace."""

from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import kernels

TINY = Options(tiny=True, repeats=1, warmup=0)


def test_kernels_stand_beside_their_rivals_and_the_copy():
    rows = list(kernels.suite(TINY))
    assert rows[0]["kernel"] == "copy"
    rivals = {row["who"]: row["bytes_per_weight"] for row in rows if row["kernel"].startswith("adamw")}
    assert rivals["ours"] < 0.6 * rivals["bitsandbytes 8-bit, fp32 weights"]
    kept = {(row["kernel"], row["who"]): row["kept_bytes"] for row in rows if "kept_bytes" in row}
    assert all(
        size < kept[kernel, "eager"] for (kernel, who), size in kept.items() if who == "ours" and "norm+" in kernel
    )
