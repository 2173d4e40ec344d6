"""backup/terminal/progress/display.py: every message is shown, and reporting never blocks."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pickle
import pty
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from backup.errors import Interrupted
from backup.job_result import Phase
from backup.model import Level
from backup.system.stop_request import StopRequest
from backup.terminal.console import Console
from backup.terminal.progress import display as module
from backup.terminal.progress.activity import RunProgress
from backup.terminal.progress.choose_display import displayed
from backup.terminal.progress.display import Display
from backup.terminal.progress.live_view import LiveView
from backup.terminal.progress.plain_lines import PlainLines
from backup.terminal.progress.unit_status import UnitStatus

from ..waiting import wait_until, waits_for_nobody


@dataclass
class Stopped:
    """A view whose terminal is stopped until `go` is set."""

    interval: float = 0.01
    go: threading.Event = field(default_factory=threading.Event)
    seen: list[object] = field(default_factory=list)

    def message(self, level: Level, domain: str, text: str) -> None:
        assert self.go.wait(10)
        self.seen.append(text)

    def phase(self, domain: str, phase: Phase) -> None:
        self.seen.append(phase)

    def show(self, run: RunProgress) -> None:
        self.go.wait(10)
        self.seen.append(run)

    def close(self, run: RunProgress) -> None:
        self.seen.append("closed")


def test_a_stopped_terminal_blocks_no_reporter_and_loses_no_message() -> None:
    stopped = Stopped()
    with Display(Console(io.StringIO()), [stopped]) as display:
        display.planned("A", "web", 100)
        display.message(Level.INFO, "web", "first")
        for done in range(1000):  # each returns at once
            display.progress("web", "vda", done, 1000)
            display.message(Level.INFO, "web", str(done))
        display.ended("A", failed=False)
        assert stopped.seen == []
        stopped.go.set()
    messages = [one for one in stopped.seen if isinstance(one, str)]
    assert messages == ["first", *map(str, range(1000)), "closed"]


def test_a_terminal_that_stays_stopped_does_not_keep_the_process_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LIMIT", 0.3)
    stopped = Stopped()
    began = time.monotonic()
    with Display(Console(io.StringIO()), [stopped]) as display:
        display.message(Level.INFO, "web", "first")
    assert time.monotonic() < began + 5
    assert display.given_up
    stopped.go.set()


def test_a_slow_terminal_gets_all_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 0.5)

    class Slow(Stopped):
        def message(self, level: Level, domain: str, text: str) -> None:
            time.sleep(0.1)  # 2 s in all, which is more than the limit
            super().message(level, domain, text)

    slow = Slow(interval=math.inf)
    slow.go.set()
    with Display(Console(io.StringIO()), [slow]) as display:
        for number in range(20):
            display.message(Level.INFO, "web", str(number))
    assert slow.seen == [*map(str, range(20)), "closed"]
    assert not display.given_up


def test_a_request_to_stop_shortens_the_wait_for_a_stopped_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOPPED_LIMIT", 0.3)
    stopped, stop = Stopped(), StopRequest()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with Display(Console(io.StringIO()), [stopped], lambda: stop.requested) as display:
        display.message(Level.INFO, "web", "first")
    assert time.monotonic() < began + 5
    stopped.go.set()


def test_a_process_that_stood_still_after_a_request_to_stop_writes_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock went on, but the thread that writes stood still, too."""
    stopped = Stopped(interval=math.inf)
    checks: list[float] = []

    def is_stopping() -> bool:
        checks.append(time.monotonic())
        if len(checks) == 1:
            later = SimpleNamespace(monotonic=lambda: time.monotonic() + 100)
            monkeypatch.setattr(module, "time", later)
        else:
            stopped.go.set()
        return True

    with Display(Console(io.StringIO()), [stopped], is_stopping) as display:
        display.message(Level.INFO, "web", "last")
    assert stopped.seen == ["last", "closed"]
    assert not display.given_up


def test_progress_is_shown_at_intervals_without_any_event() -> None:
    view = Stopped()
    view.go.set()
    with Display(Console(io.StringIO()), [view]) as display:
        display.phase("web", Phase.STREAM)
        display.phase("web", Phase.STREAM)
        display.progress("web", "vda", 1, 4)
        wait_until(lambda: len(view.seen) > 5, 5, "several times")
    assert view.seen.count(Phase.STREAM) == 1, "only a change is shown"
    last = [one for one in view.seen if isinstance(one, RunProgress)][-1]
    assert [(job.domain, job.targets) for job in last.jobs] == [("web", ("vda",))]


def test_in_another_process_a_display_is_a_console_of_the_same_level() -> None:
    copy = pickle.loads(pickle.dumps(Display(Console(io.StringIO(), Level.ERROR, in_journal=True), [])))
    assert isinstance(copy, Console)
    assert (copy.level, copy.in_journal) == (Level.ERROR, True)


