"""backup/exit_codes.py: which error ends a command with which code."""

from __future__ import annotations

import signal

from backup.errors import AlreadyRunning, BackupError, ConfigError, DrillFailed, Interrupted, NotDefined
from backup.exit_codes import MEANINGS, exit_code


class Elsewhere(AlreadyRunning):
    """A derived error."""


def test_each_error_has_its_exit_code_derived_errors_too() -> None:
    errors = [Elsewhere("x"), DrillFailed("x"), NotDefined("x"), BackupError("x"), ConfigError([])]
    assert [exit_code(error) for error in errors] == [11, 3, 3, 1, 2]


def test_an_interruption_has_the_code_that_a_shell_would_report() -> None:
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    assert [exit_code(Interrupted("x", number)) for number in numbers] == [129, 130, 143]


def test_every_exit_code_is_explained() -> None:
    assert list(MEANINGS) == [0, 1, 2, 3, 11, 129, 130, 143]
