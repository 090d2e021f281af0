"""What a disk that says no means to the person at the keyboard.

Most of what the operating system refuses is nothing a program can have known before: the disk filled up, a cable came out,
somebody removed a file. Each is one line with the file's name, not a traceback.
"""

from __future__ import annotations

import errno

from trainer.errors import ConfigError

FREE = "free space"
PUT_BACK = "put it back"
ALLOW = "mend its permissions"
CHECK = "check the disk, its cable or the network it is reached by"
FIXES = {
    errno.ENOSPC: FREE,
    errno.EDQUOT: FREE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use a disk that takes larger ones",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: ALLOW,
    errno.EPERM: ALLOW,
    errno.ENOENT: PUT_BACK,
    errno.ENOTDIR: PUT_BACK,
    errno.EISDIR: PUT_BACK,
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EIO: CHECK,
    errno.ESTALE: CHECK,
    errno.ENODEV: CHECK,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}


def refusal(error: OSError) -> ConfigError | None:
    """The same with its fix; None for what is no disk's answer, such as a connection that broke."""
    if error.errno not in FIXES:
        return None
    full = FIXES[error.errno] == FREE
    what = f"the disk is full: {error.filename or error}" if full else f"{error.filename or error}: {error.strerror}"
    return ConfigError(
        what, f"{FIXES[error.errno]}, then the same command again; a run goes on with --resume_from_checkpoint latest"
    )
