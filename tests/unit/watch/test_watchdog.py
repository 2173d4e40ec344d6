"""watch/watchdog.py: guests are thawed once every other process of the run was killed, and not before."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Callable, Optional

import pytest

from backup.errors import BackupError
from backup.model import Level
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.quiesce.thaw_rounds import Thaws
from backup.settings import Settings
from backup.system.process import SPAWN
from backup.system.process_group import ProcessId, is_running, process_id
from backup.watch import thaw_all
from backup.watch import watchdog as watchdog_module
from backup.watch.node_lock import only_run
from backup.watch.watchdog import CHECKS, SILENCE, Watchdog

from ..driver_node import domain_element, node_uri
from ..recorder import Recorder
from ..samples import UUID, domain, settings
from ..waiting import wait_until, waits_for_nobody

ROOT = Path(__file__).parents[3]

# A run with a worker that waits; prints their pids.
RUN = """
import os, signal, sys, time
from contextlib import ExitStack
from pathlib import Path
from backup.terminal.console import Console
from backup.watch.guard import guarded
from backup.quiesce.freeze_notes import Method, FreezeNotes
from backup.watch.node_lock import only_run
from backup.system.process import SPAWN
from backup.watch.watchdog import watched
from tests.unit.driver_node import domain_element, node_uri
from tests.unit.samples import domain, settings

def worker(_lifeline, arguments):
    runtime_dir, how = arguments
    if how in ("guarded", "quiesces"):
        uri = node_uri(Path(runtime_dir).parent / "node.xml", domain_element())
        FreezeNotes(runtime_dir).write(domain(uri=uri), Method.PAUSE, seconds=2 if how == "quiesces" else 20)
    signal.pause()

if __name__ == "__main__":
    ours = settings(runtime_dir=sys.argv[1])
    how = sys.argv[2]
    reporter = Console(sys.stderr)
    with ExitStack() as stack:
        if how != "without the lock":
            stack.enter_context(only_run(ours.runtime_dir))
        watchdog = stack.enter_context(watched(ours, reporter))
        if how == "guarded":
            stack.enter_context(guarded(ours, reporter, watchdog))
            watchdog.wait_until_ready(lambda: None)
        process = SPAWN.Process(target=worker, args=(watchdog.lifeline, sys.argv[1:]))
        process.start()
        if how in ("guarded", "quiesces"):
            while not FreezeNotes(ours.runtime_dir).all():
                time.sleep(0.01)
        print(os.getpid(), process.pid, flush=True)
        if how == "ends":
            process.kill()
        process.join()
"""


@pytest.fixture
def notes(tmp_path: Path) -> FreezeNotes:
    """Notes with a domain that is paused."""
    runtime_dir = tmp_path / "run"
    runtime_dir.mkdir(mode=0o700)
    notes = FreezeNotes(str(runtime_dir))
    uri = node_uri(tmp_path / "node.xml", domain_element())
    notes.write(domain(uri=uri), Method.PAUSE)
    return notes


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return path


def test_guests_are_resumed_once_the_last_process_of_the_run_was_killed(
    notes: FreezeNotes, program: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(program), str(tmp_path / "run"), ""]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        assert run.stderr
        main, worker = map(int, run.stdout.readline().split())
        os.kill(main, signal.SIGKILL)
        run.wait()
        os.kill(worker, 0)  # it is alive, and would resume its guest itself
        assert notes.exists(UUID)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not notes.exists(UUID), 10, "the watchdog has resumed the guest")
        assert "resumed: an interrupted backup had left the guest paused" in run.stderr.read()


def test_guests_that_a_run_could_not_resume_are_resumed_after_its_end(
    notes: FreezeNotes, program: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(program), str(tmp_path / "run"), "ends"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=180)
    assert done.stderr.splitlines()[0] == (
        "error: web may still be frozen or paused: the watchdog keeps retrying in the background"
    )
    wait_until(lambda: not notes.exists(UUID), 10, "the watchdog has resumed the guest")


def test_the_watchdog_waits_for_the_lock_of_a_dying_process(
    notes: FreezeNotes, program: Path, tmp_path: Path
) -> None:
    """A dying process's files are closed one after the other: the lifeline may end before the lock goes."""
    with only_run(str(tmp_path / "run")), started(program, tmp_path, "without the lock") as run:
        assert run.stdout
        kill(*map(int, run.stdout.readline().split()))
        until = time.monotonic() + 0.5  # ten checks of the watchdog
        while time.monotonic() < until:
            assert notes.exists(UUID)
            time.sleep(0.05)
    wait_until(lambda: not notes.exists(UUID), 10, "the watchdog has resumed the guest")


