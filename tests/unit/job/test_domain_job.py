"""backup/job/domain_job.py: one domain's backup, and what makes it fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.ceph.retry import CephRetry
from backup.errors import BackupError, Interrupted
from backup.job_result import Phase, Status
from backup.model import Consistency, Definition, Disk, Domain, Image, Level, Override, State
from backup.protocols import Job, SnapshotSource
from backup.stored import RestorePoint, SavedImage

from ..paper_node import LOCK, PaperNode, PaperOutput
from ..samples import FSID, RUN, UUID, broken_disk, domain, foreign_disk, rbd_disk

ROOT, DATA = rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data")
OURS = f"virt-rbd-backup.{UUID}."
CHANGED = "the domain's definition was changed during the backup"
MakeNode = Callable[..., PaperNode]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    """Make a node that knows the given domains."""
    return lambda *domains: PaperNode(tmp_path, monkeypatch, *domains)


def with_disks(*disks: Disk, exclude: str = "") -> Domain:
    return domain(disks=disks, override=Override(exclude=tuple(exclude.split())))


def test_a_backup_reports_its_moment_and_consistency_and_leaves_nothing_behind(
    make: MakeNode,
) -> None:
    node = make(with_disks(ROOT, DATA))
    result = node.back_up()
    assert (result.status, result.reason, result.consistency) == (Status.SAVED, "", Consistency.FILESYSTEM)
    assert [image.image for image in result.images] == ["vms/root", "vms/data"]
    (point,) = node.output.points
    assert (point.run, point.domain, point.consistency) == (RUN, with_disks(ROOT, DATA), result.consistency)
    assert point.definition == Definition("<domain>web</domain>")
    assert node.saved == [replace(result, seconds=node.saved[0].seconds)], "told before it tidied up"
    assert 0 < result.seconds < 10
    assert abs((datetime.now(timezone.utc) - point.taken).total_seconds()) < 10
    assert point.frozen_seconds == result.frozen_seconds > 0
    assert result.taken == point.taken
    assert result.frozen_at
    assert result.frozen_at < point.taken < result.frozen_at + timedelta(seconds=result.frozen_seconds)
    assert node.cluster.snapshots == {"vms/root": {"foreign"}, "vms/data": {"foreign"}}
    (text,) = node.recorder.told(Level.INFO)
    assert text.startswith("2 snapshots made, filesystem, quiesced for ")


def test_a_job_that_fails_after_its_snapshots_reports_how_long_the_guest_was_quiesced(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(domain())

    def fail(*_: object) -> None:
        raise BackupError("the repository is full")

    monkeypatch.setattr(node.output, "save", fail)
    result = node.back_up()
    assert (result.status, result.consistency, result.taken) == (Status.FAILED, None, None)
    assert result.frozen_at
    assert result.frozen_seconds > 0


def test_a_worker_that_hangs_while_it_streams_is_ended_without_regard_to_lock_wait(make: MakeNode) -> None:
    """Each attempt to get a lock is a sign of life."""
    node = make(domain())
    node.back_up(lock_wait=86_400)
    assert [limit < 86_400 for _, phase, limit in node.recorder.phases if phase is Phase.STREAM] == [True]


def test_each_disk_is_a_sign_of_life_while_a_job_is_prepared(make: MakeNode) -> None:
    """With many disks, calls that each take nearly CEPH_TIMEOUT take longer than a phase may be silent."""
    node = make(with_disks(ROOT, DATA))
    assert node.back_up().status is Status.SAVED
    signs = [text for text in node.recorder.told(Level.DEBUG) if " image vms/" in text]
    assert signs == [
        "vda: looking up image vms/root",
        "vdb: looking up image vms/data",
        "vda: checking image vms/root for leftovers",
        "vdb: checking image vms/data for leftovers",
    ]


def test_leftovers_of_interrupted_runs_are_counted(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA))
    node.cluster.snapshots["vms/data"] |= {f"{OURS}{run}" for run in ("a", "b")}
    assert [node.back_up().leftovers for _ in range(2)] == [2, 0]


def test_the_freeze_setting_of_the_domain_s_metadata_wins(make: MakeNode) -> None:
    node = make(domain(override=Override(freeze="never")))
    assert node.back_up(freeze="required").consistency is Consistency.PAUSED
    assert node.hypervisor.asked == ["pause", "resume"]


def test_an_excluded_disk_gets_no_snapshot_and_the_restore_point_gives_the_reason(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA, broken_disk("vdc"), exclude="vdb vdc"))
    assert node.back_up().status is Status.SAVED
    assert node.output.saved == {"vda": "vms/root"}
    reasons = [disk.skipped for disk in node.output.points[0].domain.disks]
    assert reasons == ["", "excluded in its metadata", "excluded in its metadata"]


def test_an_image_of_two_disks_is_saved_once(make: MakeNode) -> None:
    node = make(with_disks(ROOT, rbd_disk("vdb", "vms/root")))
    node.cluster.watching = {"vms/root": 2}
    assert node.back_up().consistency is Consistency.FILESYSTEM
    assert node.output.saved == {"vda": "vms/root"}


UNFIT = {
    "an image that can't be saved": (
        with_disks(ROOT, broken_disk("vdb", "vms/x")),
        "disk vdb (vms/x) cannot be backed up: a partition of an RBD image",
    ),
    "a disk elsewhere": (
        with_disks(ROOT, foreign_disk("vdb", "/x")),
        "disk vdb (/x) cannot be backed up: no RBD image (file) (UNCOVERED_DISKS)",
    ),
    "a problem": (
        domain(problem=BackupError("no valid metadata", "see virsh metadata")),
        "no valid metadata",
    ),
    "busy": (
        domain(state=State.BUSY),
        "the domain is starting, stopping or migrating, or another libvirt job is running on it",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_domain_with_a_disk_that_cannot_be_saved_fails_before_anything_is_touched(
    make: MakeNode, case: str
) -> None:
    unfit, message = UNFIT[case]
    node = make(unfit)
    result = node.back_up(uncovered_disks="fail")
    assert (result.status, result.reason) == (Status.FAILED, message)
    assert result.hint
    node.assert_untouched()


def test_a_disk_elsewhere_does_not_fail_the_others_unless_configured(make: MakeNode) -> None:
    node = make(with_disks(ROOT, foreign_disk()))
    assert node.back_up().status is Status.SAVED
    assert node.output.saved == {"vda": "vms/root"}


def test_data_outside_of_the_disks_is_in_the_log_and_fails_its_domain_if_configured(make: MakeNode) -> None:
    shared = replace(foreign_disk("filesystem:data", "/srv/a"), skipped="no RBD image (virtiofs file system)")
    node = make(with_disks(ROOT, shared))
    result = node.back_up()
    assert (result.status, result.skipped_disks) == (Status.SAVED, (shared,))
    text = "filesystem:data (/srv/a) is not backed up: no RBD image (virtiofs file system)"
    assert text in node.recorder.told(Level.INFO)
    result = make(with_disks(ROOT, shared)).back_up(uncovered_disks="fail")
    assert (result.status, result.reason) == (
        Status.FAILED,
        "filesystem:data (/srv/a) cannot be backed up: no RBD image (virtiofs file system) (UNCOVERED_DISKS)",
    )
    assert result.hint == 'to exclude it: <backup exclude="filesystem:data"/> in the domain\'s metadata'
    excluded = make(with_disks(ROOT, shared, exclude="filesystem:data"))
    assert excluded.back_up(uncovered_disks="fail").status is Status.SAVED


def test_what_only_libvirt_has_of_the_domain_is_in_the_log(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(with_disks(ROOT))
    besides = ("the memory that virsh managedsave saved",)
    definition = Definition("<domain>web</domain>", not_saved=besides)
    monkeypatch.setattr(node.hypervisor, "definition", lambda *_: definition)
    assert node.back_up().status is Status.SAVED
    assert "the memory that virsh managedsave saved: not backed up" in node.recorder.told(Level.INFO)


def test_a_domain_that_has_lost_its_images_since_it_was_listed_fails(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA))
    result = node.back_up(exclude_images=["*"])
    assert (result.status, result.reason) == (
        Status.FAILED,
        "the domain no longer has an RBD image to back up",
    )
    assert node.hypervisor.asked == []


def test_disks_that_change_during_the_job_fail_it_before_the_guest_is_quiesced(make: MakeNode) -> None:
    node = make(with_disks(ROOT))
    node.hypervisor.then = with_disks(ROOT, DATA)
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, CHANGED)
    assert node.hypervisor.asked == []


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        (State.BUSY, Status.FAILED, "the domain is starting, stopping or migrating"),
        (State.ELSEWHERE, Status.SKIPPED, "the domain migrated to another node"),
    ],
)
def test_a_domain_that_is_migrating_once_it_is_locked_is_not_touched(
    make: MakeNode, state: State, status: Status, reason: str
) -> None:
    node = make(domain())
    node.hypervisor.then = domain(state=state)
    result = node.back_up()
    assert result.status is status
    assert result.reason.startswith(reason)
    assert (node.hypervisor.asked, node.output.points) == ([], [])


def test_a_request_to_stop_is_heard_before_the_guest_is_quiesced(make: MakeNode) -> None:
    node = make(domain())
    node.stop.request(Interrupted("interrupted", 15))
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, "interrupted")
    assert node.hypervisor.asked == []


def test_a_domain_that_was_not_quiesced_is_not_reported_as_quiesced(make: MakeNode) -> None:
    node = make(domain(state=State.SHUT_OFF))
    result = node.back_up()
    assert (result.frozen_seconds, result.frozen_at) == (0, None)
    assert node.recorder.told(Level.INFO) == ["1 snapshot made, offline"]


def test_metadata_that_changes_during_the_job_fails_it_too(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA, exclude="vdb"))
    node.hypervisor.then = with_disks(ROOT, DATA)
    result = node.back_up()
    assert (result.status, result.reason) == (Status.FAILED, CHANGED)
    assert (node.hypervisor.asked, node.output.points) == ([], [])


def test_an_image_that_other_clients_have_open_is_only_crash_consistent(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA))
    node.cluster.watching = {"vms/root": 2, "vms/data": 1}
    assert node.back_up().consistency is Consistency.CRASH
    assert node.output.points[0].consistency is Consistency.CRASH
    question = "is it shared, or does the domain run elsewhere?"
    assert node.recorder.told(Level.WARNING) == [
        f"vms/root is in use by other clients too: {question} (open at 192.0.2.0:0/1, 192.0.2.1:0/1)"
    ]


@pytest.mark.parametrize("state", [State.SHUT_OFF, State.SAVED])
def test_a_shut_off_domain_whose_images_are_open_is_only_crash_consistent(
    make: MakeNode, state: State
) -> None:
    node = make(domain(state=state, disks=(ROOT, DATA)))
    node.cluster.watching = {"vms/root": 1, "vms/data": 1}
    assert node.back_up().consistency is Consistency.CRASH
    (warning,) = node.recorder.told(Level.WARNING)
    assert warning.startswith("vms/root, vms/data are in use by other clients too: ")


def test_the_agent_of_a_domain_that_has_just_started_is_waited_for_without_the_lock(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    booting = domain(agent_connected=False, started=time.time())
    node = make(booting)

    def sleep(_: float) -> None:
        assert not node.cluster.locks
        node.hypervisor.listed = replace(booting, agent_connected=True)

    monkeypatch.setattr("backup.quiesce.booting.time.sleep", sleep)
    assert node.back_up(freeze="required").consistency is Consistency.FILESYSTEM


@pytest.mark.parametrize(("attempt", "transient"), [(1, False), (2, True)])
def test_images_that_other_clients_have_open_fail_a_required_freeze(
    make: MakeNode, attempt: int, transient: bool
) -> None:
    """At a retry the other client may be that of an earlier attempt whose worker was killed."""
    node = make(with_disks(ROOT))
    node.cluster.watching = {"vms/root": 2}
    result = node.back_up(freeze="required", attempt=attempt)
    assert (result.status, result.transient, node.hypervisor.asked) == (Status.FAILED, transient, [])
    assert result.reason.startswith("vms/root is in use by other clients too: ")


def test_no_lock_is_taken_beside_an_image_that_the_settings_exclude(make: MakeNode) -> None:
    """The domain's user may have no write permission there."""
    node = make(domain(disks=[rbd_disk("vda", "golden/base"), rbd_disk("vdb", "vms/data")]))
    taken: list[str] = []
    lock = node.cluster.lock

    def recorded(image: Image, *rest: Any) -> None:
        taken.append(image.pool)
        lock(image, *rest)

    node.cluster.lock = recorded  # type: ignore[method-assign, assignment]
    assert node.back_up(exclude_images=["golden/*"]).status is Status.SAVED
    assert set(taken) == {"vms"}
    assert [point.locks for point in node.output.points] == [(f"{FSID}/vms/",)]


