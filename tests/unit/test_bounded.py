"""backup/bounded.py: a call that never returns costs its bound, and no more."""

from __future__ import annotations

import threading
import time

import pytest

from backup.bounded import Bounded, within


class Library:
    """Has methods, some of which take their time, and gives out more of its kind."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def add(self, one: object, other: object) -> object:
        return (one, other)

    def hang(self) -> bool:
        return self.go_on.wait(5)

    def fail(self) -> None:
        raise ValueError("no")

    def others(self) -> list[Library]:
        return [self]

    def same(self, other: object) -> bool:
        return other is self


def test_what_is_returned_and_raised_comes_through() -> None:
    library = Bounded(Library(), 5)
    assert library.add(1, 2) == (1, 2)
    with pytest.raises(ValueError, match="no"):
        library.fail()
    with pytest.raises(TimeoutError, match="its own"):
        within(5, _raise_timeout)


def _raise_timeout() -> None:
    raise TimeoutError("its own")


def test_a_call_that_hangs_is_given_up_and_the_others_go_on() -> None:
    bare = Library()
    library = Bounded(bare, 0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        library.hang()
    assert time.monotonic() < began + 2
    assert library.add(1, 2) == (1, 2)
    bare.go_on.set()
    assert library.within(5).hang()


def test_what_the_library_gives_out_is_bounded_too_and_taken_back_bare() -> None:
    bare = Library()
    (other,) = Bounded(bare, 0.05).others()
    with pytest.raises(TimeoutError):
        other.hang()
    assert other.same(other)
    bare.go_on.set()
