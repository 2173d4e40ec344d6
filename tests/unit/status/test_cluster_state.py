"""backup/status/cluster_state.py: base snapshots and active jobs, of this node's domains and of others'."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from backup.ceph.errors import ClusterError
from backup.errors import Interrupted
from backup.model import Domain, Override
from backup.orphaned.places import NodeDomains
from backup.report.domain_record import DomainRecord
from backup.status.cluster_state import with_cluster_state
from backup.status.domain_status import BaseSnapshots, DomainStatus
from backup.stored import StoredPoint

from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..samples import FSID, MIB, OTHER_UUID, UUID, domain, held_point, rbd_disk, settings

RUN = f"{datetime.now(timezone.utc) - timedelta(days=1):%Y%m%dT%H%M%SZ}-abcd"
WEB = domain("web", UUID, disks=[rbd_disk("vda", "vms/a")])
POINT = replace(held_point(RUN, OTHER_UUID, "m"), domain="db", locks=(f"{FSID}/vms/",))


def status(name: str, uuid: str, newest: StoredPoint | None = None) -> DomainStatus:
    return DomainStatus(name, uuid, True, newest, DomainRecord())


class Asked:
    """A node with one cluster, whose pool vms is known from the domain web."""

    def __init__(self) -> None:
        self.cluster = PaperCluster()
        self.cluster.snapshots = {"vms/a": {"foreign"}, "vms/b": {"foreign"}}
        self.warnings: list[str] = []
        self.closed = threading.Event()

    def statuses(
        self, *domains: DomainStatus, defined: Sequence[Domain] = (WEB,), **constants: object
    ) -> Sequence[DomainStatus]:
        nodes = [NodeDomains(defined, PaperClusters(self.cluster))]
        chosen = settings(**constants)
        found = with_cluster_state(
            domains, nodes, chosen, self.warnings.append, lambda: None, self.closed.set
        )
        assert self.closed.is_set()
        return found


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_base_snapshots_are_counted_with_what_they_hold(asked: Asked) -> None:
    asked.cluster.snapshots["vms/a"].add(f"virt-rbd-backup.kept.{UUID}.{RUN}")
    asked.cluster.snapshots["vms/b"] |= {
        f"virt-rbd-backup.kept.{OTHER_UUID}.{RUN}",
        f"virt-rbd-backup.{UUID}.{RUN}",
    }
    web, db = asked.statuses(status("web", UUID), status("db", OTHER_UUID, POINT))
    assert (web.bases, db.bases) == (BaseSnapshots(1, 2 * MIB), BaseSnapshots(1, 3 * MIB))
    assert asked.warnings == []


def test_what_a_base_snapshot_holds_is_unknown_without_a_valid_object_map(asked: Asked) -> None:
    asked.cluster.snapshots["vms/a"].add(f"virt-rbd-backup.kept.{UUID}.{RUN}")
    asked.cluster.distrusted = {"vms/a@head"}
    (web,) = asked.statuses(status("web", UUID))
    assert web.bases == BaseSnapshots(1, None)


def test_the_holder_of_a_lock_is_what_runs_now(asked: Asked) -> None:
    asked.cluster.locks = {
        f"virt-rbd-backup.lock.{UUID}": "node1.example.org.4711.abcdef01",
        f"virt-rbd-backup.lock.{OTHER_UUID}": "cleanup.node2.12.abcdef01",
    }
    asked.cluster.tokens = dict(asked.cluster.locks)
    web, db = asked.statuses(status("web", UUID), status("db", OTHER_UUID, POINT))
    assert (web.job, db.job) == ("backup on node1.example.org", "cleanup on node2")


def test_a_lock_that_has_expired_is_no_job(asked: Asked) -> None:
    asked.cluster.tokens = {f"virt-rbd-backup.lock.{UUID}": "node1.4711.abcdef01"}
    (web,) = asked.statuses(status("web", UUID))
    assert web.job == ""


def test_a_cluster_that_does_not_answer_costs_a_warning(asked: Asked) -> None:
    asked.cluster.unreachable = True
    (web,) = asked.statuses(status("web", UUID))
    assert web.job == ""
    assert "web: cannot find out whether a job is active: connection timed out" in asked.warnings[0]


def test_a_domain_whose_images_are_all_excluded_has_no_lock_and_costs_no_other_one(asked: Asked) -> None:
    excluded = replace(WEB, override=Override(exclude=("vda",)))
    other = domain("db", OTHER_UUID, disks=[rbd_disk("vda", "vms/b")])
    asked.cluster.locks = {f"virt-rbd-backup.lock.{OTHER_UUID}": "node1.4711.abcdef01"}
    asked.cluster.tokens = dict(asked.cluster.locks)
    web, db = asked.statuses(status("web", UUID), status("db", OTHER_UUID), defined=(excluded, other))
    assert (web.job, db.job) == ("", "backup on node1")
    assert asked.warnings == []


def test_a_lock_that_cannot_be_asked_for_costs_a_warning(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bool:
        raise ClusterError("no answer")

    monkeypatch.setattr(asked.cluster, "has_pool", fails)
    (db,) = asked.statuses(status("db", OTHER_UUID, POINT))
    assert db.job == ""
    assert asked.warnings == ["db: cannot find out whether a job is active: no answer"]


def test_without_any_cluster_nothing_is_claimed(asked: Asked) -> None:
    (web,) = asked.statuses(status("web", UUID), defined=())
    assert (web.bases, web.job) == (None, "")
    assert asked.warnings == ["no cluster can be asked for base snapshots and active jobs"]


def test_a_request_to_stop_ends_it_whatever_hangs(asked: Asked) -> None:
    asked.cluster.snapshots = {}

    def stop() -> None:
        raise Interrupted("interrupted by SIGINT", 2)

    with raises("interrupted by SIGINT", Interrupted):
        nodes = [NodeDomains([WEB], PaperClusters(asked.cluster))]
        with_cluster_state(
            [status("web", UUID)], nodes, settings(), asked.warnings.append, stop, asked.closed.set
        )
