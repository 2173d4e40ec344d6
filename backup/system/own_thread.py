"""A context manager that is entered and left in a thread of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from .time_limit import awaited

Entered = TypeVar("Entered")


@contextmanager
def in_own_thread(manager: AbstractContextManager[Entered]) -> Iterator[Entered]:
    """Enter it in a new thread, and leave it there after the block.

    For what belongs to a thread: a mount namespace, and programs that end with the thread that started them.
    Signals are handled meanwhile: this thread wakes up for them.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="owner") as thread:
        entered = awaited(thread.submit(manager.__enter__), math.inf)
        try:
            yield entered
        except BaseException:  # whatever it was, the manager decides
            if not awaited(thread.submit(manager.__exit__, *sys.exc_info()), math.inf):
                raise
        else:
            awaited(thread.submit(manager.__exit__, None, None, None), math.inf)
