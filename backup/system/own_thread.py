"""A context manager that is entered and left in a thread of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Entered = TypeVar("Entered")


@contextmanager
def in_own_thread(manager: AbstractContextManager[Entered]) -> Iterator[Entered]:
    """Enter it in a new thread, and leave it there after the block.

    For what belongs to a thread: a mount namespace, and programs that end with the thread that started them.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="owner") as thread:
        entered = thread.submit(manager.__enter__).result()
        try:
            yield entered
        except BaseException:  # whatever it was, the manager decides
            if not thread.submit(manager.__exit__, *sys.exc_info()).result():
                raise
        else:
            thread.submit(manager.__exit__, None, None, None).result()
