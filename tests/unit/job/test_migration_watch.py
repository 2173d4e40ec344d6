"""backup/job/migration_watch.py: a migration that begins while a domain is quiesced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import TransientError
from backup.hypervisor.errors import HypervisorError
from backup.job import migration_watch
from backup.job.freeze_notes import FreezeNotes
from backup.job.migration_watch import MigrationWatch
from backup.model import Level, State

from ..paper_hypervisor import PaperHypervisor
from ..recorder import Recorder
from ..samples import domain
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
    def watched(self, must_stay: bool, state: State = State.RUNNING) -> Iterator[MigrationWatch]:
        watch = MigrationWatch(domain(state=state), self.hypervisor, self.recorder, lambda: must_stay)
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
    with web.watched(must_stay=True) as watch:
        wait_until(lambda: web.looked > 3, 10, "it is watched")
        watch.check()
    assert web.hypervisor.cancelled == 0


@pytest.mark.parametrize("state", [State.BUSY, State.ELSEWHERE])
def test_a_migration_ends_the_quiesced_moment(web: Watched, state: State) -> None:
    with web.watched(must_stay=False) as watch:
        web.hypervisor.listed = domain(state=state)
        wait_until(_raises(watch), 10, "the watch has noticed it")
    assert (web.hypervisor.cancelled, web.recorder.told(Level.WARNING)) == (0, [])


def test_a_domain_that_was_destroyed_and_undefined_is_saved_nevertheless(web: Watched) -> None:
    with web.watched(must_stay=False) as watch:
        web.hypervisor.gone = True
        wait_until(lambda: not _watches(), 10, "the watch has ended")
        watch.check()


def test_a_migration_that_would_carry_the_pause_along_is_cancelled_and_reported(web: Watched) -> None:
    with web.watched(must_stay=True) as watch:
        web.hypervisor.listed = domain(state=State.BUSY)
        wait_until(_raises(watch), 10, "the watch has noticed it")
        wait_until(lambda: web.recorder.told(Level.WARNING), 10, "it is reported")
    assert web.hypervisor.cancelled == 1
    (warning,) = web.recorder.told(Level.WARNING)
    assert warning.startswith("cancelled its migration, which began while the guest was being frozen")


def test_a_libvirt_that_does_not_answer_ends_no_watch(web: Watched) -> None:
    with web.watched(must_stay=False) as watch:
        web.hypervisor.state = _failing_then(State.BUSY)  # type: ignore
        wait_until(_raises(watch), 10, "the watch has noticed it")


def test_a_domain_that_does_not_run_is_not_watched(web: Watched) -> None:
    web.hypervisor.gone = True
    with web.watched(must_stay=True, state=State.SHUT_OFF) as watch:
        watch.check()
    assert web.looked == 0


def _failing_then(last: State) -> Callable[[str], State]:
    errors = [HypervisorError("no answer")] * 3

    def state(uuid: str) -> State:
        if errors:
            raise errors.pop()
        return last

    return state


def _watches() -> bool:
    return any(thread.name == "migration" for thread in threading.enumerate())


def _raises(watch: MigrationWatch) -> Callable[[], bool]:
    def raises() -> bool:
        try:
            watch.check()
        except TransientError:
            return True
        return False

    return raises
