"""backup/instant/serving.py: a restore point is served for long, and opened again if it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from backup.errors import BackupError, TransientError
from backup.instant import serving
from backup.instant.serving import Serving
from backup.model import Level
from backup.mount.shown_file import File
from backup.mount.shown_point import ShownPoint
from backup.protocols import Output
from backup.stored import StoredPoint

from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB
from ..waiting import wait_until
from .test_server import CONTENT, HERE, Memory


@dataclass
class Repository:
    """Opens a restore point; `broken` is an error of its next opening, `ended` one of the open point."""

    broken: list[Exception] = field(default_factory=list)
    ended: list[BackupError] = field(default_factory=list)
    damage: str = ""
    content: Memory = field(default_factory=Memory)
    openings: int = 0

    @contextmanager
    def opened(self, *_: object) -> Iterator[ShownPoint]:
        self.openings += 1
        if self.broken:
            raise self.broken.pop()
        disks = {"vda": File("vda.raw", self.content, MIB)}
        shown: Any = ShownPoint(cast(Any, None), disks, (), self._check, lambda: self.damage)
        yield shown

    def _check(self) -> None:
        if self.ended:
            raise self.ended.pop()


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    repository = Repository()
    monkeypatch.setattr(serving, "opened_point", repository.opened)
    monkeypatch.setattr(serving, "POLL", 0.01)
    monkeypatch.setattr(serving, "FIRST_PAUSE", 0.01)
    return repository


def serve(tmp_path: Path, recorder: Recorder) -> Serving:
    output, point = cast(Output, None), cast(StoredPoint, None)
    socket = str(tmp_path / "nbd")
    return Serving(output, point, ["vda"], socket, HERE, 5, recorder, "web", lambda: None)


def first_bytes(tmp_path: Path) -> bool:
    """Read as QEMU does; return whether that succeeded."""
    where = f"nbd+unix:///vda?socket={tmp_path}/nbd"
    pattern = f"read -v 0 {len(CONTENT[:16])}"
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "raw", "-c", pattern, where], capture_output=True, check=False
    )
    return done.returncode == 0


def test_it_is_served_until_the_end_and_a_socket_of_a_killed_process_is_replaced(
    tmp_path: Path, recorder: Recorder, repository: Repository
) -> None:
    (tmp_path / "nbd").touch()
    with serve(tmp_path, recorder).running() as running:
        assert running.ready
        assert first_bytes(tmp_path)
    assert not first_bytes(tmp_path)
    assert recorder.messages == []


def test_a_restore_point_that_fails_is_opened_again_until_it_is_served(
    tmp_path: Path, recorder: Recorder, repository: Repository
) -> None:
    with serve(tmp_path, recorder).running() as running:
        repository.broken = [TransientError("no answer"), TransientError("no answer")]
        repository.ended = [TransientError("restic mount has ended")]
        wait_until(lambda: repository.openings == 4 and running.ready, 5, "it is opened again")
        assert first_bytes(tmp_path)
    told = recorder.told(Level.WARNING)
    assert told == [
        "the restore point is opened again: restic mount has ended",
        "the restore point is opened again: no answer",
    ], "each reason once"


def test_what_cannot_be_opened_at_first_or_not_be_read_is_an_error_before_any_guest_starts(
    tmp_path: Path, recorder: Recorder, repository: Repository
) -> None:
    repository.broken = [BackupError("wrong password")]
    with raises("wrong password"), serve(tmp_path, recorder).running():
        raise AssertionError("the block must not begin")
    repository.content = Memory(damaged=[0])
    with raises("the pack is missing"), serve(tmp_path, recorder).running():
        raise AssertionError("the block must not begin")


def test_data_that_the_repository_has_lost_is_named_once_while_the_guest_waits(
    tmp_path: Path, recorder: Recorder, repository: Repository
) -> None:
    with serve(tmp_path, recorder).running():
        repository.damage = "the pack 0123abcd is missing"
        wait_until(lambda: recorder.messages, 5, "it is reported")
    text = "the guest waits for what the repository has lost: the pack 0123abcd is missing"
    assert recorder.told(Level.WARNING) == [text]


def test_a_bug_ends_the_command_and_not_only_its_thread(
    tmp_path: Path, recorder: Recorder, repository: Repository
) -> None:
    with serve(tmp_path, recorder).running() as running:
        repository.broken = [ValueError("a bug")]
        repository.ended = [TransientError("restic mount has ended")]
        wait_until(lambda: not running.ready, 5, "it has ended")
        with pytest.raises(ValueError, match="a bug"):
            wait_until(lambda: running.check(), 5, "it is raised")