def test_plain_lines_show_each_phase_and_the_progress_at_intervals() -> None:
    stream = io.StringIO()
    with Display(
        Console(stream, in_journal=True), [PlainLines(Console(stream, in_journal=True), 0.05)]
    ) as display:
        display.planned("A", "web", 100)
        display.phase("web", Phase.STREAM)
        display.progress("web", "vda", 45, 100)
        wait_until(lambda: stream.getvalue().count("45 %") == 2, 5, "two lines of progress")
        display.phase("web", Phase.TIDY)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<6>web: streaming"
    assert lines[1] == "<6>web: streaming vda, 45 % (45 B of 100 B)"
    assert lines[-1] == "<6>web: tidying up"


def test_without_an_interval_there_are_no_progress_lines_and_phases_are_debug_messages() -> None:
    stream = io.StringIO()
    with Display(Console(stream), [PlainLines(Console(stream))]) as display:
        display.phase("web", Phase.STREAM)
        display.message(Level.INFO, "web", "saved")
    assert stream.getvalue() == "web: saved\n"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What a service manager listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        yield listening


def test_the_unit_status_is_one_line_of_totals_and_jobs(manager: socket.socket) -> None:
    with Display(Console(io.StringIO()), [UnitStatus(manager.getsockname(), 0.01)]) as display:
        display.planned("A", "web\n", 100)
        display.planned("B", "db", 100)
        display.phase("web\n", Phase.STREAM)
        display.progress("web\n", "vda", 45, 100)
        status = (
            "STATUS=0 of 2 domains done, 22 %, 45 B of 200 B, running for 0:00; web\\n streaming vda 45 %"
        )
        wait_until(lambda: manager.recv(4096).decode() == status, 5, "the status")
        display.ended("A", failed=True)
    manager.setblocking(False)
    *_, last = iter(lambda: _received(manager), "")
    assert last == "STATUS=ended: 1 of 2 domains done, 1 failed"


def _received(manager: socket.socket) -> str:
    try:
        return manager.recv(4096).decode()
    except BlockingIOError:
        return ""


def test_a_service_manager_that_stopped_listening_is_no_failure(manager: socket.socket) -> None:
    status = UnitStatus(manager.getsockname())
    progress = RunProgress((), 0, 0, 0, 0, 0, 0.0, None, 0)

    def tell() -> None:
        for _ in range(5000):  # more than its queue holds
            status.show(progress)

    waits_for_nobody(tell)
    manager.close()
    status.show(progress)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """A console on a terminal that can do everything."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with os.fdopen(theirs, "w") as stream:
        _resize(theirs, 100)
        yield Console(stream)
    os.close(ours)


def _resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))


def shown(display: Display) -> list[tuple[type, float]]:
    return [(type(view), view.interval) for view in display._views]


@pytest.mark.parametrize("progress", ["auto", "always"])
def test_a_terminal_has_the_live_view_if_it_can_show_it(
    terminal: Console, progress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, lines = [(LiveView, 0.5)], [(PlainLines, 60)]
    assert shown(displayed(terminal, progress, 60)) == live
    _resize(terminal.stream.fileno(), 39)
    assert shown(displayed(terminal, progress, 60)) == lines
    _resize(terminal.stream.fileno(), 40)
    assert shown(displayed(terminal, progress, 60)) == live
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "dumb")
        assert shown(displayed(terminal, progress, 60)) == lines
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert shown(displayed(terminal, progress, 60)) == lines


def test_a_live_view_that_cannot_be_imported_is_reported_and_replaced_by_lines(
    terminal: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich/__init__.py").write_text("import no_such_part")
    messages: list[str] = []
    monkeypatch.setattr(Console, "message", lambda _, level, domain, text: messages.append(text))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    assert shown(displayed(terminal, "auto", 60)) == [(PlainLines, 60)]
    (message,) = messages
    assert message.startswith(
        "progress is shown in plain lines: cannot import module rich.console: No module"
    )


def test_elsewhere_progress_lines_are_for_the_journal_or_progress_always(terminal: Console) -> None:
    file = Console(io.StringIO())
    journal = Console(io.StringIO(), in_journal=True)
    quiet, telling = [(PlainLines, math.inf)], [(PlainLines, 60)]
    assert shown(displayed(terminal, "never", 60)) == quiet
    assert shown(displayed(file, "auto", 60)) == quiet
    assert shown(displayed(file, "always", 60)) == telling
    assert shown(displayed(journal, "auto", 60)) == telling
    assert shown(displayed(journal, "auto", 0)) == quiet


def test_a_service_has_a_status_too_unless_progress_is_never(
    terminal: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@/a/name")
    assert shown(displayed(Console(io.StringIO()), "auto", 60))[1:] == [(UnitStatus, 5.0)]
    assert shown(displayed(Console(io.StringIO()), "never", 60))[1:] == []
