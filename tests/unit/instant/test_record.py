"""backup/instant/record.py, under_way.py: any node reads what is under way, and shows what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backup.ceph.errors import LockLost
from backup.errors import BackupError
from backup.instant import record as records
from backup.instant.record import PREFIX, Record, RecordedDisk, Stage
from backup.instant.under_way import under_way
from backup.model import Image
from backup.stored import PointId

from ..paper_cluster import PaperCluster
from ..samples import RUN, UUID, held_point, image

DISKS = (RecordedDisk("vda", "vms/web-root", "vda"), RecordedDisk("vdb", "ssd/ns/web", "vdb"))
RECORD = Record(
    "web", "web", UUID, PointId(RUN, UUID), "2024-02-03 04:05:06", "0123", "node1", DISKS, Stage.RUNNING
)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The objects in the cluster on paper, by their names."""
    found: dict[str, bytes] = {}
    monkeypatch.setattr(records, "read_record", lambda _, __, name: found.get(name))

    def write(_: object, __: object, name: str, content: bytes, before: bytes) -> None:
        assert found[name] == before
        found[name] = content

    def create(_: object, __: object, name: str, content: bytes) -> None:
        found[name] = content

    monkeypatch.setattr(records, "write_record", write)
    monkeypatch.setattr(records, "create_record", create)
    return found


@pytest.fixture
def cluster() -> PaperCluster:
    cluster = PaperCluster()
    cluster.snapshots = {"vms/web-root.virt-rbd-backup.overlay": set(), "vms/other": set()}
    return cluster


def test_what_one_node_records_another_one_reads(objects: dict[str, bytes], cluster: PaperCluster) -> None:
    records.create(cluster, RECORD)
    assert list(objects) == [f"{PREFIX}web-root"]
    assert records.read(cluster, image("vms/web-root")) == RECORD
    assert list(records.found_in(cluster, "vms", "")) == [RECORD]
    assert RECORD.is_of(held_point())
    assert not RECORD.is_of(held_point(run="20250101T000000Z-ffff"))


def test_a_record_that_another_node_has_changed_since_is_not_replaced(
    objects: dict[str, bytes], cluster: PaperCluster
) -> None:
    records.create(cluster, RECORD)
    taken_over = replace(RECORD, host="node2")
    records.write(cluster, taken_over, RECORD)
    records.write(cluster, taken_over, RECORD)  # it is that already
    with pytest.raises(
        LockLost, match=r"another process has changed the object virt-rbd-backup\.instant\.web"
    ):
        records.write(cluster, replace(RECORD, started=True), RECORD)
    assert records.read(cluster, image("vms/web-root")) == taken_over
    objects.clear()
    with pytest.raises(LockLost):
        records.write(cluster, taken_over, RECORD)


def test_a_record_is_the_same_however_another_version_writes_it(
    objects: dict[str, bytes], cluster: PaperCluster
) -> None:
    records.create(cluster, RECORD)
    values = json.loads(objects[f"{PREFIX}web-root"])
    del values["pivoting"]
    objects[f"{PREFIX}web-root"] = json.dumps(values, indent=1).encode()
    records.write(cluster, replace(RECORD, started=True), RECORD)
    assert records.read(cluster, image("vms/web-root")) == replace(RECORD, started=True)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", json.dumps({"version": 2, "point": [RUN, UUID]}).encode()]
)
def test_a_record_that_is_not_understood_is_an_error_and_not_taken_for_none(
    objects: dict[str, bytes], cluster: PaperCluster, content: bytes
) -> None:
    objects[f"{PREFIX}web-root"] = content
    with pytest.raises(
        BackupError, match=r"the record virt-rbd-backup.instant.web-root in vms cannot be read"
    ):
        records.read(cluster, image("vms/web-root"))


def test_disks_that_are_moved_are_no_longer_on_overlays() -> None:
    found = RECORD.changed("vda", filled="12ab").changed("vda", moved=True)
    assert [disk.target for disk in found.on_overlays] == ["vdb"]
    assert found.overlays == {"vda": image("vms/web-root").overlay, "vdb": Image("ssd", "web", "ns").overlay}
    assert found.progress == "1 of 2 images restored, 1 of 2 disks moved"


def test_who_continues_it_is_shown_or_how_to(objects: dict[str, bytes], cluster: PaperCluster) -> None:
    failed: list[str] = []
    records.create(cluster, RECORD)
    (found,) = under_way(cluster, "vms", ["", "ns"], failed.append)
    assert (found.needs_admin, found.text) == (
        True,
        "instant restore interrupted on node1: 0 of 2 images restored, 0 of 2 disks moved; "
        "`main.py restore web --instant` continues it",
    )
    records.create(cluster, replace(RECORD, options="--to-pool=ssd --force"))
    (found,) = under_way(cluster, "vms", [""], failed.append)
    assert found.text.endswith("; `main.py restore web --instant --to-pool=ssd --force` continues it")
    records.create(cluster, replace(RECORD, pivoting=True))
    (found,) = under_way(cluster, "vms", [""], failed.append)
    assert "0 of 2 disks moved, the guest is paused; `main.py restore web" in found.text
    records.create(cluster, RECORD)
    lock = f"virt-rbd-backup.lock.{UUID}"
    cluster.locks[lock] = cluster.tokens[lock] = "restore.node2.123.abcd"
    (found,) = under_way(cluster, "vms", [""], failed.append)
    assert found.text == "instant restore on node2: 0 of 2 images restored, 0 of 2 disks moved"
    assert not found.needs_admin
    cluster.locks.clear()
    records.create(cluster, replace(RECORD, stage=Stage.ABORTED))
    (found,) = under_way(cluster, "vms", [""], failed.append)
    assert found.text == (
        "instant restore aborted; what the guest has written is in vms/web-root.virt-rbd-backup.overlay, "
        "ssd/ns/web.virt-rbd-backup.overlay"
    )
    assert failed == []


def test_a_pool_that_cannot_be_listed_costs_a_line(objects: dict[str, bytes], cluster: PaperCluster) -> None:
    failed: list[str] = []
    objects[f"{PREFIX}web-root"] = b""
    assert under_way(cluster, "vms", [""], failed.append) == []
    assert [text.split(":")[0] for text in failed] == ["pool vms not searched for instant restores"]
