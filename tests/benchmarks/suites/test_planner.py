"""Planned bytes stand beside measured ones, and simulated plans say that they are."""

from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import planner


def test_plans_of_a_tiny_step_stand_beside_the_allocator_log_and_simulated_ones_say_that_they_are(monkeypatch):
    monkeypatch.setattr(planner, "CASES", {name: planner.CASES[name] for name in ("all kept", "all streamed")})
    *measured, kept, streamed = planner.suite(Options(tiny=True, words=("simulate",)))
    assert len(measured) == 2
    assert all(row["measured_bytes"] > 0 and abs(row["off_percent"]) <= 1 for row in measured)
    assert "simulated" in kept["case"] and "measured_bytes" not in kept
    assert streamed["planned_bytes"] < 0.5 * kept["planned_bytes"]
    assert streamed["planned_host_bytes"] > kept["planned_host_bytes"]
