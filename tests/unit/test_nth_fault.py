"""One backup with a fault at its first call to the outside, then at its second, and so on to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.model import Consistency, JobResult, Status

from .faulty_node import Boundary, Fault, FaultyNode, Killed
from .samples import RUN, domain, rbd_disk

NEXT_RUN = "20240204T040506Z-next"
DISKS = (rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data"))
TARGETS = {"vda", "vdb"}
LEAST_CALLS = 20  # that a backup of two images makes

# The calls after whose failure something may be left to the next run.
CLEANUP_CALLS = {"lock", "remove_lock", "remove_snapshot"}


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_fails_nothing_is_lost_or_left(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        number += 1
        boundary = Boundary(fault, number)
        directory = tmp_path / str(number)
        directory.mkdir()
        with monkeypatch.context() as patch:
            node = FaultyNode(directory, patch, boundary, domain(disks=DISKS))
            result = _attempted(node)
            if not boundary.hit:
                break
            where = f"{fault.value} at call {number}, {boundary.hit}"
            boundary.heal()
            _assert_truth(node, result, where)
            _assert_nothing_stays(node, result, where)
    assert number > LEAST_CALLS
    assert result
    assert (result.status, result.consistency) == (Status.SAVED, Consistency.FILESYSTEM), "without a fault"


def _attempted(node: FaultyNode) -> JobResult | None:
    """Do the job; None if its process has not lived to tell."""
    try:
        return node.attempt(RUN)
    except Killed:
        return None
    except RuntimeError:
        assert node.boundary.fault is Fault.BUG
        return None


def _assert_truth(node: FaultyNode, result: JobResult | None, where: str) -> None:
    """A success is one; a failure says why; the label is no better than the moment was."""
    output = node.stepwise
    for run in output.complete:
        assert output.images[run] == TARGETS, where
    if result is None:
        return
    if result.status is Status.SAVED:
        assert output.complete == [RUN], where
        (frozen,) = node.frozen_at_snapshots.values()
        assert len(frozen) == len(DISKS), where
        assert all(frozen) or result.consistency is not Consistency.FILESYSTEM, where
    else:
        assert result.status is Status.FAILED, where
        assert result.reason, where
        assert result.reason.startswith("saved, but ") == bool(result.images), where
        assert not result.images or output.complete == [RUN], where


def _assert_nothing_stays(node: FaultyNode, result: JobResult | None, where: str) -> None:
    """The guest runs, and the cluster is as it was; after the next run at the latest where that was hit."""
    if result is None:
        node.let_go_noted()
    assert node.hypervisor.moves, where
    assert node.journal.notes() == [], where
    if result and node.boundary.hit not in CLEANUP_CALLS:
        assert node.left == [], where
    node.expire_lock()
    assert node.attempt(NEXT_RUN).status is Status.SAVED, where
    assert node.left == [], where
    assert node.hypervisor.moves, where
    assert all("foreign" in snapshots for snapshots in node.cluster.snapshots.values()), where
