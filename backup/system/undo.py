"""Undoing things so that the first error survives."""

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
    """Call `cleanup` at the end of the block, whatever happened in it.

    Where the block and the cleanup both fail, the cleanup's error becomes a message and the block's
    error goes on.
    """
    try:
        yield
    except BaseException:
        try:
            cleanup()
        except BackupError as error:
            reporter.message(Level.ERROR, domain, str(error))
        except Exception as error:  # a bug; but the block's error is the one to raise
            _report_bug(error, reporter, domain)
        raise
    else:
        cleanup()


def _report_bug(error: Exception, reporter: Reporter, domain: str) -> None:
    """Report all that a traceback would say, line by line."""
    reporter.message(Level.ERROR, domain, f"a bug in a cleanup, after another error: {error!r}")
    for text in traceback.format_exception(type(error), error, error.__traceback__):
        for line in text.splitlines():
            reporter.message(Level.ERROR, domain, line)
