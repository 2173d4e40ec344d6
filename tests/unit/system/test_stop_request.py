"""backup/system/stop_request.py and backup/system/undo.py: requests to stop, and cleanup."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from backup.errors import BackupError, Interrupted
from backup.model import Level
from backup.system.stop_request import StopRequest
from backup.system.undo import undone_by

from ..raising import raises
from ..recorder import Recorder

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    """A request that handles signals; the previous handlers are restored after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    stop.on_signals(*SIGNALS)
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_request_nothing_stops() -> None:
    StopRequest().check()
    assert not StopRequest().requested


def test_a_signal_is_recorded_at_once_and_raised_at_the_next_check(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert (stop.requested, stop.signal_number) == (True, signal.SIGTERM)
    with raises("interrupted", Interrupted) as caught:
        stop.check()
    assert getattr(caught.value, "signal_number", 0) == signal.SIGTERM


def test_only_the_first_reason_counts(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.request(BackupError("lost the domain's lock"))
    assert stop.signal_number == signal.SIGHUP
    for _ in range(2):
        with raises("interrupted", Interrupted) as caught:
            stop.check()
        assert getattr(caught.value, "signal_number", 0) == signal.SIGHUP


def test_a_reason_other_than_a_signal_sets_no_signal_number() -> None:
    stop = StopRequest()
    stop.request(BackupError("lost the domain's lock"))
    assert stop.signal_number == 0
    with raises("lost the domain's lock"):
        stop.check()


def test_signal_handlers_are_refused_outside_the_main_thread() -> None:
    refused = []

    def try_it() -> None:
        with pytest.raises(RuntimeError):
            StopRequest().on_signals(signal.SIGTERM)
        refused.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert refused


def fail() -> None:
    raise BackupError("the clean-up failed", "do it by hand")


def test_the_cleanup_runs_after_the_block_and_its_error_is_raised(recorder: Recorder) -> None:
    done: list[str] = []
    with undone_by(lambda: done.append("undone"), recorder, "web"):
        done.append("block")
    assert done == ["block", "undone"]
    with raises("the clean-up failed"), undone_by(fail, recorder, "web"):
        pass
    assert recorder.messages == []


def test_a_bug_in_a_cleanup_is_logged_with_type_and_traceback(recorder: Recorder) -> None:
    def forget() -> None:
        raise KeyError("x")

    with raises("first"), undone_by(forget, recorder, "web"):
        raise BackupError("first")
    lines = recorder.told(Level.ERROR)
    assert lines[0] == "a bug in a cleanup, after another error: KeyError('x')"
    assert lines[-1] == "KeyError: 'x'"
    assert [text for text in lines if "in forget" in text]
    assert not [text for text in lines if "\n" in text]


@pytest.mark.parametrize("error", [BackupError("first"), KeyboardInterrupt("first"), ValueError("first")])
def test_the_first_error_is_raised_and_that_of_the_cleanup_is_a_message(
    recorder: Recorder, error: BaseException
) -> None:
    with pytest.raises(type(error), match="first"), undone_by(fail, recorder, "web"):
        raise error
    assert recorder.messages == [
        (Level.ERROR, "web", "the clean-up failed (hint: do it by hand)"),
    ]
