"""Events survive a round trip through one line of JSON."""

import dataclasses
import math

import pytest

from trainer import events

EXAMPLES = {
    "str": "x",
    "int": 3,
    "float": 0.5,
    "list[str]": ["a", "b"],
    "list[int]": [1, 2],
    "dict[str, Any]": {"a": {"b": 1}},
    "dict[str, str]": {"a": "b"},
    "dict[str, int]": {"a": 1},
    "dict[str, float]": {"a": 0.25},
}


@pytest.mark.parametrize("kind", events.KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_event_survives_a_round_trip(kind):
    event = kind(**{f.name: EXAMPLES[f.type] for f in dataclasses.fields(kind)})
    assert events.from_json(events.to_json(event)) == event


def test_numbers_that_json_lacks_survive_too():
    step = events.Step(1, 2, float("inf"), 0.1, float("nan"), 1e-6, float("-inf"), 0.1, 2, 0, 0, 0, 0)
    line = events.to_json(step)
    assert "NaN" not in line and "Infinity" not in line
    back = events.from_json(line)
    assert back.loss == math.inf and math.isnan(back.class_loss) and back.grad_norm == -math.inf


def test_a_request_is_taken_once():
    controls = events.Controls(sample=True)
    assert controls.take("sample") and not controls.take("sample")