def test_a_killed_watchdog_is_restarted(program: Path, tmp_path: Path) -> None:
    with started(program, tmp_path, "guarded") as run:
        assert run.stdout
        main, worker = map(int, run.stdout.readline().split())
        wait_until(lambda: watchdogs(main), 10, "there is a watchdog")
        first = watchdogs(main)
        kill(*first)
        wait_until(lambda: watchdogs(main) - first, 10, "there is another")
        notes = FreezeNotes(str(tmp_path / "run"))
        assert notes.exists(UUID)
        kill(main, worker)
        # it was not paused yet, but the call of the worker may still be carried out
        wait_until(lambda: not notes.exists(UUID), 40, "the second has resumed the guest")


def test_a_watchdog_that_is_stopped_is_replaced(program: Path, tmp_path: Path) -> None:
    with started(program, tmp_path, "guarded") as run:
        assert run.stdout
        main, worker = map(int, run.stdout.readline().split())
        wait_until(lambda: watchdogs(main), 10, "there is a watchdog")
        (first,) = watchdogs(main)
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: first not in watchdogs(main), 15, "it was killed")
        wait_until(lambda: watchdogs(main), 10, "there is another")
        notes = FreezeNotes(str(tmp_path / "run"))
        assert notes.exists(UUID)
        kill(main, worker)
        wait_until(lambda: not notes.exists(UUID), 40, "the second has resumed the guest")


def test_a_main_process_that_was_stopped_does_not_replace_its_watchdog(program: Path, tmp_path: Path) -> None:
    with started(program, tmp_path, "guarded") as run:
        assert run.stdout
        main, worker = map(int, run.stdout.readline().split())
        wait_until(lambda: watchdogs(main), 10, "there is a watchdog")
        both = [main, *watchdogs(main)]
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SILENCE + 2)
        for pid in both:
            os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        assert [main, *watchdogs(main)] == both
        kill(main, worker)
        notes = FreezeNotes(str(tmp_path / "run"))
        wait_until(lambda: not notes.exists(UUID), 40, "the watchdog has resumed the guest")


def test_where_main_and_worker_are_stopped_the_watchdog_thaws_in_time(program: Path, tmp_path: Path) -> None:
    with started(program, tmp_path, "quiesces") as run:
        assert run.stdout
        main, worker = map(int, run.stdout.readline().split())
        for pid in (main, worker):
            os.kill(pid, signal.SIGSTOP)
        notes = FreezeNotes(str(tmp_path / "run"))
        wait_until(lambda: not notes.exists(UUID), 15, "the watchdog has resumed the guest")
        assert not is_running(process_id(worker)), "it could freeze the guest when it goes on"
        kill(main)


