"""`python -m trainer`: read the command line, check it, run the stages, show what they say.

Exit codes: 0 done, 2 something the person at the keyboard can mend (one message with its fix), 130 interrupted.
"""

from __future__ import annotations

import sys
from itertools import chain

from trainer import __version__, cli
from trainer.config import ConfigError


def main(words: list[str] | None = None) -> int:
    try:
        command = cli.parse(sys.argv[1:] if words is None else words)
        if command.version:
            print(__version__)
            return 0
        if command.help:
            from trainer.help import page

            print(page(command.name), end="")
            return 0
        return DO[command.name](command)
    except ConfigError as error:
        print(f"error: {error.what}\n  fix: {error.fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def train(command: cli.Command) -> int:
    from trainer.checks import check
    from trainer.events import Controls, Finished, Notice

    config = command.config()
    notices = [Notice(text) for text in command.notices + check(config, tolerant=command.foreign)]

    from trainer import stages

    controls = Controls()
    status = "failed"
    for event in chain(notices, stages.run(config, controls)):
        print(event, flush=True)
        if isinstance(event, Finished):
            status = event.status
    return {"done": 0, "interrupted": 130}.get(status, 1)


DO = {"train": train}

if __name__ == "__main__":
    sys.exit(main())
