"""backup/job/domain_job.py with an incremental output: which base snapshots stay, and when."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Callable, Optional

import pytest

from backup.ceph.errors import SnapshotInUse
from backup.errors import BackupError, Interrupted, PreviousBackupDamaged, TransientError
from backup.job.domain_job import DomainJob
from backup.job.job_order import JobOrder
from backup.job_result import Phase, Status
from backup.model import Consistency, Definition, Image, Level
from backup.protocols import Job, SnapshotSource
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, SnapshotId, StoredPoint
from backup.system.spool import Spool

from ..paper_node import PaperNode, PaperOutput
from ..samples import FSID, LAYOUT, RUN, TAKEN, URI, UUID, domain, held_point, rbd_disk, settings

BEFORE = "20230101T000000Z-efgh"
OWNED, KEPT = f"virt-rbd-backup.{UUID}.", f"virt-rbd-backup.kept.{UUID}."
IMAGES = ("vms/root", "vms/data")


class KeepingOutput(PaperOutput):
    """Builds on a snapshot of each image that a run has saved: of BEFORE on the one of id 7."""

    keeps_base_snapshots = True
    bases: Sequence[str] = ()  # names of the base snapshots, "" for none
    there: Sequence[set[str]] = ()  # our snapshots while it saved
    known: Sequence[StoredPoint] = ()
    error: BackupError | None = None
    complete: Sequence[tuple[str, int]] = ((BEFORE, 7),)  # runs with the ids of their snapshots, newest first

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        self.known = known
        found = next((one for one in self.complete if one[0] in runs), None)
        if not found:
            return None
        run, number = found
        sources = [SnapshotId(FSID, f"id of {name}", number) for name in IMAGES]
        images = tuple(
            SavedImage(target, name, 1, 1, 1, 0.1, "id", LAYOUT, source=source)
            for target, name, source in zip(("vda", "vdb"), IMAGES, sources)
        )
        checksums = {"vda": Spool(), "vdb": Spool()}
        point = PointId(run, uuid)
        return SavedDomain(point, "web", TAKEN, Consistency.CRASH, images, (), Definition(""), checksums)

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        self.bases = [source.base.snapshot if source.base else "" for source in sources]
        self.there = [self.node.ours(name) for name in IMAGES]
        images = super().save(point, sources, job)
        for source, image in zip(sources, images):
            job.image_saved(source, image)
        if self.error:
            raise self.error
        return images


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperNode:
    disks = [rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data")]
    node = PaperNode(tmp_path, monkeypatch, domain(disks=disks))
    node.output = KeepingOutput(node)
    return node


def keeping(node: PaperNode) -> KeepingOutput:
    assert isinstance(node.output, KeepingOutput)
    return node.output


def add(node: PaperNode, name: str, number: int = 7) -> None:
    for image in IMAGES:
        node.cluster.snapshots[image].add(name)
        node.cluster.numbers[(image, name)] = number


def left(node: PaperNode) -> list[set[str]]:
    return [node.ours(name) for name in IMAGES]


def test_the_first_run_has_no_base_and_keeps_its_snapshots(node: PaperNode) -> None:
    assert node.back_up().status is Status.SAVED
    assert keeping(node).bases == ["", ""]
    assert left(node) == [{f"{KEPT}{RUN}"}] * 2
    assert all("foreign" in names for names in node.cluster.snapshots.values())


@pytest.mark.parametrize("prefix", [KEPT, OWNED], ids=["base", "leftover of a run killed at its end"])
def test_the_next_run_builds_on_them_and_keeps_only_its_own(node: PaperNode, prefix: str) -> None:
    add(node, f"{prefix}{BEFORE}")
    assert node.back_up().status is Status.SAVED
    assert keeping(node).bases == [f"{prefix}{BEFORE}"] * 2
    assert keeping(node).there == [{f"{prefix}{BEFORE}", f"{OWNED}{RUN}"}] * 2
    assert left(node) == [{f"{KEPT}{RUN}"}] * 2


def test_a_full_read_that_is_ordered_has_no_base_and_replaces_the_base_snapshots(node: PaperNode) -> None:
    add(node, f"{KEPT}{BEFORE}")
    assert node.back_up(full_read=True).status is Status.SAVED
    assert keeping(node).bases == ["", ""]
    assert keeping(node).there == [{f"{KEPT}{BEFORE}", f"{OWNED}{RUN}"}] * 2
    assert left(node) == [{f"{KEPT}{RUN}"}] * 2


@pytest.mark.parametrize(
    ("error", "full_read"), [(PreviousBackupDamaged("lost"), True), (TransientError("busy"), False)]
)
def test_only_a_damaged_previous_backup_makes_the_retry_a_full_read(
    node: PaperNode, error: BackupError, full_read: bool
) -> None:
    add(node, f"{KEPT}{BEFORE}")
    keeping(node).error = error
    result = node.back_up()
    assert (result.status, result.transient, result.full_read) == (Status.FAILED, True, full_read)
    assert left(node) == [{f"{KEPT}{BEFORE}"}] * 2


def test_a_failed_backup_leaves_the_base_snapshots(node: PaperNode) -> None:
    add(node, f"{KEPT}{BEFORE}")
    keeping(node).error = BackupError("restic failed")
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, "restic failed")
    assert left(node) == [{f"{KEPT}{BEFORE}"}] * 2


def test_a_leftover_without_a_restore_point_is_removed_before_anything_is_saved(node: PaperNode) -> None:
    add(node, f"{OWNED}20220101T000000Z-xxxx", 5)
    node.back_up()
    assert keeping(node).there == [{f"{OWNED}{RUN}"}] * 2


def test_a_leftover_that_was_in_use_is_removed_later_without_the_snapshot_that_could_not_be_renamed(
    node: PaperNode,
) -> None:
    """That one serves the next run under its present name."""
    add(node, f"{OWNED}20220101T000000Z-xxxx", 5)
    node.cluster.failing = {("rename", "vms/root")}
    remove = node.cluster.remove_snapshot

    def in_use(image: Image, name: str) -> None:
        if not node.output.points:
            raise SnapshotInUse(f"snapshot {name} of image {image} is in use")
        remove(image, name)

    node.cluster.remove_snapshot = in_use  # type: ignore[method-assign]
    result = node.back_up()
    assert result.reason.startswith(f"saved, but cannot rename snapshot {OWNED}{RUN}")
    assert left(node) == [{f"{OWNED}{RUN}"}, {f"{KEPT}{RUN}"}]


def test_what_a_crashed_attempt_left_is_removed_even_if_its_restore_point_is_complete(
    node: PaperNode,
) -> None:
    """Its snapshots have the names of those that are to be made."""
    add(node, f"{KEPT}{BEFORE}")
    add(node, f"{OWNED}{RUN}", 9)
    keeping(node).complete = ((RUN, 9), (BEFORE, 7))
    assert node.back_up(attempt=2).status is Status.SAVED
    assert keeping(node).bases == [f"{KEPT}{BEFORE}"] * 2
    assert left(node) == [{f"{KEPT}{RUN}"}] * 2


def test_the_limit_of_a_phase_that_asks_the_output_for_a_base_includes_the_output_s_time(
    node: PaperNode,
) -> None:
    add(node, f"{OWNED}20220101T000000Z-xxxx", 5)
    node.back_up(output_stall_timeout=10_000)
    limits = [limit for _, phase, limit in node.recorder.phases if phase is Phase.PREPARE]
    assert limits[-1] > 20_000 > limits[0]
    node.recorder.phases.clear()
    node.back_up(output_stall_timeout=10_000)  # only base snapshots, which are no leftovers
    assert [limit > 20_000 for _, phase, limit in node.recorder.phases if phase is Phase.PREPARE] == [False]


def test_a_snapshot_that_cannot_be_renamed_fails_a_domain_that_is_saved_and_serves_as_base(
    node: PaperNode,
) -> None:
    add(node, f"{KEPT}{BEFORE}")
    node.cluster.failing = {("rename", "vms/data")}
    result = node.back_up()
    assert result.status is Status.FAILED
    assert result.reason.startswith(f"saved, but cannot rename snapshot {OWNED}{RUN} of image vms/data")
    assert left(node) == [{f"{KEPT}{RUN}"}, {f"{KEPT}{BEFORE}", f"{OWNED}{RUN}"}]


def test_an_output_of_full_reads_does_not_touch_base_snapshots(node: PaperNode) -> None:
    add(node, f"{KEPT}{BEFORE}")
    node.output = PaperOutput(node)
    assert node.back_up().status is Status.SAVED
    assert left(node) == [{f"{KEPT}{BEFORE}"}] * 2


def test_the_output_gets_the_restore_points_that_the_run_has_listed(node: PaperNode) -> None:
    add(node, f"{KEPT}{BEFORE}")
    known = [held_point(BEFORE, manifest_id="manifest")]
    node.back_up(known=known)
    assert keeping(node).known == known


def test_a_recreated_image_gets_a_full_read(node: PaperNode) -> None:
    add(node, f"{KEPT}{BEFORE}")
    node.cluster.ids = {"vms/root": "id of another"}
    node.back_up()
    assert keeping(node).bases == ["", f"{KEPT}{BEFORE}"]


def test_a_damaged_previous_backup_is_a_warning_of_its_domain(node: PaperNode) -> None:
    class Damaged(KeepingOutput):
        def base(
            self,
            uuid: str,
            runs: Collection[str],
            known: Sequence[StoredPoint],
            check_stop: Callable[[], None],
            warn: Callable[[str], None] = lambda _: None,
        ) -> Optional[SavedDomain]:
            warn("the restore point is damaged")
            return None

    add(node, f"{KEPT}{BEFORE}")
    node.output = Damaged(node)
    assert node.back_up().status is Status.SAVED
    assert (Level.WARNING, "web", "the restore point is damaged") in node.recorder.messages


def test_the_attempt_is_in_the_restore_point(node: PaperNode) -> None:
    node.back_up()
    order = JobOrder(RUN, "web", UUID, URI, attempt=2)
    DomainJob(order, settings(runtime_dir=str(node.directory)), node.output, node.recorder, node.stop).run()
    assert [point.attempt for point in node.output.points] == [1, 2]


def test_a_repository_that_cannot_be_listed_fails_the_backup_and_leaves_the_base_snapshots(
    node: PaperNode,
) -> None:
    class Unreachable(KeepingOutput):
        def base(
            self,
            uuid: str,
            runs: Collection[str],
            known: Sequence[StoredPoint],
            check_stop: Callable[[], None],
            warn: Callable[[str], None] = lambda _: None,
        ) -> Optional[SavedDomain]:
            raise BackupError("restic snapshots failed")

    add(node, f"{KEPT}{BEFORE}")
    node.output = Unreachable(node)
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, "restic snapshots failed")
    assert left(node) == [{f"{KEPT}{BEFORE}"}] * 2


def test_snapshots_are_kept_even_if_a_stop_is_requested_after_all_is_saved(node: PaperNode) -> None:
    class Stopping(KeepingOutput):
        def save(
            self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
        ) -> tuple[SavedImage, ...]:
            images = super().save(point, sources, job)
            node.stop.request(Interrupted("interrupted", 15))
            return images

    node.output = Stopping(node)
    assert node.back_up().status is Status.SAVED
    assert left(node) == [{f"{KEPT}{RUN}"}] * 2


def test_without_the_lock_no_base_snapshot_is_kept_or_removed(
    node: PaperNode,
) -> None:
    class Losing(KeepingOutput):
        def save(
            self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
        ) -> tuple[SavedImage, ...]:
            images = super().save(point, sources, job)
            node.stop.request(TransientError("lost the domain's lock"))
            node.stop.lease_until(-math.inf)
            return images

    node.output = Losing(node)
    add(node, f"{KEPT}{BEFORE}")
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, "saved, but lost the domain's lock")
    assert left(node) == [{f"{KEPT}{BEFORE}"}] * 2


THEIRS = f"{OWNED}20240204T000000Z-elsewhere"


def losing_the_lock(node: PaperNode, at: int) -> None:
    """Let the listing of this number take so long that another node has the lock after it."""
    names, asked = node.cluster.snapshot_names, iter(range(1, 1000))

    def slow(image: Image) -> list[str]:
        if next(asked) == at:
            node.stop.request(TransientError("lost the domain's lock"))
            node.stop.lease_until(-math.inf)
            for known in IMAGES:
                node.cluster.snapshots[known].add(THEIRS)
        return names(image)

    node.cluster.snapshot_names = slow  # type: ignore[method-assign]


def test_whenever_the_lock_is_lost_the_snapshot_of_its_new_owner_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        directory = tmp_path / str(number)
        directory.mkdir()
        node = PaperNode(
            directory, monkeypatch, domain(disks=[rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data")])
        )
        node.output = KeepingOutput(node)
        add(node, f"{OWNED}{BEFORE}")
        losing_the_lock(node, number)
        result = node.back_up()
        if not node.stop.requested:
            break
        assert all(THEIRS in names for names in left(node)), f"listing {number}: {result}"
    assert number > 6
