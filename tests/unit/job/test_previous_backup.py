"""job/previous_backup.py, snapshots.py: the next run builds on the right base snapshots, and on no others."""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable, Optional

import pytest

from backup.ceph.errors import ClusterError
from backup.errors import BackupError
from backup.job.domain_lock import lock_of
from backup.job.leftovers import base_prefix, base_snapshots, owned_prefix, remove_leftovers, run_of
from backup.job.previous_backup import PreviousBackup
from backup.job.snapshots import DiskSnapshot, DomainSnapshots, gone_afterwards, prepared
from backup.model import Consistency, Definition, Disk, Domain, Level
from backup.stored import PointId, SavedDomain, SavedImage, SnapshotId, StoredPoint
from backup.system.concurrency_limit import Slots
from backup.system.spool import Spool, whole

from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..recorder import Recorder
from ..samples import FSID, LAYOUT, OTHER_UUID, RUN, TAKEN, UUID, domain, held_point, image, rbd_disk

BEFORE, EARLIER = "20240102T000000Z-bbbb", "20240101T000000Z-aaaa"
KEPT = f"virt-rbd-backup.kept.{UUID}."
OWNED = f"virt-rbd-backup.{UUID}."
IMAGES = ("vms/a", "vms/b")
NO_LIMIT = Slots("/nowhere", "deletion", 1)
WEB = domain(disks=[rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/b")])


@pytest.fixture
def cluster() -> PaperCluster:
    cluster = PaperCluster()
    cluster.snapshots = {name: {"before-upgrade"} for name in IMAGES}
    return cluster


def add(cluster: PaperCluster, name: str, number: int, *images: str) -> None:
    """Add a snapshot of this name and id to images."""
    for one in images or IMAGES:
        cluster.snapshots[one].add(name)
        cluster.numbers[(one, name)] = number


def saved_image(target: str, number: int, **changes: object) -> SavedImage:
    """Return an image whose snapshot `number` was saved."""
    source = SnapshotId(FSID, f"id of vms/{target[-1]}", number)
    one = SavedImage(target, f"vms/{target[-1]}", 100, 10, 10, 1.0, "0123abcd", LAYOUT, 10, source, 16 << 20)
    return replace(one, **changes)  # type: ignore[arg-type]


@dataclass
class KeepsPoints(NoOutput):
    """An output with restore points; records the runs that it is asked for."""

    images: Sequence[SavedImage] = ()
    keeps_base_snapshots: bool = True
    asked: list[tuple[str, set[str]]] = field(default_factory=list)
    known: Sequence[StoredPoint] = ()

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        self.asked.append((uuid, {*runs}))
        self.known = known
        if not self.images:
            return None
        checksums = {one.target: Spool(f"checksums of {one.target}".encode()) for one in self.images}
        times = {one.target: f"times of {one.target}".encode() for one in self.images}
        point, consistency = PointId(BEFORE, uuid), Consistency.CRASH
        return SavedDomain(
            point, "web", TAKEN, consistency, tuple(self.images), (), Definition(""), checksums, times
        )


def based(snapshots: Sequence[DiskSnapshot], of: Domain, output: KeepsPoints) -> Sequence[DiskSnapshot]:
    """Return the snapshots as a job has them, once their bases are known."""
    with PreviousBackup(snapshots, of, output, (), lambda: None) as found:
        return [replace(one, base_of=found.base_of) for one in snapshots]


def bases(
    cluster: PaperCluster, output: KeepsPoints, of: Domain = WEB
) -> Sequence[tuple[str, str, int] | None]:
    """Return each disk's base: the snapshot, and what was saved of it."""
    snapshots = based(prepared(of, PaperClusters(cluster), RUN), of, output)
    found = [one.base for one in snapshots]
    return [(one.snapshot, one.saved.target, one.saved.source.snapshot) if one else None for one in found]


BOTH = [saved_image("vda", 7), saved_image("vdb", 8)]


def test_each_disk_builds_on_the_snapshot_that_was_saved(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7, "vms/a")
    add(cluster, f"{KEPT}{BEFORE}", 8, "vms/b")
    output = KeepsPoints(BOTH)
    assert bases(cluster, output) == [(f"{KEPT}{BEFORE}", "vda", 7), (f"{KEPT}{BEFORE}", "vdb", 8)]
    assert output.asked == [(UUID, {BEFORE})]


def test_a_base_has_the_checksums_and_times_of_its_own_disk(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 8)
    found = based(prepared(WEB, PaperClusters(cluster), RUN), WEB, KeepsPoints(BOTH))
    assert [one.base is None for one in found] == [True, False]
    base = found[1].base
    assert base
    assert whole(base.checksums) == b"checksums of vdb"
    assert base.times == b"times of vdb"


def test_the_output_is_asked_only_for_runs_that_have_snapshots(
    cluster: PaperCluster,
) -> None:
    add(cluster, f"{KEPT}{EARLIER}", 5, "vms/a")
    add(cluster, f"{OWNED}{BEFORE}", 6, "vms/b")
    add(cluster, f"virt-rbd-backup.kept.{OTHER_UUID}.{RUN}", 9)
    add(cluster, f"x{KEPT}{RUN}", 10)
    output = KeepsPoints()
    assert bases(cluster, output) == [None, None]
    assert output.asked == [(UUID, {EARLIER, BEFORE})]


def test_the_output_gets_the_restore_points_that_the_run_listed(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    output, known = KeepsPoints(), [held_point(BEFORE, manifest_id="manifest")]
    with PreviousBackup(prepared(WEB, PaperClusters(cluster), RUN), WEB, output, known, lambda: None):
        pass
    assert output.known == known


def test_without_any_snapshot_the_output_is_not_even_asked(cluster: PaperCluster) -> None:
    output = KeepsPoints(BOTH)
    assert bases(cluster, output) == [None, None]
    assert output.asked == []


def test_a_snapshot_that_was_not_renamed_is_a_base_under_its_present_name(
    cluster: PaperCluster,
) -> None:
    add(cluster, f"{KEPT}{EARLIER}", 5)
    add(cluster, f"{OWNED}{BEFORE}", 7, "vms/a")
    add(cluster, f"{KEPT}{BEFORE}", 8, "vms/b")
    found = bases(cluster, KeepsPoints(BOTH))
    assert found == [(f"{OWNED}{BEFORE}", "vda", 7), (f"{KEPT}{BEFORE}", "vdb", 8)]


@pytest.mark.parametrize(
    "other",
    [
        SnapshotId("another cluster", "id of vms/a", 7),
        SnapshotId(FSID, "id of another image", 7),
        SnapshotId(FSID, "id of vms/a", 6),
        SnapshotId(),
    ],
)
def test_another_snapshot_of_the_same_name_is_no_base(cluster: PaperCluster, other: SnapshotId) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    assert bases(cluster, KeepsPoints([saved_image("vda", 7, source=other)])) == [None, None]


def test_a_renamed_image_has_a_base_and_a_recreated_one_has_none(
    cluster: PaperCluster,
) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    cluster.ids = {"vms/a": "id of vms/renamed"}
    renamed = saved_image("vda", 7, image="vms/renamed", source=SnapshotId(FSID, "id of vms/renamed", 7))
    assert bases(cluster, KeepsPoints([renamed])) == [(f"{KEPT}{BEFORE}", "vda", 7), None]
    cluster.ids = {"vms/a": "id of an image that was made anew"}
    assert bases(cluster, KeepsPoints([saved_image("vda", 7)])) == [None, None]


def test_a_saved_image_of_another_disk_is_no_base(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    moved = saved_image("vdz", 7, source=SnapshotId(FSID, "id of vms/a", 7))
    assert bases(cluster, KeepsPoints([moved])) == [None, None]


def test_a_new_disk_has_no_base_and_the_others_have_theirs(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7, "vms/a")
    cluster.snapshots["vms/new"] = set()
    of = domain(disks=[*WEB.disks, rbd_disk("vdc", "vms/new")])
    assert bases(cluster, KeepsPoints(BOTH), of) == [(f"{KEPT}{BEFORE}", "vda", 7), None, None]


def test_a_manifest_without_checksums_is_no_base(cluster: PaperCluster) -> None:
    class ByAnotherVersion(KeepsPoints):
        def base(
            self,
            uuid: str,
            runs: Collection[str],
            known: Sequence[StoredPoint],
            check_stop: Callable[[], None],
            warn: Callable[[str], None] = lambda _: None,
        ) -> Optional[SavedDomain]:
            found = super().base(uuid, runs, known, check_stop, warn)
            assert found
            return replace(found, checksums={})

    add(cluster, f"{KEPT}{BEFORE}", 7)
    assert bases(cluster, ByAnotherVersion(BOTH)) == [None, None]


def test_an_image_of_the_old_format_is_known_by_its_name(cluster: PaperCluster) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    old = DiskSnapshot(WEB.disks[0], image("vms/a"), cluster, f"{OWNED}{RUN}")
    saved = saved_image("vda", 7, source=SnapshotId(FSID, "a", 7))
    (found,) = based([old], WEB, KeepsPoints([saved]))
    assert found.base


def test_the_base_snapshot_of_an_image_that_the_domain_no_longer_has_is_removed(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7, "vms/a")
    add(cluster, f"{KEPT}{BEFORE}", 8, "vms/b")
    one_disk = domain(disks=[rbd_disk("vda", "vms/a")])
    snapshots = prepared(one_disk, PaperClusters(cluster), RUN)
    with PreviousBackup(snapshots, one_disk, KeepsPoints(BOTH), (), lambda: None) as found:
        found.remove_dropped(recorder, lock_of(one_disk, PaperClusters(cluster), 30))
    assert ours(cluster) == {"vms/a": {f"{KEPT}{BEFORE}"}, "vms/b": set()}
    assert cluster.claims == [], "the lock that is held is of this place too"


@pytest.mark.parametrize("active", [True, False], ids=["another run saves it", "no run saves it"])
def test_base_snapshots_of_an_image_in_another_place_are_removed_only_under_the_lock_there(
    cluster: PaperCluster, recorder: Recorder, active: bool
) -> None:
    cluster.snapshots["fast/b"] = set()
    add(cluster, f"{KEPT}{BEFORE}", 7, "vms/a")
    add(cluster, f"{KEPT}{BEFORE}", 8, "fast/b")
    lock = f"fast//virt-rbd-backup.lock.{UUID}"
    if active:  # with settings that do not exclude it
        cluster.locks[lock] = "another node"
    one_disk = domain(disks=[rbd_disk("vda", "vms/a")])
    snapshots = prepared(one_disk, PaperClusters(cluster), RUN)
    both = [
        saved_image("vda", 7),
        saved_image("vdb", 8, image="fast/b", source=SnapshotId(FSID, "id of fast/b", 8)),
    ]
    with PreviousBackup(snapshots, one_disk, KeepsPoints(both), (), lambda: None) as found:
        found.remove_dropped(recorder, lock_of(one_disk, PaperClusters(cluster), 30))
    assert cluster.snapshots["fast/b"] == ({f"{KEPT}{BEFORE}"} if active else set())
    assert cluster.locks == ({lock: "another node"} if active else {})
    assert recorder.told(Level.WARNING) == (
        [] if active else [f"removed base snapshot {KEPT}{BEFORE} of fast/b"]
    )


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EPERM])
def test_a_timeout_of_the_lock_in_another_place_fails_no_domain_that_is_saved(
    cluster: PaperCluster, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cluster.snapshots["fast/b"] = set()
    add(cluster, f"{KEPT}{BEFORE}", 7, "vms/a")
    add(cluster, f"{KEPT}{BEFORE}", 8, "fast/b")
    one_disk = domain(disks=[rbd_disk("vda", "vms/a")])
    dropped = saved_image("vdb", 8, image="fast/b", source=SnapshotId(FSID, "id of fast/b", 8))
    output, lock = (
        KeepsPoints([saved_image("vda", 7), dropped]),
        lock_of(one_disk, PaperClusters(cluster), 30),
    )

    def fails(*_: object) -> None:
        raise ClusterError(f"cannot take the lock: {number}", number=number)

    monkeypatch.setattr(cluster, "lock", fails)
    with PreviousBackup(
        prepared(one_disk, PaperClusters(cluster), RUN), one_disk, output, (), lambda: None
    ) as found:
        if number == errno.EPERM:
            with raises(f"cannot take the lock: {number}"):
                found.remove_dropped(recorder, lock)
            return
        found.remove_dropped(recorder, lock)
    assert cluster.snapshots["fast/b"] == {f"{KEPT}{BEFORE}"}
    text = f"base snapshots of fast/b, which is no longer backed up, stay: cannot take the lock: {number}"
    assert recorder.told(Level.WARNING) == [text]


def test_names_of_snapshots_contain_the_run_and_the_domain() -> None:
    assert (owned_prefix(UUID) + RUN, base_prefix(UUID) + RUN) == (f"{OWNED}{RUN}", f"{KEPT}{RUN}")
    assert run_of(f"{OWNED}{RUN}") == run_of(f"{KEPT}{RUN}") == RUN
    assert not (base_prefix(UUID) + RUN).startswith(owned_prefix(UUID)), "a base snapshot is no leftover"


def on_each(*names: str) -> dict[str, set[str]]:
    return {one: {*names} for one in IMAGES}


def made(cluster: PaperCluster) -> Sequence[DiskSnapshot]:
    return [DiskSnapshot(Disk("vda", name), image(name), cluster, f"{OWNED}{RUN}") for name in IMAGES]


def back_up(cluster: PaperCluster, recorder: Recorder) -> None:
    """Make the snapshots of a run, and keep them as base snapshots, as a job does when all is saved."""
    with gone_afterwards(made(cluster), NO_LIMIT, recorder, "web") as snapshots:
        snapshots.create(5, lambda: None)
        snapshots.keep_as_bases(WEB)


def ours(cluster: PaperCluster) -> dict[str, set[str]]:
    return {name: names - {"before-upgrade"} for name, names in cluster.snapshots.items()}


def test_a_base_snapshot_has_another_name_and_the_same_id_and_stays(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    back_up(cluster, recorder)
    assert ours(cluster) == on_each(f"{KEPT}{RUN}")
    assert all("before-upgrade" in names for names in cluster.snapshots.values())
    assert cluster.snapshot_ids(image("vms/a"))[f"{KEPT}{RUN}"] == cluster.numbers[("vms/a", f"{OWNED}{RUN}")]
    assert base_snapshots(cluster, image("vms/a"), WEB) == [f"{KEPT}{RUN}"]
    assert recorder.messages == []


def test_older_base_snapshots_are_removed_and_foreign_ones_stay(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    foreign = f"virt-rbd-backup.kept.{OTHER_UUID}.{BEFORE}"
    for name in (f"{KEPT}{EARLIER}", f"{KEPT}{BEFORE}", f"{OWNED}{BEFORE}", foreign):
        add(cluster, name, 1)
    back_up(cluster, recorder)
    assert ours(cluster) == on_each(f"{KEPT}{RUN}", foreign)


def test_a_snapshot_that_cannot_be_renamed_stays_with_the_older_base_and_is_an_error(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    cluster.failing = {("rename", "vms/a")}
    with raises(f"cannot rename snapshot {OWNED}{RUN} of image vms/a: connection timed out"):
        back_up(cluster, recorder)
    assert ours(cluster) == {"vms/a": {f"{KEPT}{BEFORE}", f"{OWNED}{RUN}"}, "vms/b": {f"{KEPT}{RUN}"}}


def test_an_older_base_that_cannot_be_removed_is_an_error_and_the_new_one_is_kept(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    cluster.failing = {("remove", "vms/b")}
    with raises(f"cannot remove snapshot {KEPT}{BEFORE} of image vms/b: connection timed out"):
        back_up(cluster, recorder)
    assert ours(cluster) == {"vms/a": {f"{KEPT}{RUN}"}, "vms/b": {f"{KEPT}{BEFORE}", f"{KEPT}{RUN}"}}


def test_if_the_backup_fails_the_new_snapshots_are_removed_and_the_base_stays(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    add(cluster, f"{KEPT}{BEFORE}", 7)
    new = gone_afterwards(made(cluster), NO_LIMIT, recorder, "web")
    with raises("restic failed"), new as snapshots:
        snapshots.create(5, lambda: None)
        raise BackupError("restic failed")
    assert ours(cluster) == on_each(f"{KEPT}{BEFORE}")


def test_leftovers_are_removed_but_neither_base_snapshots_nor_spared_ones(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    for name in (f"{KEPT}{EARLIER}", f"{OWNED}{BEFORE}", f"{OWNED}{EARLIER}"):
        add(cluster, name, 1)
    remove_leftovers(cluster, image("vms/a"), WEB, recorder, spared={f"{OWNED}{BEFORE}"})
    assert ours(cluster)["vms/a"] == {f"{KEPT}{EARLIER}", f"{OWNED}{BEFORE}"}
    remove_leftovers(cluster, image("vms/a"), WEB, recorder, with_bases=True)
    assert ours(cluster)["vms/a"] == set()
    warnings = recorder.told(Level.WARNING)
    assert f"removed base snapshot {KEPT}{EARLIER} of vms/a" in warnings
    assert f"removed leftover snapshot {OWNED}{BEFORE} of vms/a" in warnings


def test_a_snapshot_that_was_never_made_is_not_kept(cluster: PaperCluster) -> None:
    snapshots = DomainSnapshots(made(cluster), NO_LIMIT)
    snapshots.keep_as_bases(WEB)
    snapshots.remove()
    assert ours(cluster) == on_each()
