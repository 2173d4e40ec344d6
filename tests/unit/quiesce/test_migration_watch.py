"""backup/quiesce/migration_watch.py: a migration that begins while a domain is quiesced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import TransientError
from backup.hypervisor.errors import HypervisorError
from backup.job.job_order import JobOrder
from backup.job.quiesced_snapshots import QuiescedSnapshots
from backup.model import Consistency, Level, State
from backup.quiesce import migration_watch
from backup.quiesce.freeze import Quiesced
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.quiesce.migration_watch import MigrationWatch
from backup.system.stop_request import StopRequest

from ..paper_hypervisor import PaperHypervisor
from ..recorder import Recorder
from ..samples import UUID, domain, settings
from ..waiting import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_watch, "POLL", 0.001)


class Watched:
    """A domain on paper that is watched."""

    def __init__(self, directory: Path) -> None:
        self.hypervisor = PaperHypervisor(domain(), FreezeNotes(str(directory)))
        self.recorder = Recorder()
        self.looked = 0

    @contextmanager
    def watched(self, binding: Method | None, state: State = State.RUNNING) -> Iterator[MigrationWatch]:
        watch = MigrationWatch(domain(state=state), self.hypervisor, self.recorder, lambda: binding)
        state_of = self.hypervisor.state

        def counted(uuid: str) -> State:
            self.looked += 1
            return state_of(uuid)

        self.hypervisor.state = counted  # type: ignore[method-assign]
        with watch.watching():
            yield watch


@pytest.fixture
def web(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_domain_that_stays_is_left_alone(web: Watched) -> None:
    with web.watched(binding=Method.PAUSE) as watch:
        wait_until(lambda: web.looked > 3, 10, "it is watched")
        watch.check()
    assert web.hypervisor.cancelled == 0


@pytest.mark.parametrize("state", [State.BUSY, State.ELSEWHERE])
def test_a_migration_ends_the_quiesced_moment(web: Watched, state: State) -> None:
    with web.watched(binding=None) as watch:
        web.hypervisor.listed = domain(state=state)
        wait_until(_raises(watch), 10, "the watch has noticed it")
    assert (web.hypervisor.cancelled, web.recorder.told(Level.WARNING)) == (0, [])


def test_a_domain_that_was_destroyed_and_undefined_is_saved_nevertheless(web: Watched) -> None:
    with web.watched(binding=None) as watch:
        wait_until(lambda: web.looked > 0, 10, "it is watched")
        web.hypervisor.gone = True
        looked = web.looked
        time.sleep(0.2)
        assert web.looked <= looked + 2, "the watch has ended"
        watch.check()


@pytest.mark.parametrize(("method", "sends"), [("pause", False), ("pause", True), ("freeze", True)])
def test_a_migration_that_would_carry_the_freeze_or_pause_along_is_cancelled_and_reported(
    web: Watched, method: str, sends: bool
) -> None:
    web.hypervisor.sends_memory = sends
    with web.watched(Method(method)) as watch:
        web.hypervisor.listed = domain(state=State.BUSY)
        wait_until(_raises(watch), 10, "the watch has noticed it")
        wait_until(lambda: web.recorder.told(Level.WARNING), 10, "it is reported")
    assert web.hypervisor.cancelled == 1
    (warning,) = web.recorder.told(Level.WARNING)
    assert warning.startswith("cancelled its migration, which began while the guest was being frozen")


def test_a_migration_that_is_being_prepared_while_the_guest_is_being_frozen_goes_on(web: Watched) -> None:
    """The freeze ends first, and the guest is thawed."""
    web.hypervisor.sends_memory = False
    with web.watched(Method.FREEZE) as watch:
        web.hypervisor.listed = domain(state=State.BUSY)
        wait_until(_raises(watch), 10, "the watch has noticed it")
        looked = web.looked
        wait_until(lambda: web.looked > looked + 3, 10, "it watches on")
        assert (web.hypervisor.cancelled, web.recorder.told(Level.WARNING)) == (0, [])
        web.hypervisor.sends_memory = True
        wait_until(lambda: web.hypervisor.cancelled, 10, "the freeze would end on the destination")


@pytest.mark.parametrize(
    "error",
    [HypervisorError("no answer"), MemoryError(), RuntimeError("can't start new thread")],
    ids=["no answer", "no memory", "no thread"],
)
def test_a_libvirt_that_cannot_be_asked_ends_no_watch(web: Watched, error: Exception) -> None:
    with web.watched(binding=None) as watch:
        web.hypervisor.state = _failing_then(State.BUSY, error)  # type: ignore
        wait_until(_raises(watch), 10, "the watch has noticed it")


def test_the_watch_begins_where_a_thread_s_start_would_wait_for_ever(
    web: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As threading's does for a thread that had no memory to begin."""

    def start(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread.name} waits for ever")

    monkeypatch.setattr(threading.Thread, "start", start)
    with web.watched(binding=None) as watch:
        web.hypervisor.listed = domain(state=State.BUSY)
        wait_until(_raises(watch), 10, "the watch has noticed it")


def test_a_domain_that_does_not_run_is_not_watched(web: Watched) -> None:
    web.hypervisor.gone = True
    with web.watched(binding=Method.PAUSE, state=State.SHUT_OFF) as watch:
        watch.check()
    assert web.looked == 0


def _failing_then(last: State, error: Exception) -> Callable[[str], State]:
    errors = [error] * 3

    def state(uuid: str) -> State:
        if errors:
            raise errors.pop()
        return last

    return state


def _raises(watch: MigrationWatch) -> Callable[[], bool]:
    def raises() -> bool:
        try:
            watch.check()
        except TransientError:
            return True
        return False

    return raises


@pytest.mark.parametrize(
    ("method", "consistency", "binding"),
    [
        (Method.FREEZE, None, Method.FREEZE),
        (Method.FREEZE, Consistency.FILESYSTEM, None),
        (Method.PAUSE, None, Method.PAUSE),
        (Method.PAUSE, Consistency.PAUSED, Method.PAUSE),
        (Method.FREEZE, Consistency.CRASH, None),
        (None, None, None),
    ],
    ids=["being frozen", "frozen", "being paused", "paused", "frozen by an earlier backup", "running"],
)
def test_what_cannot_be_undone_while_a_guest_migrates_is_a_pause_and_a_freeze_that_has_not_ended(
    tmp_path: Path, method: Method | None, consistency: Consistency | None, binding: Method | None
) -> None:
    notes = FreezeNotes(str(tmp_path))
    if method:
        notes.write(domain(), method)
    taker = QuiescedSnapshots(JobOrder("r", "web", UUID), settings(), Recorder(), StopRequest(), lambda: None)
    taker.quiesced = Quiesced(consistency, 30.0) if consistency else None
    assert taker._binding(domain(), notes) is binding
