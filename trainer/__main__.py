"""`python -m trainer`: read the command line, check it, run the stages, show what they say.

Exit codes: 0 done, 1 a fault of this program (the traceback is in the run's log, or on the screen where there is none yet),
2 something the person at the keyboard can mend (one message with its fix), 130 interrupted, after saving what there was.
"""

from __future__ import annotations

import os
import sys

from trainer.cli import parse as cli
from trainer.errors import ConfigError
from trainer.files import disk
from trainer.readers import lasting


def main(words: list[str] | None = None) -> int:
    lasting.fill_closed()
    try:
        command = cli.parse(sys.argv[1:] if words is None else words)
        if command.version or command.help:
            return _tell(command)
        from trainer.cli import commands

        code = commands.DO[command.name](command)
        sys.stdout.flush()  # while a reader that has left is still expected
        return code
    except ConfigError as error:
        return _mendable(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `explain ... | head` has left; a run goes on without its reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if (refused := disk.refusal(error)) is None:
            raise
        return _mendable(refused)
    except Exception as error:
        error.add_note("This is a fault of this program: please report it, with these lines.")
        raise


def _mendable(error: ConfigError) -> int:
    print(f"error: {error.what}\n  fix: {error.fix}", file=sys.stderr)
    return 2


def _tell(command: cli.Command) -> int:
    from trainer import __version__
    from trainer.cli.help import page

    print(__version__ if command.version else page(command.name), end="\n" * command.version, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
