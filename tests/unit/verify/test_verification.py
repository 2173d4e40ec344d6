"""backup/verify/verification.py: failures are reported and recorded at once, and nothing else is."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Callable, Optional

import pytest

from backup.errors import BackupError, Interrupted
from backup.job_result import Phase
from backup.model import Level
from backup.report.domain_record import DomainRecords, read_records
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.restore_point.find import with_current_ids
from backup.stored import Packed, PointId, SavedDomain, SavedImage, StoredPoint
from backup.system.spool import Spool
from backup.system.stop_request import StopRequest
from backup.verify import verification as verification_module
from backup.verify.verification import Verification, Verified

from ..memory_snapshot import MemorySnapshot
from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB, OTHER_UUID, RUN, TAKEN, UUID, domain, restore_point, settings
from ..stored_points import CONTENT, HeldPoints

BOTH = {UUID: "web", OTHER_UUID: "db"}
DAMAGED = b"S" + CONTENT[1:]


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def verification(output: HeldPoints, state_dir: str, recorder: Recorder, stop: StopRequest) -> Verification:
    return Verification(settings(state_dir=state_dir, workers=1), output, recorder, stop)


def test_verified_images_are_counted_and_recorded(state_dir: str, recorder: Recorder) -> None:
    output = HeldPoints(BOTH, {"web": DAMAGED})
    verified = verification(output, state_dir, recorder, StopRequest()).verify((), "latest")
    assert verified == Verified(failed=1, images=1, size=MIB)
    known = read_records(state_dir)
    assert "differs from what was saved" in known[UUID].failure
    assert (known[OTHER_UUID].verified > "2020", known[OTHER_UUID].failure) == (True, "")


def test_a_repository_that_does_not_answer_once_is_asked_again(
    state_dir: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)  # an admin waits for it
    output = HeldPoints(BOTH, broken=1)
    assert verification(output, state_dir, recorder, StopRequest()).verify((), "latest").images == 2
    assert recorder.told(Level.WARNING) == ["connection reset; retried in 0 s (RETRY_FOR), 60 of 60 s left"]


def test_progress_and_end_of_each_domain_are_reported(state_dir: str, recorder: Recorder) -> None:
    output = HeldPoints(BOTH, {"web": DAMAGED})
    verification(output, state_dir, recorder, StopRequest()).verify((), "latest")
    assert sorted(recorder.plan) == [(UUID, "web", MIB), (OTHER_UUID, "db", MIB)]
    assert {(domain, phase) for domain, phase, _ in recorder.phases} == {
        (name, Phase.VERIFY) for name in ("web", "db")
    }
    assert set(recorder.progressed) == {("web", "vda", MIB, MIB), ("db", "vda", MIB, MIB)}
    assert sorted(recorder.ends) == [(UUID, True), (OTHER_UUID, False)]


class Together(HeldPoints):
    """An image is read only once another one is under way, too."""

    together = threading.Barrier(2, timeout=20)

    def image(self, image: SavedImage, check_stop: Callable[[], None]):  # type: ignore[no-untyped-def]
        self.together.wait()
        return super().image(image, check_stop)


@pytest.mark.parametrize("numbers", [{"streams": 2, "workers": 1}, {"streams": 0, "workers": 2}])
def test_so_many_images_are_read_at_a_time(
    state_dir: str, recorder: Recorder, numbers: dict[str, int]
) -> None:
    chosen = settings(state_dir=state_dir, **numbers)
    verified = Verification(chosen, Together(BOTH), recorder, StopRequest()).verify((), "latest")
    assert (verified.images, recorder.told(Level.ERROR)) == (2, [])


def test_nothing_to_verify_is_an_error(state_dir: str, recorder: Recorder) -> None:
    with raises("there is no restore point to verify"):
        verification(HeldPoints({}), state_dir, recorder, StopRequest()).verify((), "latest")


def test_a_time_without_a_restore_point_is_not_recorded_as_a_failure(
    state_dir: str, recorder: Recorder
) -> None:
    verified = verification(HeldPoints(BOTH), state_dir, recorder, StopRequest()).verify((), "2020-01-01")
    assert (verified.failed, read_records(state_dir)) == (2, {})


class WithOlder(HeldPoints):
    """Has an older restore point of web, too, which is sound."""

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        (newest,) = super().restore_points()
        older = replace(newest, id=PointId("20240101T000000Z-aaaa", UUID), taken=TAKEN - timedelta(days=9))
        return [older, newest]


@pytest.mark.parametrize(("at", "passes"), [("20240101", False), ("latest", True), (RUN, True)])
def test_only_a_verification_of_the_newest_restore_point_clears_a_failure(
    at: str, passes: bool, state_dir: str, recorder: Recorder
) -> None:
    DomainRecords(state_dir, recorder).update(UUID, "web", failure="the newest is damaged")
    verified = verification(WithOlder({UUID: "web"}), state_dir, recorder, StopRequest()).verify((), at)
    known = read_records(state_dir)[UUID]
    assert (verified.failed, verified.images) == (0, 1)
    assert (known.failure == "", known.verified > "2020") == (passes, passes)


def test_an_older_restore_point_that_fails_is_recorded(state_dir: str, recorder: Recorder) -> None:
    output = WithOlder({UUID: "web"}, {"web": DAMAGED})
    verification(output, state_dir, recorder, StopRequest()).verify((), "20240101")
    assert "differs from what was saved" in read_records(state_dir)[UUID].failure


class Stopping(HeldPoints):
    """The stop is requested when the second image is to be read, whose program gets the signal too."""

    def __init__(self, stop: StopRequest) -> None:
        super().__init__(BOTH, {"web": DAMAGED, "db": DAMAGED})
        self.stop = stop
        self.images = 0

    def image(self, image: SavedImage, check_stop: Callable[[], None]):  # type: ignore[no-untyped-def]
        self.images += 1
        if self.images == 2:
            self.stop.request(Interrupted("interrupted", signal.SIGINT))
            raise BackupError("restic dump was killed by SIGINT")
        return super().image(image, check_stop)


def test_findings_before_an_interrupt_are_reported_and_recorded(state_dir: str, recorder: Recorder) -> None:
    stop = StopRequest()
    with raises("interrupted", Interrupted):
        verification(Stopping(stop), state_dir, recorder, stop).verify((), "latest")
    (message,) = recorder.told(Level.ERROR)
    (known,) = read_records(state_dir).values()
    assert "differs from what was saved" in message
    assert "differs from what was saved" in known.failure


class StoppingEarly(HeldPoints):
    """The stop is requested while the first manifest is read."""

    stop = StopRequest()

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        self.read.append(point.domain)
        self.stop.request(Interrupted("interrupted", signal.SIGINT))
        raise BackupError("restic dump was killed by SIGINT")


def test_an_interrupt_ends_the_reading_of_manifests(state_dir: str, recorder: Recorder) -> None:
    output = StoppingEarly(BOTH)
    with raises("interrupted", Interrupted):
        verification(output, state_dir, recorder, output.stop).verify((), "latest")
    assert (output.read, recorder.messages, read_records(state_dir)) == (["web"], [], {})


@pytest.mark.parametrize(("still_there", "failed"), [(True, 2), (False, 0)])
def test_a_base_snapshot_that_was_removed_meanwhile_is_no_mismatch(
    state_dir: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, still_there: bool, failed: int
) -> None:
    answers = iter([True, still_there] * len(BOTH))

    @contextmanager
    def removed_meanwhile(_image: SavedImage, _cluster: object) -> Iterator[Optional[MemorySnapshot]]:
        yield MemorySnapshot(MIB) if next(answers) else None  # zeros, as of one that is being removed

    monkeypatch.setattr(verification_module, "snapshot_of", removed_meanwhile)
    verified = verification(HeldPoints(BOTH), state_dir, recorder, StopRequest()).verify((), "latest")
    assert verified.failed == failed


class Incremental(HeldPoints):
    """Its images are in segments, as of incremental backups, which have base snapshots."""

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        saved = manifest.unpack(super().manifest(point, check_stop))
        images = [replace(one, segment_size=MIB) for one in saved.images]
        checksums = {target: Checksums(one) for target, one in saved.checksums.items()}
        return manifest.pack(restore_point(domain(point.domain, point.id.uuid)), images, checksums)


@pytest.mark.parametrize("module", ["rados", "rbd"])
def test_without_ceph_s_modules_incremental_backups_are_compared_with_checksums(
    state_dir: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    output = Incremental(BOTH, {"web": DAMAGED})
    verified = verification(output, state_dir, recorder, StopRequest()).verify((), "latest")
    assert verified == Verified(failed=1, images=1, size=MIB)
    reported = f"comparing with checksums, not with base snapshots: no module {module}"
    assert recorder.told(Level.INFO).count(reported) == 1


class Counting(HeldPoints):
    """Counts what was planned before each manifest was read."""

    def __init__(self, domains: dict[str, str], recorder: Recorder) -> None:
        super().__init__(domains)
        self.recorder = recorder
        self.planned_before: list[int] = []

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        self.planned_before.append(len(self.recorder.plan))
        return super().manifest(point, check_stop)


def test_manifests_are_read_when_needed_and_freed(
    state_dir: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[SavedDomain]] = []
    most = 0

    def counted(saved: SavedDomain, point: StoredPoint) -> SavedDomain:
        nonlocal most
        one = with_current_ids(saved, point)
        alive.append(weakref.ref(one))
        gc.collect()
        most = max(most, sum(other() is not None for other in alive))
        return one

    monkeypatch.setattr(verification_module, "with_current_ids", counted)
    domains = {f"{UUID[:-2]}{number}": f"d{number}" for number in range(10, 30)}
    output = Counting(domains, recorder)
    verified = verification(output, state_dir, recorder, StopRequest()).verify((), "latest")
    assert (verified, len(output.read)) == (Verified(0, 20, 20 * MIB), 20)
    assert set(output.planned_before) == {20}, "what is to come is known before any of it is read"
    assert most <= 3


def test_a_sample_reads_only_the_manifests_of_chosen_domains(state_dir: str, recorder: Recorder) -> None:
    domains = {f"{UUID[:-2]}{number}": f"d{number}" for number in range(10, 30)}
    output = HeldPoints(domains)
    chosen = settings(state_dir=state_dir, workers=2)
    verified = Verification(chosen, output, recorder, StopRequest(), 0.1).verify((), "latest")
    assert (verified, len(output.read)) == (Verified(0, 2, 2 * MIB), 2)
    assert read_records(state_dir) == {}


def test_a_damaged_manifest_fails_its_domain_once(state_dir: str, recorder: Recorder) -> None:
    class Damaged(HeldPoints):
        def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
            packed = super().manifest(point, check_stop)
            return Spool(b"garbage") if point.domain == "web" else packed

    verified = verification(Damaged(BOTH), state_dir, recorder, StopRequest()).verify((), "latest")
    assert verified == Verified(1, 1, MIB)
    (message,) = recorder.told(Level.ERROR)
    assert "manifest is damaged" in message
    assert sorted(recorder.ends) == [(UUID, True), (OTHER_UUID, False)]