def test_with_min_age_a_domain_that_runs_on_another_node_is_skipped(make: MakeNode) -> None:
    node = make(domain(state=State.SHUT_OFF, disks=(ROOT,)))
    node.cluster.watching = {"vms/root": 1}
    result = node.back_up(min_age=3600)
    assert (result.status, node.output.points) == (Status.SKIPPED, [])
    assert result.reason.startswith("vms/root is in use by other clients too: ")


def test_with_min_age_a_domain_that_starts_here_meanwhile_is_retried(make: MakeNode) -> None:
    """Its own QEMU is no client of another node: skipped, it would not be saved at all."""
    node = make(domain(state=State.SHUT_OFF, disks=(ROOT,)))
    create = node.cluster.create_snapshot

    def start(*of: Any) -> None:
        create(*of)
        node.hypervisor.listed = domain(disks=(ROOT,))
        node.cluster.watching = {"vms/root": 1}

    node.cluster.create_snapshot = start  # type: ignore[method-assign, assignment]
    result = node.back_up(min_age=3600)
    assert (result.status, result.transient, node.output.points) == (Status.FAILED, True, [])
    assert result.reason == "the domain is running by now, it was shut off"


def test_with_min_age_a_retry_skips_no_domain_for_clients_that_a_killed_worker_may_have_left(
    make: MakeNode,
) -> None:
    node = make(domain(state=State.SHUT_OFF, disks=(ROOT,)))
    node.cluster.watching = {"vms/root": 1}
    result = node.back_up(min_age=3600, attempt=2)
    assert (result.status, result.transient, node.output.points) == (Status.FAILED, True, [])


