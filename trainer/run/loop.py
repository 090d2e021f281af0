"""The training loop: a generator of events that reads the same on a 4 GB card and on a 24 GB one.

It draws a step's micro-batches, hands them to the engine, and yields what happened. Where bytes live is the engine's
business, what is on screen the reader's, what lies on the disk `saving`'s; losses are read one step late (`late`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from trainer.data.batches import share
from trainer.events import Controls, Event, Notice, Stage, while_wanted
from trainer.machine import convolutions
from trainer.run.habits import Habits
from trainer.run.late import Late, Pending
from trainer.run.trained import Trained


def run(
    trained: Trained,
    habits: Habits,
    controls: Controls,
    save: Callable[[str], Iterator[Event]],
    preview: Callable[[int], Iterator[Event]],
    drawn: Callable[[int], bool],
    outgrown: Callable[[], Stage[str]],
) -> Stage[str]:
    """Train until all steps are taken or somebody asks to stop; on the way `save(kind)` and `preview(step)`, as the habits
    are, and the guard's readings. `drawn(step)` says whether the previews of a step are all there, `outgrown()` whether
    training is to go on by another plan. Returns why it ended early, or nothing."""
    guard, late, stopped = trained.guard, Late(trained.total, trained.engine.device), ""
    team = trained.engine.team  # what one process is asked, all do; what people look at, the first one makes

    def due(every: int | None) -> bool:
        return every is not None and trained.step % every == 0 and trained.step < trained.total

    def keep(kind: str) -> Iterator[Event]:
        yield from late.settle()  # a diverged model is never saved
        yield from trained.first(save(kind))

    def read() -> Stage[str]:
        yield from trained.first(guard.read(trained.step) if guard else ())
        stopped, improved = team.tell((guard.stop, guard.improved) if guard else ("", False))
        if improved and habits.keep_best:
            yield from keep("best")
        return stopped

    # a run may have been ended between a checkpoint and the pictures and the reading of the same step; and pictures of this
    # step that got lost or damaged can be had again only now
    here = trained.resumed is not None and trained.resumed.resolve().parent == trained.folder.resolve()
    if team.any(here and due(habits.sample_every) and not drawn(trained.step))[0]:
        yield from trained.first(while_wanted(preview(trained.step), controls))
    if team.any(trained.resumed is not None and guard is not None and guard.missed(trained.step))[0]:
        stopped = yield from read()
    if trained.resumed is not None and team.any(controls.quit)[0]:  # the next start makes what is still missing
        stopped = "asked to stop"
    while trained.step < trained.total and not stopped:
        yield from one_step(trained, late)
        yield from late.settle(but=1)
        hold, show, look, pause, leave = team.any(
            controls.take("checkpoint") or due(habits.save_every),
            controls.take("sample") or due(habits.sample_every),
            guard is not None and guard.due(trained.step),
            controls.pause,
            controls.quit,
        )
        if hold:
            yield from keep("interval")
        if show:
            yield from trained.first(while_wanted(preview(trained.step), controls))
        if look:
            stopped = yield from read()
        if hold or show or look:  # which may have taken long
            pause, leave = team.any(controls.pause, controls.quit)
        while pause and not leave:
            time.sleep(0.1)
            pause, leave = team.any(controls.pause, controls.quit)
        if leave:
            stopped = "asked to stop"
        if not stopped and trained.step < trained.total:
            stopped = yield from outgrown()
    yield from late.settle()
    return stopped


def one_step(trained: Trained, late: Late) -> Iterator[Event]:
    """One optimizer step, queued; what came of it is on its way."""
    started, rates = late.vitals.mark(), trained.rates.at(trained.step)
    if trained.step == trained.rates.text_stop:
        yield Notice(f"The text encoder stops learning after step {trained.step}, as asked.")
    drawn, team = trained.batches.step(), trained.engine.team
    micro = [batch.to(trained.engine.device) for batch in share(drawn, team.rank, team.size)]
    loss = trained.objective.of_step(micro, trained.batches.accumulation)
    with convolutions.searching(trained.searches):
        result = trained.engine.step([batch.values for batch in micro], loss, rates)
    trained.step += 1
    if trained.engine.replay is not None and (why := trained.engine.replay.news()):
        yield Notice(
            f"A step could not be recorded as a CUDA graph, so steps run eagerly: {why}",
            "The arithmetic is the same; --no-cuda_graphs does not try.",
        )
    if trained.average is not None:
        trained.average.update(trained.engine.slices())
    # into pinned memory without waiting: a plain copy would wait for whatever is queued by then
    losses = team.whole(result.losses, [batch.number for batch in micro], len(drawn))
    losses, norm = (value.float().to("cpu", non_blocking=True) for value in (losses, result.grad_norm))
    lr = next(iter(rates.values()))
    late.add(Pending(trained.step, lr, started, late.vitals.mark(), drawn, losses, norm))
