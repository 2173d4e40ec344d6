"""backup/cleanup.py: snapshots and locks that killed runs left are removed, under the domain's lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup import cleanup
from backup.cleanup import clean_node, remove_all_leftovers
from backup.cluster import Claim
from backup.journal import Journal
from backup.model import Disk, Domain, Level

from .disk_elements import rbd
from .driver_node import domain_element, node_uri
from .paper_cluster import PaperCluster, PaperClusters
from .paper_hypervisor import PaperHypervisor
from .recorder import Recorder
from .samples import OTHER_UUID, RUN, UUID, domain, foreign_disk, rbd_disk, settings

WEB = domain("web", UUID, disks=[rbd_disk("vda", "vms/a"), foreign_disk("vdb"), rbd_disk("vdc", "vms/b")])
DB = domain("db", OTHER_UUID, disks=[rbd_disk("vda", "vms/c")])
IMAGES = ("vms/a", "vms/b", "vms/c")
LOCK = f"virt-rbd-backup.lock.{UUID}"
LEFT = f"virt-rbd-backup.{UUID}.{RUN}"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PaperCluster:
    cluster = PaperCluster()
    cluster.snapshots = {name: {"foreign"} for name in IMAGES}
    monkeypatch.setattr(cleanup, "Clusters", lambda *_: PaperClusters(cluster))
    return cluster


def remove(directory: Path, recorder: Recorder, *domains: Domain) -> int:
    hypervisor = PaperHypervisor(WEB, Journal(str(directory)))
    return remove_all_leftovers(domains, hypervisor, settings(), recorder)


def test_snapshots_of_every_image_are_removed_under_the_domain_s_lock(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/b"].add(LEFT)
    assert remove(tmp_path, recorder, WEB, DB) == 0
    assert cluster.snapshots == {name: {"foreign"} for name in IMAGES}
    assert (cluster.claims[0], cluster.locks) == (Claim.TAKE, {})
    assert recorder.messages == [
        (Level.WARNING, "web", f"removed snapshot {LEFT} of vms/b that a killed run left")
    ]


@pytest.mark.parametrize("disks", [WEB.disks, (foreign_disk(),), ()], ids=["clean", "no image", "no disk"])
def test_where_nothing_is_left_no_lock_is_taken(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, disks: tuple[Disk, ...]
) -> None:
    assert remove(tmp_path, recorder, domain(disks=disks)) == 0
    assert (cluster.claims, recorder.messages) == ([], [])


def test_a_lock_that_has_expired_is_removed_even_where_no_snapshot_is_left(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [LOCK]  # the object, with no lock in it any more
    monkeypatch.setattr(cluster, "object_exists", lambda _image, name: name in left)
    monkeypatch.setattr(cluster, "remove_lock", lambda _image, name, _owner: left.remove(name))
    assert remove(tmp_path, recorder, WEB) == 0
    assert left == []


def test_a_domain_that_a_run_is_at_is_left_to_it_and_is_no_failure(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/a"].add(LEFT)
    cluster.locks[LOCK] = "another node"
    assert remove(tmp_path, recorder, WEB) == 0
    assert cluster.snapshots["vms/a"] == {"foreign", LEFT}
    assert recorder.messages == [
        (Level.INFO, "web", "another run backs up this domain, maybe on another node")
    ]


def test_a_domain_that_can_t_be_cleaned_is_told_counted_and_costs_no_other_one(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/a"].add(LEFT)
    cluster.snapshots["vms/c"].add(f"virt-rbd-backup.{OTHER_UUID}.{RUN}")
    cluster.failing = {("remove", "vms/a")}
    assert remove(tmp_path, recorder, WEB, DB) == 1
    assert cluster.snapshots["vms/c"] == {"foreign"}
    (told,) = recorder.told(Level.ERROR)
    assert told.startswith(f"cannot remove snapshot {LEFT} of image vms/a: ")
    assert cluster.locks == {}


def test_each_domain_is_cleaned_through_the_libvirt_that_knows_it(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [
        node_uri(tmp_path / "first.xml", domain_element("web", UUID, rbd("vms/a"))),
        node_uri(tmp_path / "second.xml", domain_element("db", OTHER_UUID, rbd("vms/c"))),
    ]
    clusters = {uri: PaperCluster() for uri in uris}
    clusters[uris[0]].snapshots = {"vms/a": {LEFT}}
    clusters[uris[1]].snapshots = {"vms/c": {f"virt-rbd-backup.{OTHER_UUID}.{RUN}"}}
    monkeypatch.setattr(cleanup, "Clusters", lambda one, *_: PaperClusters(clusters[one.uri]))
    assert clean_node(settings(libvirt_uri=uris, runtime_dir=str(tmp_path / "run")), recorder) == 0
    assert [cluster.snapshots for cluster in clusters.values()] == [{"vms/a": set()}, {"vms/c": set()}]
    assert [name for _, name, _ in recorder.messages] == ["web", "db"]