def test_a_leftover_snapshot_is_removed_during_the_backup(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA))
    node.cluster.snapshots["vms/data"].add(f"{OURS}20230101T000000Z-efgh")
    assert node.back_up().status is Status.SAVED
    assert node.cluster.snapshots == {"vms/root": {"foreign"}, "vms/data": {"foreign"}}


def test_a_snapshot_that_cannot_be_removed_fails_a_domain_that_is_saved(make: MakeNode) -> None:
    node = make(with_disks(ROOT, DATA))
    node.cluster.failing = {("remove", "vms/data")}
    result = node.back_up()
    assert result.status is Status.FAILED
    assert result.reason.startswith(f"saved, but cannot remove snapshot {OURS}{RUN} of image vms/data")
    assert len(result.images) == 2


def test_a_domain_that_another_run_is_backing_up_fails(make: MakeNode) -> None:
    node = make(with_disks(ROOT))
    node.cluster.locks[LOCK] = "another node"
    result = node.back_up()
    assert (result.status, result.reason) == (
        Status.FAILED,
        "another run is backing up this domain, maybe on another node",
    )
    assert "rados --pool vms" in result.hint
    assert (node.hypervisor.asked, node.output.asked_for) == ([], [])


class LosingLock(PaperOutput):
    """Calls `before` once, then reports each image as saved."""

    before: Callable[[], None]

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        images = super().save(point, sources, job)
        self.before()
        for source, saved in zip(sources, images):
            job.image_saved(source, saved)
        return images


