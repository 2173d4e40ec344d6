"""backup/run/cleanup.py: leftover snapshots and locks are removed under the domain's lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.ceph.cluster import Claim
from backup.ceph.errors import ClusterError
from backup.errors import BackupError, Interrupted
from backup.model import Disk, Domain, Image, Level, Override
from backup.quiesce.freeze_notes import FreezeNotes
from backup.run import cleanup
from backup.run.cleanup import Cleaner, clean_node
from backup.settings import Settings
from backup.stored import StoredPoint
from backup.system.stop_request import StopRequest

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperCluster, PaperClusters
from ..paper_hypervisor import PaperHypervisor
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, RUN, UUID, domain, foreign_disk, rbd_disk, settings
from ..slow_call import SlowCall
from ..waiting import wait_until

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
    return cleaner(directory, recorder).clean(domains, PaperHypervisor(WEB, FreezeNotes(str(directory))))


def cleaner(
    directory: Path, recorder: Recorder, stop: StopRequest | None = None, **constants: Any
) -> Cleaner:
    chosen = settings(runtime_dir=str(directory), **constants)
    return Cleaner(chosen, recorder, stop or StopRequest())


def test_snapshots_of_every_image_are_removed_under_the_domain_s_lock(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/b"].add(LEFT)
    assert remove(tmp_path, recorder, WEB, DB) == 0
    assert cluster.snapshots == {name: {"foreign"} for name in IMAGES}
    assert (cluster.claims[0], cluster.locks) == (Claim.TAKE, {})
    assert recorder.messages == [(Level.WARNING, "web", f"removed leftover snapshot {LEFT} of vms/b")]


@pytest.mark.parametrize("disks", [WEB.disks, (foreign_disk(),), ()], ids=["clean", "no image", "no disk"])
def test_without_leftovers_no_lock_is_taken(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, disks: tuple[Disk, ...]
) -> None:
    assert remove(tmp_path, recorder, domain(disks=disks)) == 0
    assert (cluster.claims, recorder.messages) == ([], [])


def test_a_lock_that_has_expired_is_removed_even_where_no_snapshot_is_left(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [LOCK]  # the object, with no lock in it any more
    monkeypatch.setattr(cluster, "object_exists", lambda _image, name: name in left)
    monkeypatch.setattr(cluster, "remove_lock", lambda _image, name, *_: left.remove(name))
    assert remove(tmp_path, recorder, WEB) == 0
    assert left == []


def test_a_domain_that_a_run_is_backing_up_is_skipped_and_no_failure(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/a"].add(LEFT)
    cluster.locks[LOCK] = "another node"
    assert remove(tmp_path, recorder, WEB) == 0
    assert cluster.snapshots["vms/a"] == {"foreign", LEFT}
    assert recorder.messages == [
        (Level.INFO, "web", "another run is backing up this domain, maybe on another node")
    ]


def test_the_snapshots_of_an_active_run_of_other_settings_stay(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves an image that these settings exclude, and begins after the first look at it."""
    web = domain("web", UUID, disks=[rbd_disk("vda", "vms/a"), rbd_disk("vdb", "fast/excluded")])
    cluster.snapshots["vms/a"].add(LEFT)
    cluster.snapshots["fast/excluded"] = set()
    take = cluster.lock

    def lock(image: Image, *arguments: Any) -> None:
        cluster.snapshots["fast/excluded"].add(LEFT)  # its lock is in that pool alone
        take(image, *arguments)

    monkeypatch.setattr(cluster, "lock", lock)
    chosen = cleaner(tmp_path, recorder, exclude_images=["fast/*"])
    assert chosen.clean([web], PaperHypervisor(web, FreezeNotes(str(tmp_path)))) == 0
    assert (cluster.snapshots["vms/a"], cluster.snapshots["fast/excluded"]) == ({"foreign"}, {LEFT})


