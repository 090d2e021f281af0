"""The data flow of a step, worked out once for each set of units that learn: who is differentiated, which cotangents are
wanted, when a value is read for the last time. Pure bookkeeping over names; no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.memory.boundaries import EVERYWHERE
from trainer.policy import Policy
from trainer.units import Unit


class Route:
    """`learns[k]`: unit k has parameters that are updated in this step.

    backward:      indices of the units backward visits, in its order; the last unit always, since it makes the prediction
    kept[k]:       forward keeps unit k's graph (all of it, part of it, or an empty one: `light`)
    wants[k]:      the names unit k reads whose cotangents somebody earlier needs
    done_forward:  by unit, the names that nothing reads after its forward; done_backward likewise
    travellers:    the names that may wait in host memory
    """

    def __init__(self, units: Sequence[Unit], policy: Policy, learns: Sequence[bool]):
        last = len(units) - 1
        self.units = units
        self.wants: list[set[str]] = []
        differentiable: set[str] = set()
        for unit, learning in zip(units, learns, strict=True):
            wanted = set(unit.reads) & differentiable
            self.wants.append(wanted)
            if learning or wanted:
                differentiable |= set(unit.writes)
        self.backward = [k for k in range(last, -1, -1) if k == last or learns[k] or self.wants[k]]
        # A graph that is kept but empty (checkpointing.again) runs again only as far as backward needs; it holds the unit's
        # inputs and parameters, so it is for units whose inputs and weights stay on the card.
        blocks = policy.checkpointing == "blocks"
        self.light = blocks and policy.stream != "all" and policy.boundaries == "card"
        visited = set(self.backward) - {last}
        self.kept = [k in visited and (self.light or not blocks) for k in range(len(units))]

        first_forward = {
            name: k for k, unit in enumerate(units[:last]) for name in (*unit.writes, *unit.reads)
        }  # last mention
        reruns = {k for k in self.backward if not self.kept[k]}
        again = {name for k in reruns for name in units[k].reads}
        self.done_forward: list[list[str]] = [[] for _ in units]
        for name, k in first_forward.items():
            if name not in again:
                self.done_forward[k].append(name)
        self.done_backward: list[list[str]] = [[] for _ in units]
        for name in again:
            self.done_backward[min(k for k in reruns if name in units[k].reads)].append(name)

        readers: dict[str, int] = {}
        for unit in units:
            for name in unit.reads:
                readers[name] = readers.get(name, 0) + 1
        written = {name for unit in units for name in unit.writes}
        ram = policy.boundaries == "ram"
        self.travellers = frozenset(name for name in written if ram and readers.get(name, 0) < EVERYWHERE)
        after = [*self.backward[1:], None]
        self.next_backward: dict[int, int | None] = dict(zip(self.backward, after, strict=True))

    def next(self, k: int, backward: bool) -> int | None:
        """The unit visited after k."""
        return self.next_backward[k] if backward else k + 1

    def near(self, k: int, micro_batches: int, backward: bool) -> tuple[str, ...]:
        """What a micro-batch's values must not leave behind after visiting k: what its very next visit reads. With
        several micro-batches the next visit is another one's."""
        following = self.next(k, backward)
        return () if micro_batches > 1 or following is None else self.units[following].reads


def needed(units: Sequence[Unit], given: set[str], wanted: set[str]) -> list[int]:
    """The units that must run to get `wanted` when `given` are there already, in order."""
    missing, chosen = set(wanted) - given, []
    for k in range(len(units) - 1, -1, -1):
        if missing & set(units[k].writes):
            chosen.append(k)
            missing = (missing - set(units[k].writes)) | (set(units[k].reads) - given)
    assert not missing, f"nothing writes {sorted(missing)}"
    return chosen[::-1]