def test_the_renewal_of_an_expired_lock_is_waited_for_before_a_snapshot_is_removed(make: MakeNode) -> None:
    node = make(domain())
    node.output = output = LosingLock(node)
    renewed = threading.Event()

    def expire() -> None:
        node.stop.lease_until(time.monotonic() - 1, grace=60)
        threading.Timer(0.3, renew).start()

    def renew() -> None:
        assert node.ours("vms/web-root"), "removed without the lock"
        renewed.set()
        node.stop.lease_until(time.monotonic() + 60)

    output.before = expire
    assert node.back_up().status is Status.SAVED
    assert renewed.is_set()


def test_a_lock_that_is_lost_before_a_snapshot_is_removed_is_a_transient_error(make: MakeNode) -> None:
    node = make(domain())
    node.output = output = LosingLock(node)
    output.before = lambda: node.stop.lease_until(time.monotonic() - 60, grace=1)
    result = node.back_up()
    assert (result.status, result.transient) == (Status.FAILED, True)
    assert result.reason == "the domain's lock could not be renewed in time"
    assert result.withdraw, "the output may have stored it already"


def test_no_snapshot_is_made_without_a_valid_lock(make: MakeNode) -> None:
    node = make(domain())
    node.cluster.retry = CephRetry(60)

    def expire(*_: object) -> None:  # while it is frozen
        node.stop.lease_until(time.monotonic() - 1, grace=60)

    node.hypervisor.freeze = _also(node.hypervisor.freeze, expire)  # type: ignore[method-assign]
    result = node.back_up()
    assert (result.status, result.transient) == (Status.FAILED, True)
    assert result.reason == "the domain's lock has expired and is not renewed yet"
    assert node.cluster.snapshots == {"vms/web-root": {"foreign"}}
    assert not result.withdraw, "the output was not asked to save it"


def _also(call: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        result = call(*arguments)
        then()
        return result

    return both
