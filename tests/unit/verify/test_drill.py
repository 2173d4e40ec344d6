"""backup/verify/drill.py: whose turn it is, and what is noted of how a drill ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
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
from backup.system.stop_request import StopRequest
from backup.verify.drill import Drill, due

from ..memory_snapshot import MemorySnapshot
from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB, OTHER_UUID, UUID, settings
from ..stored_points import HeldPoints

BOTH = {UUID: "web", OTHER_UUID: "db"}


@dataclass(frozen=True)
class DrillOnPaper(Drill):
    """Ends with this error, or well."""

    error: BackupError | None = None

    def _restore_and_verify(self, point: StoredPoint) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def drill(state_dir: str, recorder: Recorder, error: BackupError | None = None) -> str:
    changed = settings(state_dir=state_dir, drill_pool="scratch")
    return DrillOnPaper(changed, HeldPoints(BOTH), recorder, StopRequest(), error=error).drill("")


@pytest.mark.parametrize(
    ("known", "whose"),
    [
        ({}, UUID),
        ({UUID: DomainRecord(tried="2024-02-03")}, OTHER_UUID),
        ({UUID: DomainRecord(tried="2024-02-03"), OTHER_UUID: DomainRecord(tried="2024-02-02")}, OTHER_UUID),
        ({UUID: DomainRecord(tried="2024-02-01"), OTHER_UUID: DomainRecord(tried="2024-02-02")}, UUID),
    ],
)
def test_it_is_the_turn_of_who_was_tried_longest_ago(known: Mapping[str, DomainRecord], whose: str) -> None:
    assert due(HeldPoints(BOTH).restore_points(), known) == whose


def test_a_domain_that_can_not_be_drilled_does_not_keep_the_others_from_it(
    state_dir: str, recorder: Recorder
) -> None:
    with raises("it is damaged", DrillFailed):
        drill(state_dir, recorder, BackupError("it is damaged"))
    assert drill(state_dir, recorder) == "db"
    known = read_records(state_dir)
    assert (known[UUID].drilled, known[UUID].failure) == ("", "it is damaged")
    assert (known[OTHER_UUID].drilled > "2020", known[OTHER_UUID].failure) == (True, "")


@pytest.mark.parametrize(
    "error", [TransientError("it is under way"), Interrupted("interrupted", signal.SIGINT)]
)
def test_what_says_nothing_of_the_restore_point_is_no_failure_of_it(
    state_dir: str, recorder: Recorder, error: BackupError
) -> None:
    with raises(error.message, type(error)):
        drill(state_dir, recorder, error)
    assert read_records(state_dir)[UUID].failure == ""


def test_how_a_drill_ended_is_told_even_if_it_can_not_be_noted(tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "state").touch()
    state_dir = f"{tmp_path}/state"
    assert drill(state_dir, recorder) == "web"
    with raises("it is damaged", DrillFailed):
        drill(state_dir, recorder, BackupError("it is damaged"))
    assert {"cannot record" in text for text in recorder.told(Level.WARNING)} == {True}


def test_what_has_no_checksums_can_not_be_proven(
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
    """Has one image, in which no read may be under way when it is closed."""

    @contextmanager
    def head_reader(self, _image: Image) -> Iterator[MemorySnapshot]:
        snapshot = MemorySnapshot(20 * MIB)
        try:
            yield snapshot
        finally:
            self.pending = set(snapshot.pending)


def test_an_image_is_not_closed_over_reads_when_a_drill_is_interrupted(
    state_dir: str, recorder: Recorder
) -> None:
    stop, cluster, output = StopRequest(), ClusterOnPaper(), HeldPoints(BOTH)
    saved = manifest.unpack(output.manifest(output.restore_points()[0]))
    stop.request(Interrupted("interrupted", signal.SIGINT))
    with raises("interrupted", Interrupted):
        Drill(settings(), output, recorder, stop)._verify(
            saved, saved.images[0], Image("scratch", "vda"), cast(Cluster, cluster)
        )
    assert cluster.pending == set()
