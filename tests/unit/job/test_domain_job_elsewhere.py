"""job/domain_job.py: domains that moved to another libvirt, or that another node has just saved."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.ceph.errors import LockHeld
from backup.job import domain_lock
from backup.job.domain_lock import CLEANUP
from backup.job_result import Status
from backup.model import Level, State

from ..paper_node import LOCK, PaperNode
from ..samples import OTHER_URI, URI, UUID, domain

THIRD_URI = "qemu+ssh://node3/system"
MakeNode = Callable[..., PaperNode]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    """Make a node that knows the given domains."""
    return lambda *domains: PaperNode(tmp_path, monkeypatch, *domains)


@pytest.fixture
def node(make: MakeNode) -> PaperNode:
    """A node whose two libvirts both know the domain."""
    return make(domain(), domain(uri=OTHER_URI))


def saved_at(node: PaperNode) -> list[str]:
    return [point.domain.uri for point in node.output.points]


def test_a_domain_is_saved_where_it_was_listed_and_no_other_libvirt_is_asked(node: PaperNode) -> None:
    assert node.back_up(uri=OTHER_URI).status is Status.SAVED
    assert (saved_at(node), node.connected) == ([OTHER_URI], [OTHER_URI])


def test_a_domain_that_migrated_since_it_was_listed_is_saved_where_it_is_now(node: PaperNode) -> None:
    node.hypervisor.listed = domain(state=State.ELSEWHERE)
    assert node.back_up().status is Status.SAVED
    assert (saved_at(node), node.connected) == ([OTHER_URI], [URI, OTHER_URI])


def test_a_domain_that_was_undefined_as_it_migrated_is_found_too(node: PaperNode) -> None:
    node.hypervisor.gone = True
    assert node.back_up().status is Status.SAVED
    assert saved_at(node) == [OTHER_URI]


def test_the_libvirt_that_listed_it_is_asked_even_if_it_is_no_longer_configured(node: PaperNode) -> None:
    assert node.back_up(uri=OTHER_URI, libvirt_uri=URI).status is Status.SAVED
    assert saved_at(node) == [OTHER_URI]


def test_a_domain_that_no_libvirt_has_any_more_is_skipped(node: PaperNode) -> None:
    for hypervisor in node.hypervisors.values():
        hypervisor.gone = True
    result = node.back_up()
    assert (result.status, result.reason) == (Status.SKIPPED, "the domain is no longer defined")
    node.assert_untouched()
    assert all(hypervisor.closed for hypervisor in node.hypervisors.values())


def test_a_domain_that_migrated_to_an_unknown_libvirt_is_skipped(node: PaperNode) -> None:
    node.hypervisor.listed = domain(state=State.ELSEWHERE)
    node.hypervisors[OTHER_URI].gone = True
    result = node.back_up()
    assert (result.status, result.reason) == (Status.SKIPPED, "the domain migrated to another node")


def test_a_domain_that_may_be_at_an_unreachable_libvirt_fails(make: MakeNode) -> None:
    node = make(domain(state=State.ELSEWHERE))
    result = node.back_up()
    assert (result.status, result.reason) == (
        Status.FAILED,
        f"cannot connect to libvirt at {OTHER_URI}: no route to host",
    )


def test_a_libvirt_that_does_not_answer_hides_no_other_one(make: MakeNode) -> None:
    node = make(domain(state=State.ELSEWHERE), domain(uri=THIRD_URI))
    result = node.back_up(libvirt_uri=[URI, OTHER_URI, THIRD_URI])
    assert (result.status, saved_at(node)) == (Status.SAVED, [THIRD_URI])


def test_a_domain_that_was_saved_less_than_min_age_ago_is_skipped_under_its_lock(node: PaperNode) -> None:
    node.output.age = 3500
    result = node.back_up(min_age=3600)
    assert result.status is Status.SKIPPED
    assert re.fullmatch(r"saved already at \d{4}(-\d\d){2} \d\d(:\d\d){2} UTC \(MIN_AGE\)", result.reason)
    assert node.output.asked_for == [UUID]
    assert (node.hypervisor.asked, node.output.points) == ([], [])
    assert node.recorder.told(Level.ERROR) == []


@pytest.mark.parametrize(("listed", "status"), [(3500, Status.SKIPPED), (3700, Status.SAVED)])
def test_the_output_is_asked_only_if_the_run_has_listed_no_backup_that_is_young_enough(
    node: PaperNode, listed: float, status: Status
) -> None:
    last_saved = datetime.now(timezone.utc) - timedelta(seconds=listed)
    assert node.back_up(min_age=3600, last_saved=last_saved).status is status
    assert node.output.asked_for == ([] if status is Status.SKIPPED else [UUID])


def test_what_an_earlier_attempt_of_the_run_left_skips_no_domain(node: PaperNode) -> None:
    node.output.age = 5
    assert node.back_up(min_age=3600, attempt=2).status is Status.SAVED


@pytest.mark.parametrize("age", [3700, None], ids=["older", "never saved"])
def test_a_domain_that_was_saved_longer_ago_or_never_is_saved(node: PaperNode, age: float | None) -> None:
    node.output.age = age
    assert node.back_up(min_age=3600).status is Status.SAVED


def test_without_min_age_the_output_is_not_even_asked(node: PaperNode) -> None:
    node.output.age = 1
    assert node.back_up().status is Status.SAVED
    assert node.output.asked_for == []


def test_with_min_age_a_domain_of_which_a_cleanup_has_the_lock_is_retried(node: PaperNode) -> None:
    """Nobody else saves it: skipped, it would not be saved at all."""
    node.cluster.locks[LOCK] = node.cluster.tokens[LOCK] = f"{CLEANUP}node2.1.abc"
    result = node.back_up(min_age=3600)
    assert (result.status, result.transient) == (Status.FAILED, True)
    assert result.reason == "a cleanup, maybe on another node, is removing leftovers of this domain"


def test_with_min_age_a_domain_of_which_a_killed_worker_has_the_lock_is_retried(node: PaperNode) -> None:
    """Skipped, it would not be saved at all, and the run would end with success."""
    node.cluster.locks[LOCK] = node.cluster.tokens[LOCK] = killed_owner()
    result = node.back_up(min_age=3600)
    assert (result.status, result.transient) == (Status.FAILED, True)
    assert result.reason.startswith("a backup of this domain was killed, and its lock has not expired yet (")


def test_a_retry_waits_for_the_lock_of_the_killed_worker_of_the_attempt_before(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a RETRY_FOR below LOCK_DURATION no later retry would find it expired."""
    take, held = node.cluster.lock, iter([True, True])

    def lock(*arguments: Any) -> None:
        if next(held, False):
            raise LockHeld("held")
        take(*arguments)

    node.cluster.tokens[LOCK] = killed_owner()
    monkeypatch.setattr(node.cluster, "lock", lock)
    monkeypatch.setattr(domain_lock, "RETRY_PAUSE", 0.01)
    assert node.back_up(attempt=2).status is Status.SAVED


def killed_owner() -> str:
    with subprocess.Popen(["true"]) as dead:
        pass
    return f"{socket.gethostname()}.{dead.pid}.abcdef01"


def test_with_min_age_a_domain_of_which_a_living_process_has_the_lock_is_skipped(node: PaperNode) -> None:
    node.cluster.locks[LOCK] = node.cluster.tokens[LOCK] = f"{socket.gethostname()}.{os.getpid()}.abcdef01"
    assert node.back_up(min_age=3600).status is Status.SKIPPED


def test_with_min_age_a_domain_that_another_run_is_backing_up_is_skipped(node: PaperNode) -> None:
    node.cluster.locks[LOCK] = "another node"
    result = node.back_up(min_age=3600)
    assert (result.status, result.reason) == (
        Status.SKIPPED,
        "another run is backing up this domain, maybe on another node",
    )
    assert (node.hypervisor.asked, node.output.points) == ([], [])
