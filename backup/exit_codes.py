"""The exit codes: what each means, and which error ends a command with which."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from .errors import AlreadyRunning, BackupError, ConfigError, DrillFailed, Interrupted, NotDefined

SUCCESS = 0
NOTHING_DONE = 1
USAGE = 2
FAILED = 3
ALREADY_RUNNING = 11
SIGNALLED = 128  # plus the signal's number, as a shell reports it

# Those of `status --max-age`, which Nagios and Icinga expect of a check.
OK, CRITICAL, UNKNOWN = 0, 2, 3

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # those that stop a command in good order

MEANINGS: Mapping[int, str] = {
    SUCCESS: "all selected domains saved, or nothing to do",
    NOTHING_DONE: "nothing could be done, or `check` found problems",
    USAGE: "usage or configuration error",
    FAILED: "at least one domain failed",
    ALREADY_RUNNING: "another run is active on this node",
    **{SIGNALLED + number: f"interrupted by {number.name}" for number in SIGNALS},
}

# Derived errors included. All others mean that nothing could be done.
_OF_ERRORS: Mapping[type[BackupError], int] = {
    ConfigError: USAGE,
    AlreadyRunning: ALREADY_RUNNING,
    NotDefined: FAILED,
    DrillFailed: FAILED,
}


def exit_code(error: BackupError) -> int:
    """Give the exit code of a command that ends with this error."""
    if isinstance(error, Interrupted):
        return interrupted(error.signal_number)
    return next((code for kind, code in _OF_ERRORS.items() if isinstance(error, kind)), NOTHING_DONE)


def interrupted(signal_number: int) -> int:
    """Give the exit code of a command that this signal ended."""
    return SIGNALLED + signal_number
