"""The one exception that means: the user can mend this; what the host raises for mistakes; and exit codes."""

from __future__ import annotations

DONE, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# What Ultralytics raises for arguments, files and data that cannot be used.
HOST_MISTAKES = (
    ValueError,
    TypeError,
    SyntaxError,
    FileNotFoundError,
    AssertionError,
    NotImplementedError,
    ConnectionError,
)


class UserError(ValueError):
    """A mistake in what the user asked for; the message names the key, the value and the fix.

    The command line prints it without a traceback and exits with code 2.
    """
