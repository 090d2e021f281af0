"""`python -m trainer`: read the command line, check it, run the stages, show what they say.

Exit codes: 0 done, 1 something broke (a traceback, and where the log is), 2 something the person at the keyboard can
mend (one message with its fix, nothing overwritten), 130 interrupted after saving.
"""

from __future__ import annotations

import errno
import os
import sys

from trainer.cli import parse as cli
from trainer.errors import ConfigError


def main(words: list[str] | None = None) -> int:
    try:
        command = cli.parse(sys.argv[1:] if words is None else words)
        if command.version or command.help:
            return _tell(command)
        from trainer.cli import commands

        return commands.DO[command.name](command)
    except ConfigError as error:
        print(f"error: {error.what}\n  fix: {error.fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `... | head` has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"error: the disk is full: {error.filename or error}\n"
            "  fix: free space, then go on with the same command and --resume_from_checkpoint latest",
            file=sys.stderr,
        )
        return 2


def _tell(command: cli.Command) -> int:
    from trainer import __version__
    from trainer.cli.help import page

    print(__version__ if command.version else page(command.name), end="\n" if command.version else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
