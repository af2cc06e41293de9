"""What the suite raises. Every message is one sentence that names the cause and the remedy."""


class UserError(Exception):
    """Something the user can put right: a file, a folder, a setting. Printed without a traceback; exit code
    1.
    """


class ConfigError(UserError):
    """A setting that composes but makes no sense. Exit code 2."""


class BusyError(UserError):
    """Another process is writing the same output folder."""
