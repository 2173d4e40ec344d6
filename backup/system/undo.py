"""Cleanup at the end of a block, so that the first error survives."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from ..errors import BackupError
from ..model import Level
from ..protocols import Reporter


@contextmanager
def undone_by(cleanup: Callable[[], None], reporter: Reporter, domain: str) -> Iterator[None]:
    """Call `cleanup` at the end of the block, even if the block fails.

    If both fail, the cleanup's error is reported as a message and the block's error is raised.
    """
    try:
        yield
    except BaseException:  # the cleanup has to happen whatever it was
        try:
            cleanup()
        except BackupError as error:
            reporter.message(Level.ERROR, domain, str(error))
        except Exception as error:  # a bug, but the block's error comes first
            _report_bug(error, reporter, domain)
        raise
    else:
        cleanup()


def _report_bug(error: Exception, reporter: Reporter, domain: str) -> None:
    """Report the traceback, line by line."""
    reporter.message(Level.ERROR, domain, f"a bug in a cleanup, after another error: {error!r}")
    for text in traceback.format_exception(type(error), error, error.__traceback__):
        for line in text.splitlines():
            reporter.message(Level.ERROR, domain, line)
