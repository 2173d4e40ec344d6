"""outputs/restic.py: a repository that another program, such as a prune, has locked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup.errors import Interrupted
from backup.model import Level
from outputs.restic import Restic
from outputs.restic_repository import repository as restic_repository
from outputs.restic_repository.messages import ResticError

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..recorder import Recorder
from ..repository import Repository
from ..samples import domain, rbd_disk, restore_point
from ..waiting import wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 1 << 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restic_repository, "LOCK_PAUSE", 0.05)


@contextmanager
def exclusively_locked(repository: Repository) -> Iterator[subprocess.Popen[bytes]]:
    """Stop a live program that has locked the repository."""
    environment = {
        **os.environ,
        "RESTIC_REPOSITORY": str(repository.path),
        "RESTIC_PASSWORD_FILE": str(repository.password_file),
    }
    command = ["restic", "--no-cache", "check"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as program:
        try:
            wait_until(lambda: program.poll() is not None or repository.locks(), 10, "it has its lock")
            program.send_signal(signal.SIGSTOP)
            assert repository.locks(), "it was too quick to be held"
            yield program
        finally:
            program.send_signal(signal.SIGCONT)
            program.wait(20)


def save(repository: Repository, job: JobOnPaper, lock_wait: float) -> None:
    source = MemorySource(MemorySnapshot(5 * MIB, {0: b"data"}), rbd_disk("vda", "vms/web"))
    point = restore_point(domain(disks=[source.disk]))
    Restic(repository.program(), lock_wait).save(point, [source], job)


class GoesOnAtTheFirstMessage(Recorder):
    """Resumes the other program as soon as the wait is reported."""

    other: subprocess.Popen[bytes]

    def message(self, level: Level, domain: str, text: str) -> None:
        super().message(level, domain, text)
        self.other.send_signal(signal.SIGCONT)


def test_a_live_program_is_waited_for_and_its_lock_stays(repository: Repository) -> None:
    recorder = GoesOnAtTheFirstMessage()
    with exclusively_locked(repository) as recorder.other:
        save(repository, JobOnPaper(recorder), lock_wait=30)
        assert recorder.other.wait(20) == 0, "its lock was removed under it"
    assert set(repository.snapshots()) == {"vda.img of web", "definition.tar of web"}
    (waiting,) = recorder.told(Level.WARNING)
    assert waiting.startswith("waiting up to 30 s (LOCK_WAIT): restic backup failed")


def test_each_further_attempt_is_a_sign_of_life(repository: Repository) -> None:
    attempts = iter(range(3))

    def save() -> str:
        if next(attempts, None) is None:
            return "saved"
        raise ResticError("already locked", locked=True)

    recorder, output = Recorder(), Restic(repository.program(), 30)
    assert output.when_unlocked(save, restore_point(domain()), JobOnPaper(recorder)) == "saved"
    assert [level for level, _, _ in recorder.messages] == [Level.WARNING, Level.DEBUG, Level.DEBUG]


def test_the_wait_ends_at_its_limit_and_the_live_lock_stays(repository: Repository) -> None:
    with exclusively_locked(repository):
        with pytest.raises(ResticError, match="already locked") as caught:
            save(repository, JobOnPaper(), lock_wait=0)
        assert caught.value.transient
        assert "LOCK_WAIT" in caught.value.hint
        assert len(repository.locks()) == 1
    assert repository.snapshots() == {}


def test_a_foreign_lock_stays_even_if_its_owner_is_dead(repository: Repository) -> None:
    with exclusively_locked(repository) as other:
        other.kill()
        other.wait(10)
    recorder = Recorder()
    Restic(repository.program()).discard((), wait_if_busy=False)
    with pytest.raises(ResticError) as caught:
        save(repository, JobOnPaper(recorder), lock_wait=0.1)
    assert len(repository.locks()) == 1
    for message in (caught.value, *recorder.told(Level.WARNING)):
        for words in (
            f"locked exclusively by PID {other.pid} on ",
            "lock was created at ",
            "`restic unlock`",
        ):
            assert words in str(message)


def test_a_request_to_stop_ends_the_wait(repository: Repository, tmp_path: Path) -> None:
    class StopsAtTheFirstMessage(Recorder):
        def message(self, level: Level, domain: str, text: str) -> None:
            job.stop.request(Interrupted("interrupted", 15))

    job = JobOnPaper(StopsAtTheFirstMessage())
    with exclusively_locked(repository), raises("interrupted", Interrupted):
        save(repository, job, lock_wait=600)
    assert repository.snapshots() == {}


def test_listing_restore_points_needs_no_lock(repository: Repository) -> None:
    with exclusively_locked(repository):
        assert Restic(repository.program()).last_saved("of no domain") is None
