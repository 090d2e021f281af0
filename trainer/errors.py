"""What a person can mend: every floor raises it, `__main__` prints it and its fix instead of a traceback."""


class ConfigError(ValueError):
    """Something the person at the keyboard can mend: `what` is wrong, and the `fix`. Exit code 2, nothing overwritten."""

    def __init__(self, what: str, fix: str):
        self.what, self.fix = what, fix
        super().__init__(f"{what}\n  fix: {fix}")
