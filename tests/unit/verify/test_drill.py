"""backup/verify/drill.py: the order of drills, and what is recorded of their results."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from backup.ceph.cluster import Cluster
from backup.errors import BackupError, DrillFailed, Interrupted, TransientError
from backup.model import Image, Level
from backup.report.domain_record import DomainRecord, read_records
from backup.restore_point import manifest
from backup.stored import SavedDomain, StoredPoint
from backup.system import time_limit
from backup.system.stop_request import StopRequest
from backup.verify.drill import Drill, due
from outputs.restic_repository.messages import failure

from ..memory_snapshot import MemorySnapshot
from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB, OTHER_UUID, UUID, settings
from ..stored_points import HeldPoints

BOTH = {UUID: "web", OTHER_UUID: "db"}


@dataclass(frozen=True)
class DrillOnPaper(Drill):
    """Fails with this error, or succeeds without one."""

    error: BackupError | None = None

    def _prove(self, point: StoredPoint) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def drill(
    state_dir: str, recorder: Recorder, error: BackupError | None = None, stop: StopRequest | None = None
) -> str:
    changed = settings(state_dir=state_dir, drill_pool="scratch")
    return DrillOnPaper(changed, HeldPoints(BOTH), recorder, stop or StopRequest(), error=error).drill("")


@pytest.mark.parametrize(
    ("known", "whose"),
    [
        ({}, UUID),
        ({UUID: DomainRecord(tried="2024-02-03")}, OTHER_UUID),
        ({UUID: DomainRecord(tried="2999-01-01"), OTHER_UUID: DomainRecord(tried="2024-02-03")}, UUID),
        ({UUID: DomainRecord(tried="2024-02-03"), OTHER_UUID: DomainRecord(tried="2024-02-02")}, OTHER_UUID),
        ({UUID: DomainRecord(tried="2024-02-01"), OTHER_UUID: DomainRecord(tried="2024-02-02")}, UUID),
    ],
)
def test_the_domain_whose_last_drill_is_longest_ago_is_next(
    known: Mapping[str, DomainRecord], whose: str
) -> None:
    assert due(HeldPoints(BOTH).restore_points(), known) == whose


def test_a_repository_that_does_not_answer_once_is_asked_again(state_dir: str, recorder: Recorder) -> None:
    changed = settings(state_dir=state_dir, drill_pool="scratch")
    assert DrillOnPaper(changed, HeldPoints(BOTH, broken=1), recorder, StopRequest()).drill("web") == "web"


def test_a_domain_whose_drill_fails_does_not_block_the_others(state_dir: str, recorder: Recorder) -> None:
    with raises("it is damaged", DrillFailed):
        drill(state_dir, recorder, BackupError("it is damaged"))
    assert drill(state_dir, recorder) == "db"
    known = read_records(state_dir)
    assert (known[UUID].drilled, known[UUID].failure) == ("", "it is damaged")
    assert (known[OTHER_UUID].drilled > "2020", known[OTHER_UUID].failure) == (True, "")


def test_data_that_restic_finds_damaged_fail_the_drill(state_dir: str, recorder: Recorder) -> None:
    """Its error counts as transient, as most of restic's: a run retries it."""
    error = failure("dump", 1, "ciphertext verification failed", "")
    assert error.transient
    with raises("restic dump failed with exit code 1", DrillFailed):
        drill(state_dir, recorder, error)
    assert read_records(state_dir)[UUID].failure == "restic dump failed with exit code 1"


@pytest.mark.parametrize(
    "error", [TransientError("it is under way"), Interrupted("interrupted", signal.SIGINT)]
)
def test_an_interrupt_or_transient_error_is_no_failure_of_the_restore_point(
    state_dir: str, recorder: Recorder, error: BackupError
) -> None:
    with raises(error.message, type(error)):
        drill(state_dir, recorder, error)
    assert read_records(state_dir)[UUID].failure == ""


@pytest.mark.parametrize(
    "error",
    [Interrupted("interrupted", signal.SIGTERM), TransientError("restic ended"), BackupError("restic ended")],
)
def test_a_drill_that_was_abandoned_comes_again_and_removes_its_images(
    state_dir: str, recorder: Recorder, error: BackupError, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    stop.signal_number = signal.SIGTERM

    def interrupted(kept: list[Future[None]]) -> str:
        monkeypatch.setattr(time_limit, "_abandoned", kept)
        with pytest.raises((Interrupted, TransientError)):
            drill(state_dir, recorder, error, stop)
        return due(HeldPoints(BOTH).restore_points(), read_records(state_dir))

    assert due(HeldPoints(BOTH).restore_points(), {}) == UUID
    assert interrupted([Future()]) == UUID, "images are left of it"
    assert interrupted([]) == OTHER_UUID, "one that takes too long does not block the others"


def test_the_result_of_a_drill_is_reported_even_if_it_cannot_be_recorded(
    tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "state").touch()
    state_dir = f"{tmp_path}/state"
    assert drill(state_dir, recorder) == "web"
    with raises("it is damaged", DrillFailed):
        drill(state_dir, recorder, BackupError("it is damaged"))
    assert {"cannot record" in text for text in recorder.told(Level.WARNING)} == {True}


def test_a_restore_point_without_checksums_fails_the_drill(
    state_dir: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = manifest.unpack

    def of_an_older_version(packed: bytes) -> SavedDomain:
        return replace(unpack(packed), checksums={})

    monkeypatch.setattr(manifest, "unpack", of_an_older_version)
    changed = settings(state_dir=state_dir, drill_pool="scratch", ceph_conf="/nowhere")
    with pytest.raises(DrillFailed, match="saved no checksums of vda"):
        Drill(changed, HeldPoints(BOTH), recorder, StopRequest()).drill("web")
    assert read_records(state_dir)[UUID].drilled == ""


class ClusterOnPaper:
    """Has one image; closing it waits for the reads in flight."""

    closed = False

    @contextmanager
    def head_reader(self, _image: Image) -> Iterator[MemorySnapshot]:
        snapshot = MemorySnapshot(20 * MIB)
        try:
            yield snapshot
        finally:
            self.closed = True


def test_an_interrupted_drill_closes_the_image(state_dir: str, recorder: Recorder) -> None:
    stop, cluster, output = StopRequest(), ClusterOnPaper(), HeldPoints(BOTH)
    saved = manifest.unpack(output.manifest(output.restore_points()[0]))
    stop.request(Interrupted("interrupted", signal.SIGINT))
    with raises("interrupted", Interrupted):
        Drill(settings(), output, recorder, stop)._verify(
            saved, saved.images[0], Image("scratch", "vda"), cast(Cluster, cluster)
        )
    assert cluster.closed
