"""backup/system/transient.py: what does not answer for a while is asked again, and a stop is heard."""

from __future__ import annotations

import threading
import time

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.model import Level
from backup.system import transient
from backup.system.stop_request import StopRequest
from backup.system.transient import at_most_by_hand, outlasted

from ..raising import raises
from ..recorder import Recorder

BROKEN = TransientError("connection refused")


class Answers:
    """Raises these errors, one after the other, then answers; the last one for ever if it is `lasting`."""

    def __init__(self, *errors: BackupError, lasting: bool = False) -> None:
        self.errors = list(errors)
        self.lasting = lasting
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        if not self.errors:
            return "answer"
        raise self.errors[0] if self.lasting else self.errors.pop(0)


def nothing() -> None:
    """There is no reason to stop."""


def test_a_transient_error_is_outlasted_with_a_message_for_each_try(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "FIRST_PAUSE", 0.01)
    assert outlasted(Answers(BROKEN, BROKEN, BROKEN), 60, recorder, "", nothing) == "answer"
    assert recorder.told(Level.WARNING) == 3 * [
        "connection refused; retried in 0 s (RETRY_FOR), 60 of 60 s left"
    ]


def test_a_lasting_error_is_raised_when_the_time_is_over(recorder: Recorder) -> None:
    call = Answers(BROKEN, lasting=True)
    with raises("connection refused", TransientError):
        outlasted(call, 0, recorder, "", nothing)
    assert call.made == 2, "one retry, at once"


@pytest.mark.parametrize(
    ("retry_for", "takes", "attempts"),
    [(60, 1200, [0, 1200]), (900, 1200, [0, 1200]), (60, 1, [0, 1, 12, 33, 61]), (0, 1200, [0, 1200])],
)
def test_no_attempt_is_made_once_the_time_is_over_however_long_one_hangs(
    retry_for: float,
    takes: float,
    attempts: list[float],
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, made = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        transient, "wait_until", lambda moment, _: clock.__setitem__(0, max(clock[0], moment))
    )

    def hangs() -> None:
        made.append(clock[0] - 1000)
        clock[0] += takes
        raise BROKEN

    with raises("connection refused", TransientError):
        outlasted(hangs, retry_for, recorder, "", nothing)
    assert made == attempts
    assert len(recorder.told(Level.WARNING)) == len(attempts) - 1


def test_the_limit_and_what_is_left_of_it_are_in_the_message(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(transient, "wait_until", lambda moment, _: clock.__setitem__(0, moment))
    assert outlasted(Answers(BROKEN, BROKEN, BROKEN), 900, recorder, "", nothing) == "answer"
    assert recorder.told(Level.WARNING) == [
        "connection refused; retried in 0 s (RETRY_FOR), 900 of 900 s left",
        "connection refused; retried in 10 s (RETRY_FOR), 900 of 900 s left",
        "connection refused; retried in 20 s (RETRY_FOR), 890 of 900 s left",
    ]


@pytest.mark.parametrize(("retry_for", "by_hand"), [(900, 60), (30, 30), (0, 0)])
def test_what_an_admin_waits_for_is_retried_for_a_short_time(
    retry_for: float, by_hand: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert at_most_by_hand(retry_for) == by_hand
    monkeypatch.setenv("INVOCATION_ID", "unit")
    assert at_most_by_hand(retry_for) == retry_for


def test_a_permanent_error_is_raised_at_once(recorder: Recorder) -> None:
    call = Answers(BackupError("wrong password"))
    with raises("wrong password"):
        outlasted(call, 60, recorder, "", nothing)
    assert (call.made, recorder.messages) == (1, [])


def test_a_stop_is_heard_during_a_pause(recorder: Recorder) -> None:
    stop = StopRequest()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        outlasted(Answers(BROKEN, lasting=True), 600, recorder, "", stop.check)
    assert time.monotonic() - began < 5
