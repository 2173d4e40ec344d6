"""backup/system/own_thread.py: what belongs to a thread is entered and left in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backup.system.own_thread import in_own_thread


@contextmanager
def recorded(names: list[str], swallow: bool = False) -> Iterator[str]:
    names.append(threading.current_thread().name)
    try:
        yield "entered"
    except ValueError:
        names.append("failed")
        if not swallow:
            raise
    finally:
        names.append(threading.current_thread().name)


def test_it_is_entered_and_left_in_one_other_thread() -> None:
    names: list[str] = []
    with in_own_thread(recorded(names)) as entered:
        assert entered == "entered"
    assert names[0] == names[1] != threading.current_thread().name


def test_an_error_of_the_block_reaches_it_and_then_the_caller() -> None:
    names: list[str] = []
    with pytest.raises(ValueError, match="of the block"), in_own_thread(recorded(names)):
        raise ValueError("of the block")
    assert names[1] == "failed"


def test_it_may_end_an_error() -> None:
    with in_own_thread(recorded([], swallow=True)):
        raise ValueError("of the block")