def test_an_image_that_the_metadata_excludes_by_now_is_cleaned_under_the_lock_of_its_place(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    web = domain("web", UUID, disks=[rbd_disk("vda", "vms/a"), rbd_disk("vdb", "fast/excluded")])
    web = replace(web, override=Override(exclude=("vdb",)))
    cluster.snapshots["fast/excluded"] = {LEFT}
    cluster.locks[f"fast//{LOCK}"] = "another node"
    assert remove(tmp_path, recorder, web) == 0
    assert cluster.snapshots["fast/excluded"] == {LEFT}, "the run that made it may be alive"
    cluster.locks.clear()
    assert remove(tmp_path, recorder, web) == 0
    assert cluster.snapshots["fast/excluded"] == set()


def test_a_pool_that_permits_no_lock_keeps_no_other_image_from_being_cleaned(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [rbd_disk("vda", "vms/a"), rbd_disk("vdb", "fast/excluded"), rbd_disk("vdc", "ssd/excluded")]
    web = replace(domain("web", UUID, disks=disks), override=Override(exclude=("vdb", "vdc")))
    cluster.snapshots |= {"vms/a": {LEFT}, "fast/excluded": {LEFT}, "ssd/excluded": {LEFT}}
    take = cluster.lock

    def lock(image: Image, *arguments: Any) -> None:
        if image.pool == "fast":
            raise ClusterError("operation not permitted")
        take(image, *arguments)

    monkeypatch.setattr(cluster, "lock", lock)
    assert remove(tmp_path, recorder, web) == 0
    assert [len(cluster.snapshots[name]) for name in ("vms/a", "fast/excluded", "ssd/excluded")] == [0, 1, 0]
    text = "leftovers of fast/excluded, which is not backed up, stay: operation not permitted"
    assert recorder.told(Level.WARNING) == [
        f"removed leftover snapshot {LEFT} of vms/a",
        text,
        f"removed leftover snapshot {LEFT} of ssd/excluded",
    ]


def test_a_domain_that_cannot_be_cleaned_is_reported_and_counted_and_the_others_are_cleaned(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    cluster.snapshots["vms/a"].add(LEFT)
    cluster.snapshots["vms/c"].add(f"virt-rbd-backup.{OTHER_UUID}.{RUN}")
    cluster.failing = {("remove", "vms/a")}
    assert remove(tmp_path, recorder, WEB, DB) == 1
    assert cluster.snapshots["vms/c"] == {"foreign"}
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith(f"cannot remove snapshot {LEFT} of image vms/a: ")
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
    monkeypatch.setattr(cleanup, "Clusters", lambda secret, *_: PaperClusters(clusters[secret.__self__.uri]))
    chosen = settings(libvirt_uri=uris, runtime_dir=str(tmp_path / "run"))
    assert clean_node(chosen, recorder, StopRequest()) == 0
    assert [cluster.snapshots for cluster in clusters.values()] == [{"vms/a": set()}, {"vms/c": set()}]
    assert [name for _, name, _ in recorder.messages] == ["web", "db"]


def many(number: int) -> list[Domain]:
    return [
        domain(f"web{one}", f"{UUID[:-6]}{one:06}", disks=[rbd_disk("vda", "vms/a")]) for one in range(number)
    ]


def test_thousands_of_images_are_checked_in_seconds_and_the_progress_is_reported(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowCall(lambda _: [])
    monkeypatch.setattr(cluster, "snapshot_names", slow)
    hypervisor = PaperHypervisor(WEB, FreezeNotes(str(tmp_path)))
    assert cleaner(tmp_path, recorder, progress_interval=1).clean(many(2000), hypervisor) == 0
    assert slow.at_once > cleanup.AT_A_TIME / 4, "2,000 images take 20 s one by one"
    assert len(recorder.plan) == len(recorder.ends) == 2000
    assert recorder.told(Level.INFO)[0].endswith(" of 2000 domains checked for leftovers")


def test_a_stop_is_heard_while_a_call_hangs_and_nothing_more_is_begun(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stop = [], StopRequest()

    def hung(one: Image) -> list[str]:
        asked.append(one)
        if len(asked) == cleanup.AT_A_TIME:
            stop.request(Interrupted("interrupted", 15))
        assert cluster.go_on.wait(20)
        return []

    monkeypatch.setattr(cluster, "snapshot_names", hung)
    monkeypatch.setattr(cleanup, "GRACE", 0.2)
    began = time.monotonic()
    hypervisor = PaperHypervisor(WEB, FreezeNotes(str(tmp_path)))
    with raises("interrupted", Interrupted):
        cleaner(tmp_path, recorder, stop).clean(many(100), hypervisor)
    assert time.monotonic() < began + 15
    cluster.go_on.set()
    assert len(asked) == cleanup.AT_A_TIME


def test_a_stop_in_the_middle_of_the_removal_releases_the_lock(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.snapshots["vms/a"] |= {f"{LEFT}1", f"{LEFT}2"}
    stop, removed = StopRequest(), []

    def remove_one(_image: Image, name: str) -> None:
        assert LOCK in cluster.locks
        removed.append(name)
        stop.request(Interrupted("interrupted", 15))

    monkeypatch.setattr(cluster, "remove_snapshot", remove_one)
    with raises("interrupted", Interrupted):
        cleaner(tmp_path, recorder, stop).clean([WEB], PaperHypervisor(WEB, FreezeNotes(str(tmp_path))))
    assert (removed, cluster.locks) == ([f"{LEFT}1"], {})


def test_a_lock_that_is_lost_ends_the_removal_of_its_domain_alone(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.snapshots["vms/a"] |= {f"{LEFT}1", f"{LEFT}2"}
    cluster.snapshots["vms/c"].add(f"virt-rbd-backup.{OTHER_UUID}.{RUN}")
    remove_snapshot = cluster.remove_snapshot

    def remove_one(one: Image, name: str) -> None:
        remove_snapshot(one, name)
        if str(one) == "vms/a":
            cluster.locks[LOCK] = "another node"
            wait_until(lambda: Claim.RENEW in cluster.claims, 5, "a renewal")
            wait_until(lambda: not renewers(), 5, "the renewal has given up")

    def renewers() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "lock"]

    monkeypatch.setattr(cluster, "remove_snapshot", remove_one)
    seconds: int = 0.1  # type: ignore[assignment]  # below a second, for the test's sake
    hypervisor = PaperHypervisor(WEB, FreezeNotes(str(tmp_path)))
    # one after the other, as these locks expire so soon
    monkeypatch.setattr(cleanup, "AT_A_TIME", 1)
    assert cleaner(tmp_path, recorder, lock_duration=seconds).clean([WEB, DB], hypervisor) == 1
    assert cluster.snapshots["vms/a"] == {"foreign", f"{LEFT}2"}
    assert cluster.snapshots["vms/c"] == {"foreign"}
    assert cluster.locks == {LOCK: "another node"}
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith("lost the domain's lock: ")


def node_of(directory: Path, metadata: str = "", **constants: Any) -> Settings:
    """Return the settings of a node whose only domain has disks in two clusters."""
    disks = rbd("vms/a") + rbd("vms/b").replace("vda", "vdb")
    element = domain_element("web", UUID, disks, metadata=metadata)
    uri = node_uri(directory / "node.xml", element)
    return settings(libvirt_uri=uri, runtime_dir=str(directory / "run"), **constants)


BACKUP = "<backup xmlns='virt-rbd-backup' {}/>"


@pytest.mark.parametrize(
    ("metadata", "constants", "why"),
    [
        (BACKUP.format("enabled='no'"), {}, "not selected (disabled in its metadata): "),
        ("", {"exclude_domains": ["web"]}, "not selected (in EXCLUDE_DOMAINS): "),
        ("", {"exclude_images": ["vms/*"]}, "vdb (vms/b), which is not backed up: "),
        ("", {"include_domains": []}, "not selected (not in INCLUDE_DOMAINS): "),
    ],
)
def test_a_failure_for_a_domain_that_is_not_selected_is_a_warning(
    metadata: str,
    constants: dict[str, Any],
    why: str,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cleanup, "Clusters", unreachable)
    assert clean_node(node_of(tmp_path, metadata, **constants), recorder, StopRequest()) == 0
    assert recorder.told(Level.ERROR) == []
    assert recorder.told(Level.WARNING)[-1] == f"{why}no answer"


def test_a_failure_for_a_selected_domain_is_an_error(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "Clusters", unreachable)
    assert clean_node(node_of(tmp_path), recorder, StopRequest()) == 1
    assert recorder.told(Level.ERROR) == ["no answer"]


def unreachable(*_: object) -> PaperClusters:
    class Nowhere(PaperClusters):
        def at(self, address: object) -> PaperCluster:
            raise ClusterError("no answer")

    return Nowhere(PaperCluster())


def test_an_excluded_image_does_not_keep_the_others_from_being_cleaned(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.snapshots["vms/b"].add(LEFT)
    names = cluster.snapshot_names

    def names_of(one: Image) -> list[str]:
        if one.name == "a":
            raise ClusterError("no answer")
        return names(one)

    monkeypatch.setattr(cluster, "snapshot_names", names_of)
    assert clean_node(node_of(tmp_path, exclude_images=["vms/a"]), recorder, StopRequest()) == 0
    assert cluster.snapshots["vms/b"] == {"foreign"}
    assert recorder.told(Level.WARNING)[0] == "vda (vms/a), which is not backed up: no answer"


def test_a_domain_without_an_image_for_a_lock_is_no_failure(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    chosen = node_of(tmp_path, BACKUP.format("exclude='vda vdb'"))
    assert (clean_node(chosen, recorder, StopRequest()), recorder.messages) == (0, [])


def test_a_repository_that_does_not_answer_makes_nothing_look_unclaimed(
    cluster: PaperCluster, recorder: Recorder, tmp_path: Path
) -> None:
    class Silent(NoOutput):
        def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            raise BackupError("no route to host")

    own, of_others = LEFT, {f"virt-rbd-backup.{OTHER_UUID}.{RUN}", f"virt-rbd-backup.kept.{OTHER_UUID}.{RUN}"}
    cluster.snapshots["vms/a"] |= {own, *of_others}
    assert clean_node(node_of(tmp_path), recorder, StopRequest(), output=Silent()) == 0
    assert cluster.snapshots["vms/a"] == {"foreign", *of_others}
    text = recorder.told(Level.WARNING)[-1]
    assert text.endswith("as the restore points cannot be listed: no route to host")