@contextmanager
def started(program: Path, tmp_path: Path, how: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a run; kill its processes in the end."""
    command = [sys.executable, str(program), str(tmp_path / "run"), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        yield run
        run.kill()


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def watchdogs(main: int) -> set[int]:
    """Return the pids of a run's watchdogs: in a session of their own, with the run's standard output."""
    output = os.readlink(f"/proc/{main}/fd/1")
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with suppress(OSError):
            if os.readlink(path / "fd/1") == output and os.getsid(pid) == pid:
                found.add(pid)
    return found


@pytest.fixture
def replaced() -> list[Optional[ProcessId]]:
    """Give which watchdog each of those on paper has to end as soon as it watches."""
    return []


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, replaced: list[Optional[ProcessId]]) -> list[Connection]:
    """Have watchdogs on paper; give the ends by which they report that they watch, one for each start."""
    made: list[Connection] = []

    def started(_: Watchdog, replaces: Optional[ProcessId]) -> Connection:
        life, its_own = SPAWN.Pipe(duplex=False)
        made.append(its_own)
        replaced.append(replaces)
        return life

    monkeypatch.setattr(Watchdog, "_started", started)
    return made


def test_a_run_waits_until_the_watchdog_watches(starts: list[Connection], recorder: Recorder) -> None:
    watchdog = Watchdog(settings(), recorder)
    checks = 0

    def check_stop() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            starts[0].send_bytes(b"null")

    watchdog.wait_until_ready(check_stop)
    assert checks == 3
    starts[0].close()
    watchdog.close()


def test_a_watchdog_that_is_killed_before_it_watches_is_restarted(
    starts: list[Connection], recorder: Recorder
) -> None:
    watchdog = Watchdog(settings(), recorder)
    starts[0].close()

    def check_stop() -> None:
        if len(starts) == 2:
            starts[1].send_bytes(b"null")

    watchdog.wait_until_ready(check_stop)
    assert len(starts) == 2
    starts[1].close()
    watchdog.close()


@pytest.fixture
def stopped() -> Iterator[ProcessId]:
    """Give a process that is stopped."""
    with subprocess.Popen(["sleep", "600"]) as process:
        process.send_signal(signal.SIGSTOP)
        yield process_id(process.pid)
        process.kill()


def silent_watchdog(
    starts: list[Connection], recorder: Recorder, runtime_dir: Path, it: ProcessId
) -> Watchdog:
    """Give one that has watched, and was stopped since."""
    watchdog = Watchdog(settings(runtime_dir=str(runtime_dir)), recorder)
    starts[0].send_bytes(json.dumps(it).encode())
    watchdog.wait_until_ready(lambda: None)
    return watchdog


def check_until_started(watchdog: Watchdog, starts: list[Connection], number: int) -> None:
    def started() -> bool:
        watchdog.check()
        return len(starts) == number

    wait_until(started, 5, "it was restarted")


def test_a_silent_watchdog_is_replaced_but_not_one_that_takes_long_to_start(
    starts: list[Connection],
    replaced: list[Optional[ProcessId]],
    recorder: Recorder,
    tmp_path: Path,
    stopped: ProcessId,
) -> None:
    watchdog = silent_watchdog(starts, recorder, tmp_path, stopped)
    for _ in range(int(CHECKS * SILENCE)):
        watchdog.check()
    assert len(starts) == 1
    watchdog.check()
    assert replaced == [None, stopped]
    assert recorder.told(Level.WARNING) == [watchdog_module.STOPPED]
    for _ in range(int(CHECKS * SILENCE) + 10):
        watchdog.check()
    assert len(starts) == 2
    assert is_running(stopped), "perhaps it is only slow: it watches until the other does"
    starts[1].close()
    check_until_started(watchdog, starts, 3)
    assert replaced == [None, stopped, stopped], "the second has not ended it"
    starts[2].close()
    watchdog.close()


def test_a_watchdog_ends_the_one_that_it_replaces_at_its_first_sign_of_life(
    stopped: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, life = SPAWN.Pipe(duplex=False)

    def nap(_: float) -> None:
        raise StopIteration

    monkeypatch.setattr(watchdog_module, "POLL", 0)
    with reader, life:
        monkeypatch.setattr(time, "sleep", nap)
        with pytest.raises(StopIteration):
            watchdog_module._show_life(life, stopped)
        assert reader.poll()
    assert not is_running(stopped)


def test_guests_that_may_still_be_frozen_at_the_end_are_left_to_no_watchdog_that_is_stopped(
    starts: list[Connection],
    replaced: list[Optional[ProcessId]],
    recorder: Recorder,
    notes: FreezeNotes,
    tmp_path: Path,
    stopped: ProcessId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog_module, "SILENCE", 0.1)
    assert notes.exists(UUID)
    silent_watchdog(starts, recorder, tmp_path / "run", stopped).close()
    assert replaced == [None, stopped]


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_guests_that_may_still_be_frozen_at_the_end_are_left_to_no_watchdog_that_was_killed(
    starts: list[Connection],
    recorder: Recorder,
    notes: FreezeNotes,
    tmp_path: Path,
    stopped: ProcessId,
    seconds: float,
) -> None:
    """Neither one that was restarted a moment ago, nor one that dies while it is waited for."""
    assert notes.exists(UUID)
    watchdog = silent_watchdog(starts, recorder, tmp_path / "run", stopped)
    starts[0].close()
    check_until_started(watchdog, starts, 2)
    starts[1].send_bytes(b"null")
    watchdog.wait_until_ready(lambda: None)
    dies = threading.Timer(seconds, starts[1].close)
    dies.start()
    if not seconds:
        dies.join()
    watchdog.close()
    assert len(starts) == 3


def test_a_watchdog_that_is_stopped_is_not_left_at_the_end_where_no_guest_is_frozen(
    starts: list[Connection],
    recorder: Recorder,
    tmp_path: Path,
    stopped: ProcessId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog_module, "END_LIMIT", 0.1)
    silent_watchdog(starts, recorder, tmp_path, stopped).close()
    assert (len(starts), is_running(stopped)) == (1, False)


def test_a_process_that_starts_a_watchdog_and_is_stopped_does_not_keep_the_run_from_ending(
    starts: list[Connection], recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "START_LIMIT", 0.2)
    watchdog = Watchdog(settings(runtime_dir=str(tmp_path)), recorder)
    starts[0].close()
    starter = SPAWN.Process(target=time.sleep, args=(600,))
    starter.start()
    assert starter.pid
    os.kill(starter.pid, signal.SIGSTOP)
    watchdog._starters.append(starter)
    waits_for_nobody(watchdog.close)
    assert starter.exitcode == -signal.SIGKILL


def test_a_watchdog_does_not_wait_for_a_main_process_that_reads_no_signs_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    naps = iter(range(10_000))  # its signs fill any pipe
    monkeypatch.setattr(time, "sleep", lambda _: next(naps))
    reader, life = SPAWN.Pipe(duplex=False)

    def show() -> None:
        with pytest.raises(StopIteration):
            watchdog_module._show_life(life, None)

    with reader, life:
        waits_for_nobody(show)
        assert next(naps, None) is None


@pytest.fixture
def watch_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Recorder], None]:
    """Have the watchdog's body in this process: all others of the run have ended."""
    for module, name in ((os, "setsid"), (signal, "signal"), (watchdog_module, "set_title")):
        monkeypatch.setattr(module, name, lambda *_: None)

    def watch(runtime_dir: str, recorder: Recorder) -> None:
        lifeline, others = SPAWN.Pipe(duplex=False)
        others.close()
        with lifeline:
            watchdog_module._watch(lifeline, settings(runtime_dir=runtime_dir), recorder, lambda: None)

    return watch


def test_a_watchdog_that_can_start_no_thread_for_orphans_thaws_and_ends_them(
    watch_here: Callable[[str, Recorder], None],
    notes: FreezeNotes,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    ended: list[bool] = []
    monkeypatch.setattr(watchdog_module, "begun", none_left)
    monkeypatch.setattr(watchdog_module, "end_orphans", lambda _: ended.append(notes.exists(UUID)))
    watch_here(str(tmp_path / "run"), recorder)
    assert not notes.exists(UUID)
    assert ended == [False]


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_a_watchdog_that_cannot_list_its_records_for_a_moment_thaws_all_the_same(
    watch_here: Callable[[str, Recorder], None],
    notes: FreezeNotes,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    listed, fails = thaw_all._with_readable_notes, iter([True, True])

    def listing(groups: Sequence[Settings]) -> Sequence[Settings]:
        if next(fails, False):
            raise error
        return listed(groups)

    monkeypatch.setattr(thaw_all, "_with_readable_notes", listing)
    watch_here(str(tmp_path / "run"), recorder)
    assert not notes.exists(UUID)


def test_a_watchdog_that_can_never_list_its_records_ends_once_another_has_taken_its_place(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing(_: Sequence[Settings]) -> Sequence[Settings]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(thaw_all, "_with_readable_notes", listing)
    is_newest = iter([True, True, False])
    thaw_all.thaw_own(settings(), Thaws(settings(), recorder), lambda: next(is_newest), recorder)
    assert len(recorder.told(Level.ERROR)) == 2


def test_a_watchdog_keeps_nothing_open_for_which_python_waits_at_the_end_of_a_run(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 waits for its resource tracker, which waits for the end of this pipe."""
    tracker, written = os.pipe()
    lives, life = SPAWN.Pipe()

    def watch(*_: object) -> None:
        life.send(os.getpid())
        life.recv()

    monkeypatch.setattr(resource_tracker._resource_tracker, "_fd", written)
    monkeypatch.setattr(watchdog_module, "_watch", watch)
    watchdog_module._detached(life, life, None, settings(), recorder)
    os.close(written)
    with lives, open(tracker, "rb") as ends:
        pid = lives.recv()
        assert select.select([ends], [], [], 5)[0], "the tracker sees the end of its pipe"
        lives.send("end")
        assert os.waitpid(pid, 0)[1] == 0


def test_without_a_watchdog_that_watches_nothing_is_quiesced(
    starts: list[Connection], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "START_LIMIT", 0.2)
    watchdog = Watchdog(settings(), recorder)
    with pytest.raises(BackupError, match="the watchdog process did not start within 0 s"):
        watchdog.wait_until_ready(lambda: None)
    starts[0].close()
    watchdog.close()
