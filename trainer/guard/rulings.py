"""When to stop, as rules people can read: what got better, what has been still for too long, what has drifted too far.

score      = subject + prompt - drift where a judge looks at pictures, else minus the held-out loss
plateau    : the score has not improved for `patience` readings
drift      : pictures of the class and of unrelated prompts have moved by more than `drift_limit` (judge; a reading has each
             of the two by itself, too), or the class loss has risen by that share over the base model's
overfitting: the held-out loss is 10 % above its best while the loss on training crops still falls, or pictures
             repeat training photos
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.settings.config import Guard

RISE = 1.10


@dataclass
class Rulings:
    """Judges a history of readings; all state is plain, so it goes through JSON and survives a resumed run."""

    settings: Guard
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    best_step: int | None = None
    best_score: float = float("-inf")
    stale: int = 0
    named: set[str] = field(default_factory=set)  # verdicts already given: each is said once

    def take(self, step: int, values: dict[str, float]) -> tuple[bool, list[str]]:
        """(whether this is the best so far, verdicts that are new). Step 0 is the base model and is never the best."""
        base = self.history[0][1] if self.history else values
        self.history.append((step, values))
        found = self._wrong(values, base)
        improved, score = False, self.score(values)
        if step > 0 and score is not None:
            improved = score > self.best_score
            self.stale = 0 if improved else self.stale + 1
            if improved:
                self.best_step, self.best_score = step, score
            if self.stale >= self.settings.patience:
                found["plateau"] = f"no improvement in {self.stale} readings; best at step {self.best_step}"
        fresh = {kind: words for kind, words in found.items() if kind not in self.named}
        self.named |= fresh.keys()
        return improved, [f"{kind}: {words}" for kind, words in fresh.items()]

    def score(self, values: dict[str, float]) -> float | None:
        """How good a reading is; None where it lacks what the score is made of."""
        if {"subject", "prompt", "drift"} <= values.keys():
            return values["subject"] + values["prompt"] - values["drift"]
        judged = any("subject" in earlier for _, earlier in self.history)
        return -values["held-out loss"] if "held-out loss" in values and not judged else None

    def stops(self, verdicts: list[str]) -> str:
        """The verdict that ends training under `early_stop`, or empty."""
        wanted = self.settings.early_stop
        return next((verdict for verdict in verdicts if verdict.startswith(wanted)), "") if wanted != "off" else ""

    def _wrong(self, values: dict[str, float], base: dict[str, float]) -> dict[str, str]:
        found = {}
        limit = self.settings.drift_limit
        if values.get("drift", 0.0) > limit:
            found["drift"] = f"pictures of other prompts moved by {values['drift']:.2f} (limit {limit:g})"
        elif (
            "drift" not in values and "class loss" in values and values["class loss"] > base["class loss"] * (1 + limit)
        ):
            rise = values["class loss"] / base["class loss"] - 1
            found["drift"] = f"the class loss rose by {rise:.0%} over the base model's (limit {limit:.0%})"
        if values.get("copies", 0.0) > 0:
            found["overfitting"] = f"{values['copies']:.0%} of the subject's pictures repeat a training photo"
        elif self._diverging(values):
            found["overfitting"] = "the held-out loss rises while the loss on training crops falls"
        return found

    def _diverging(self, values: dict[str, float]) -> bool:
        earlier = [v for step, v in self.history[:-1] if "held-out loss" in v]
        if not earlier or "held-out loss" not in values:
            return False
        best = min(earlier, key=lambda v: v["held-out loss"])
        return values["held-out loss"] > RISE * best["held-out loss"] and values["seen loss"] < best["seen loss"]
