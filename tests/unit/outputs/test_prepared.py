"""backup/job/snapshots.py: which snapshots a domain needs, and who else has its images open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from backup.ceph.errors import ImageGone
from backup.job.snapshots import DiskSnapshot, DomainSnapshots, ImageUse, prepared
from backup.model import ClusterAddress, Disk, Image, State
from backup.system.concurrency_limit import Slots

from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..samples import OTHER_UUID, RUN, UUID, domain, foreign_disk, rbd_disk

OTHER = ClusterAddress(("ceph2",))


@pytest.fixture
def cluster() -> PaperCluster:
    cluster = PaperCluster()
    cluster.snapshots = {name: set() for name in ("vms/a", "vms/b", "vms/ns/a")}
    return cluster


def prepared_of(cluster: PaperCluster, *disks: Disk, other: PaperCluster | None = None) -> list[DiskSnapshot]:
    clusters = PaperClusters(cluster, {OTHER: other} if other else {})
    return [*prepared(domain(disks=disks), clusters, RUN)]


def served(snapshots: list[DiskSnapshot]) -> dict[str, tuple[str, int]]:
    """Return the image, and how many disks have it, by the first of their targets."""
    return {one.disk.target: (str(one.image), len(one.targets)) for one in snapshots}


def test_each_image_gets_a_snapshot_that_names_its_domain_and_run_and_none_is_made(
    cluster: PaperCluster,
) -> None:
    disks = [rbd_disk("vda", "vms/a"), foreign_disk("vdb"), rbd_disk("vdc", "vms/ns/a")]
    snapshots = prepared_of(cluster, *disks)
    assert served(snapshots) == {"vda": ("vms/a", 1), "vdc": ("vms/ns/a", 1)}
    assert {one.name for one in snapshots} == {f"virt-rbd-backup.{UUID}.{RUN}"}
    assert all(one.cluster is cluster for one in snapshots)
    assert not any(cluster.snapshots.values())


def test_an_image_is_identified_by_its_id(cluster: PaperCluster) -> None:
    (snapshot,) = prepared_of(cluster, rbd_disk("vda", "vms/a"))
    assert snapshot.image.id == "id of vms/a"
    assert snapshot.disk == rbd_disk("vda", "vms/a")


def test_one_snapshot_serves_all_disks_with_the_same_image(cluster: PaperCluster) -> None:
    targets = {"vda": "vms/a", "vdb": "vms/b", "vdc": "vms/a", "vdd": "vms/a"}
    disks = [rbd_disk(target, shown) for target, shown in targets.items()]
    assert served(prepared_of(cluster, *disks)) == {"vda": ("vms/a", 3), "vdb": ("vms/b", 1)}


def test_two_ways_to_one_cluster_lead_to_the_same_image(cluster: PaperCluster) -> None:
    disks = [rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/a", address=OTHER)]
    assert served(prepared_of(cluster, *disks, other=cluster)) == {"vda": ("vms/a", 2)}


def test_images_of_one_name_in_two_clusters_are_two_even_if_their_ids_are_equal(
    cluster: PaperCluster,
) -> None:
    other = PaperCluster(fsid=OTHER_UUID)
    other.snapshots = {"vms/a": set()}
    disks = [rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/a", address=OTHER)]
    snapshots = prepared_of(cluster, *disks, other=other)
    assert served(snapshots) == {"vda": ("vms/a", 1), "vdb": ("vms/a", 1)}
    assert [one.cluster for one in snapshots] == [cluster, other]


def test_images_with_one_id_in_two_places_are_two(cluster: PaperCluster) -> None:
    cluster.ids = {"vms/a": "1f2e", "vms/ns/a": "1f2e"}
    disks = [rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/ns/a")]
    assert served(prepared_of(cluster, *disks)) == {"vda": ("vms/a", 1), "vdb": ("vms/ns/a", 1)}


class RenamedMeanwhile(PaperCluster):
    """Gives another image on each call, as each was renamed and another took its name."""

    def identified(self, image: Image) -> Image:
        self.calls = getattr(self, "calls", 0) + 1
        return replace(image, id=f"id {self.calls}")


def test_an_image_is_not_taken_for_another_that_had_its_name() -> None:
    disks = [rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/a")]
    snapshots = prepared_of(RenamedMeanwhile(), *disks)
    assert {one.disk.target: one.image.id for one in snapshots} == {"vda": "id 1", "vdb": "id 2"}


def test_an_image_that_is_missing_is_an_error(cluster: PaperCluster) -> None:
    with raises("cannot list the snapshots of image vms/gone: no such file or directory", ImageGone):
        prepared_of(cluster, rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/gone"))


def test_a_domain_without_an_image_needs_none(cluster: PaperCluster) -> None:
    assert prepared_of(cluster, foreign_disk()) == []


THREE = (rbd_disk("vda", "vms/a"), rbd_disk("vdb", "vms/b"), rbd_disk("vdc", "vms/a"))


def uses(
    cluster: PaperCluster, state: State, disks: Sequence[Disk] = THREE, **watching: int
) -> Sequence[ImageUse]:
    """Return who uses the images of a domain; of the usual disks vda and vdc both have a."""
    cluster.watching = {f"vms/{name}": count for name, count in watching.items()}
    snapshots = DomainSnapshots(prepared_of(cluster, *disks), Slots("/nowhere", "deletion", 1))
    return snapshots.uses(domain(state=state, disks=disks))


def others(cluster: PaperCluster, active: bool, disks: Sequence[Disk] = THREE, **watching: int) -> list[str]:
    state = State.RUNNING if active else State.SHUT_OFF
    return [str(one.image) for one in uses(cluster, state, disks, **watching) if one.by_others]


def test_a_running_domain_s_own_qemu_is_no_other_user_and_counts_once_for_each_disk(
    cluster: PaperCluster,
) -> None:
    assert others(cluster, True, a=2, b=1) == []
    assert others(cluster, True, a=3, b=1) == ["vms/a"]
    assert others(cluster, True, a=2, b=2) == ["vms/b"]


READ = replace(rbd_disk("vda", "vms/a"), shared=True, written=False)
LATER = replace(rbd_disk("vda", "vms/a"), client="", written=False)
DEVICE = replace(rbd_disk("vda", "vms/a"), client="/dev/rbd0")


def test_a_disk_that_only_the_next_start_adds_has_no_client_yet(cluster: PaperCluster) -> None:
    assert others(cluster, True, [LATER], a=0) == []
    assert others(cluster, True, [LATER], a=1) == ["vms/a"], "another domain's"
    assert others(cluster, True, [LATER, rbd_disk("vdb", "vms/a")], a=2) == ["vms/a"]


def test_a_mapped_device_is_one_client_however_many_disks_have_it(cluster: PaperCluster) -> None:
    twice = [DEVICE, replace(DEVICE, target="vdb")]
    assert others(cluster, True, twice, a=1) == []
    assert others(cluster, True, twice, a=2) == ["vms/a"]


@pytest.mark.parametrize(
    ("state", "disks", "missing"),
    [
        (State.RUNNING, [DEVICE], True),
        (State.PAUSED, [rbd_disk("vda", "vms/a")], True),
        (State.CRASHED, [READ, rbd_disk("vdb", "vms/a")], True),
        (State.RUNNING, [READ], False),
        (State.RUNNING, [LATER], False),
        (State.SHUT_OFF, [rbd_disk("vda", "vms/a")], False),
        (State.SAVED, [rbd_disk("vda", "vms/a")], False),
    ],
)
def test_the_client_of_a_running_domain_s_disk_that_is_written_to_has_to_be_there(
    cluster: PaperCluster, state: State, disks: Sequence[Disk], missing: bool
) -> None:
    (use,) = uses(cluster, state, disks, a=0)
    assert use.missing == missing
    (use,) = uses(cluster, state, disks, a=1)
    assert not use.missing


def test_any_watcher_of_an_image_of_a_shut_off_domain_is_another_user(cluster: PaperCluster) -> None:
    assert others(cluster, False, a=0, b=0) == []
    assert others(cluster, False, a=1, b=1) == ["vms/a", "vms/b"]
