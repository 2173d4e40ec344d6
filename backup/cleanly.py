"""Undoing things so that the first error survives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from .model import Level
from .protocols import Reporter


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
        except Exception as error:  # of any kind: the block's error is the one to know
            reporter.message(Level.ERROR, domain, str(error))
        raise
    else:
        cleanup()
