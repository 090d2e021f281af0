"""What each command does, once its words are understood.

Modules are imported inside the functions, so that a command pays only for itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.parse import Command
from trainer.errors import ConfigError
from trainer.events import Controls, Event, Finished, Notice, RunStarted
from trainer.files import disk
from trainer.machine import launcher, libraries, releases
from trainer.readers.lasting import lasting
from trainer.settings.checks import check, judge, places
from trainer.settings.config import Config

if TYPE_CHECKING:
    from trainer.readers import stray


def do(command: Command) -> int:
    """Returns the exit code. Of several processes that a launcher started, one does what is no training."""
    if command.name != "train" and not launcher.goes_on_alone(command.name):
        return 0
    return DO[command.name](command)


def train(command: Command) -> int:
    if launcher.expected() > 1:
        launcher.end_with_launcher()
    config = _named(command)
    notices = command.notices + check(config, tolerant=command.foreign)

    from trainer.files import hub
    from trainer.readers import log, stray, tui

    log.check(config)
    if config.run.cards > launcher.expected() == 1:
        launcher.require(config.run.cards, config.run.device)
        return launcher.launch(config.run.cards, command.typed)
    if launcher.rank() > 0:
        return _follow(config, launcher.rank())
    hub.early(config.model.name, config.model.revision, config.model.vae)
    if config.guard.watch:
        judge(config.guard.judge)
    controls, said = Controls(), stray.Stray()
    run_dir: list[str] = []

    def events() -> Iterator[Event]:
        yield from (Notice(what, fix, "warning") for what, fix in _libraries())
        yield from (Notice(text) for text in (*notices, *filter(None, [launcher.left_alone()])))
        from trainer.run import stages  # torch and diffusers take seconds, which a screen may already fill

        for event in stages.run(config, controls):
            if isinstance(event, RunStarted):
                run_dir[:] = [event.run_dir]
            yield event

    code = 1
    with ExitStack() as stack:
        stack.enter_context(lasting(lambda why: _without_reader(said, why)))
        stack.push(lambda kind, error, trace: _ours(error, run_dir))
        stack.push(lambda kind, error, trace: _report(error, run_dir))
        finished = tui.show(log.record(stray.heard(events(), said), config), controls, config.run.dashboard, said)
        assert finished is not None, "the last event of a run"
        code = _code(finished)
    return code


def _code(finished: Finished | None) -> int:
    """What became of a run, as exit code. One that "failed" met something a person can mend: a fault of ours is raised."""
    return {"done": 0, "interrupted": 130, "failed": 2}[finished.status if finished else "done"]


def _without_reader(said: stray.Stray, why: str) -> None:
    text = f"Nobody reads this output any more ({why}): the run goes on, and its log has everything."
    said.hear(Notice(text, level="warning"), text)


def _follow(config: Config, rank: int) -> int:
    """A card beside the first: it trains, and says nothing unless something breaks."""
    from trainer.readers.view.keys import interrupts
    from trainer.run import stages

    controls = Controls()
    with interrupts(controls):
        *_, last = stages.run(config, controls)
    assert isinstance(last, Finished), "the last event of a run"
    if last.error:
        print(f"card {rank}: {last.error}", file=sys.stderr)
    return _code(last)


def plan(command: Command) -> int:
    config = _named(command)
    notices = command.notices + check(config, tolerant=True, files=False)
    places(config)
    from trainer.files import hub

    hub.early(config.model.name, config.model.revision, config.model.vae)
    _say_libraries()
    for text in notices:
        print(f"note: {text}", file=sys.stderr)
    from trainer.plan import command as planned

    return planned.main(config, as_json=command.json)


def sample(command: Command) -> int:
    run, config = _run_settings(command)
    prompts = config.sample.validation_prompt
    if not prompts and (command.file or config.data.instance_prompt):  # a run's prompt follows from its settings
        from trainer.data.prompts import instance_prompt

        prompts = [instance_prompt(config.data)]
    if not prompts:
        raise ConfigError("no prompt to draw", "add --prompt 'a photo of hta dog on the beach'")
    seeds = list(range(config.train.seed, config.train.seed + max(config.sample.num_validation_images, 1)))
    output = Path(config.run.output_dir) if config.run.output_dir else None

    _say_libraries()
    from trainer.run import revisit

    return _show(revisit.sample_run(run, prompts, seeds, output, config), config)


def export(command: Command) -> int:
    run, config = _run_settings(command)
    output = Path(config.run.output_dir) if config.run.output_dir else None

    _say_libraries()
    from trainer.run import revisit

    return _show(revisit.export_run(run, config.export, output), config)


def doctor(command: Command) -> int:
    from trainer.cli.doctor import main

    return main(command.config())


def photos(command: Command) -> int:
    if command.words:
        command.values["data.instance_data_dir"], command.spelled["data.instance_data_dir"] = command.words[0], "photos"
    config = _named(command)
    if len(command.words) > 1 or config.data.instance_data_dir is None:
        raise ConfigError("`photos` looks at one folder", "write: python -m trainer photos DIR --class_name dog")
    places(config, written=False)
    from trainer.cli.photos import main

    return main(config)


def explain(command: Command) -> int:
    from trainer.cli.explain import main

    return main(command.words, command.explained)


def identifier(command: Command) -> int:
    """Numbers say how many proposals are wanted, other words are judged."""
    count = next((int(word) for word in command.words if word.isdigit()), 10)
    config = command.config()
    _say_libraries()
    from trainer.prior.identifier import main

    return main(config, count, [word for word in command.words if not word.isdigit()])


def watch(command: Command) -> int:
    from trainer.readers.watch import main

    return main(Path(command.words[0]))


def report(command: Command) -> int:
    from trainer.readers.report import main

    return main(Path(command.words[0]))


def compare(command: Command) -> int:
    from trainer.readers.compare import main

    return main([Path(word) for word in command.words])


def _named(command: Command) -> Config:
    """The settings, the class named where a folder of class images names it: that decides which of them have an effect."""
    config = command.config()
    if config.prior.class_data_dir:
        from trainer.data import folders

        folders.name_class(config)
    return config


def _run_settings(command: Command) -> tuple[Path, Config]:
    """The run or model a command is about, and the settings it was made with (flags count more)."""
    run = Path(command.words[0])
    settings = next((place / "config.toml" for place in (run, run.parent) if (place / "config.toml").is_file()), None)
    command.file = command.file or settings
    config = command.config()
    if settings is None:  # a model, not a run
        config.settle("model.name", command.words[0], "command line")
    return run, config


def _report(error: BaseException | None, run_dir: list[str]) -> None:
    """At the end, at an interruption and after a fault alike; who presses Ctrl-C twice does not wait for it."""
    if run_dir and not isinstance(error, KeyboardInterrupt):
        from trainer.readers import report

        print(f"report      {report.write(Path(run_dir[0]))}")


def _libraries() -> Iterator[tuple[str, str]]:
    """(what, fix) of libraries that are not as they were tested; broken ones are set aside before others stumble over them."""
    if untried := releases.warning():
        yield untried
    for name, why in libraries.set_aside().items():
        yield f"{name} is installed and does not load: {why}. The run goes on without it.", libraries.mended(name)


def _say_libraries() -> None:
    """The same, beside the answer, which programs may read."""
    for what, fix in _libraries():
        print(f"warning: {what}\n  fix: {fix}", file=sys.stderr)


def _ours(error: BaseException | None, run_dir: list[str]) -> bool:
    """Whether this is a fault of this program whose traceback is in the run's log already; then one line says so."""
    ours = isinstance(error, Exception) and not isinstance(error, ConfigError)
    if not ours or not run_dir or (isinstance(error, OSError) and disk.refusal(error)):
        return False  # the command line says what these mean
    print(
        f"error: a fault of this program ({type(error).__name__}: {error})\n"
        f"  fix: please report it, with {run_dir[0]}/log.jsonl, which says where it happened",
        file=sys.stderr,
    )
    return True


def _show(events: Iterator[Event], config: Config) -> int:
    from trainer.readers import tui

    with lasting(lambda why: None):
        return _code(tui.show(events, Controls(), "off"))


DO: dict[str, Callable[[Command], int]] = {
    "train": train,
    "plan": plan,
    "sample": sample,
    "export": export,
    "doctor": doctor,
    "photos": photos,
    "explain": explain,
    "identifier": identifier,
    "watch": watch,
    "report": report,
    "compare": compare,
}
