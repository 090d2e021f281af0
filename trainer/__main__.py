"""`python -m trainer`: read the command line, check it, run the stages, show what they say.

Exit codes: 0 done, 1 a fault of this program (the traceback is in the run's log, or on the screen where there is none yet),
2 something the person at the keyboard can mend (one message with its fix), 130 interrupted, after saving what there was.
"""

from __future__ import annotations

import os
import sys

from trainer.errors import ConfigError
from trainer.files import disk
from trainer.files.shown import shown
from trainer.machine import mending
from trainer.readers import lasting


def main(words: list[str] | None = None) -> int:
    lasting.fill_closed()
    try:
        from trainer.cli import parse as cli  # the first that needs libraries, which may be missing

        command = cli.parse(sys.argv[1:] if words is None else words)
        if command.version or command.help:
            return _tell(command.name, command.version)
        from trainer.cli import commands

        code = commands.do(command)
        sys.stdout.flush()  # while a reader that has left is still expected
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `explain ... | head` has left; a run goes on without its reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        refused = disk.refusal(error) if isinstance(error, OSError) else None
        mendable = error if isinstance(error, ConfigError) else refused or mending.stumbled(error)
        if mendable is not None:
            print(
                f"error: {shown(mendable.what, lines=True)}\n  fix: {shown(mendable.fix, lines=True)}", file=sys.stderr
            )
            return 2
        if not isinstance(error, OSError):
            error.add_note("This is a fault of this program: please report it, with these lines.")
        raise


def _tell(name: str, version: bool) -> int:
    from trainer import __version__
    from trainer.cli.help import page

    print(__version__ if version else page(name), end="\n" * version, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
