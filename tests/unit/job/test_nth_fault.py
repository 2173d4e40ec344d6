"""One backup with a fault at its first call to the outside, then at its second, and so on to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.job_result import JobResult, Status
from backup.model import Consistency

from ..faulty_node import Boundary, Fault, FaultyNode, Killed, StepwiseOutput, StreamedOutput
from ..samples import RUN, domain, rbd_disk

NEXT_RUN = "20240204T040506Z-next"
DISKS = (rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data"))
TARGETS = {"vda", "vdb"}
LEAST_CALLS = 20  # that a backup of two images makes

KILLED = {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}

# The calls that remove something of ours: if one of them fails, the next run does it.
REMOVAL = {"remove_lock", "remove_snapshot"}

# The calls of a thaw: after a bug in one of them the main process thaws the guest.
THAW_CALLS = {"state", "instance", "thaw"}

# The state before and after each snapshot that each consistency requires.
QUIESCED = {Consistency.FILESYSTEM: "frozen", Consistency.PAUSED: "paused"}


@pytest.mark.parametrize("output", [StepwiseOutput, StreamedOutput])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_fails_nothing_is_lost_or_left(
    fault: Fault, output: type[StepwiseOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        number += 1
        boundary = Boundary(fault, number)
        directory = tmp_path / str(number)
        directory.mkdir()
        with monkeypatch.context() as patch:
            node = FaultyNode(directory, patch, boundary, domain(disks=DISKS), output)
            result = _attempted(node)
            if not boundary.hit:
                break
            where = f"{fault.value} at call {number}, {boundary.hit}"
            boundary.heal()
            _assert_truth(node, result, where)
            _assert_thawed(node, where)
            _assert_nothing_stays(node, where)
    assert number > LEAST_CALLS
    assert result
    assert (result.status, result.consistency) == (Status.SAVED, Consistency.FILESYSTEM), "without a fault"


def _attempted(node: FaultyNode) -> JobResult | None:
    """Do the job; None if its process was killed."""
    try:
        return node.attempt(RUN)
    except Killed:
        return None
    except RuntimeError:
        assert node.boundary.fault is Fault.BUG
        return None


def _assert_truth(node: FaultyNode, result: JobResult | None, where: str) -> None:
    """A success is complete; a failure has a reason; the consistency is not better than the moment was."""
    complete = node.stepwise.complete
    for point in complete:
        assert node.stepwise.images.get(point.run) == TARGETS, where
        states = node.states_at_snapshots[point.run]
        assert len(states) == 2 * len(DISKS), where
        if point.consistency in QUIESCED:  # a crash-consistent one may have been in any state
            assert set(states) == {QUIESCED[point.consistency]}, f"{where}: {point.consistency}"
    assert result is None or node.boundary.fault not in KILLED, f"{where}: the kill was taken for an error"
    if result is None:
        return
    if result.status is Status.SAVED:
        assert [(point.run, point.consistency) for point in complete] == [(RUN, result.consistency)], where
    else:
        assert result.status is Status.FAILED, where
        assert result.reason, where
        assert result.reason.startswith("saved, but ") == bool(result.images), where
        assert not result.images or [point.run for point in complete] == [RUN], where


def _assert_thawed(node: FaultyNode, where: str) -> None:
    """The job has thawed the guest itself, unless it was killed or the thaw has the bug."""
    boundary = node.boundary
    if boundary.fault in KILLED or (boundary.fault is Fault.BUG and boundary.hit in THAW_CALLS):
        node.thaw_guests()
    assert node.hypervisor.moves, where
    assert node.notes.all() == [], where


def _assert_nothing_stays(node: FaultyNode, where: str) -> None:
    """The cluster is as it was; after the next run where the job was killed or a removal was hit."""
    boundary = node.boundary
    if boundary.fault in KILLED or boundary.hit in REMOVAL:
        one_at_most = boundary.fault in (Fault.REFUSED, Fault.LOST)  # an error does not end the removals
        assert len(node.left) <= 1 or not one_at_most, f"{where}: {node.left}"
        node.expire_lock()
    else:
        assert node.left == [], where
    result = node.attempt(NEXT_RUN)
    assert (result.status, result.consistency) == (Status.SAVED, Consistency.FILESYSTEM), f"{where}: {result}"
    assert node.cluster.snapshots == {"vms/root": {"foreign"}, "vms/data": {"foreign"}}, where
    assert node.left == [], where
    assert node.hypervisor.moves, where
    assert node.notes.all() == [], where
