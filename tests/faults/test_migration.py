"""Live migrations between two nodes in every phase of a backup: saved by one, and never left frozen."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.migration import GUEST, Migration, NodeWithin, domain_of, end_guest, roaming_guest
from tests.faults.provoke import (
    HeldBackRestic,
    agent_hook,
    done_in_guest,
    freeze_status,
    frozen,
    held,
    held_before_freeze,
    lines_until,
    stopped,
)
from tests.integration.node import Node, wait_until, within
from tests.lab import Lab
from tests.lab.second_node import SecondNode, second_node

RETRIES = 60  # seconds, as RETRY_FOR: within them a migration ends
HOUR = 3600  # seconds, as MIN_AGE
MOVED = ("--persistent", "--undefinesource")  # defined where it runs alone; else on the first node too
# The cluster counts the QEMU that libvirt killed on the destination for a while among the images' users.
RIGHT_AFTER_A_CANCELLED_ONE = (["filesystem"], ["crash"])
ATTEMPTS = 3  # as a migration may overtake the freeze, or a worker be stopped before it knows of its freeze
THAWED_WITHIN = 10  # seconds after a migration has begun, on a busy machine


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[SecondNode]:
    with second_node(lab) as second:
        yield second


@pytest.fixture
def migration(lab: Lab, second: SecondNode, node: Node, tmp_path: Path) -> Iterator[Migration]:
    """A guest that runs on the first of two nodes; in the end one of them has it, writing as before."""
    other = NodeWithin(lab, tmp_path / "second", node, second.within)
    with roaming_guest(lab):
        try:
            migration = Migration(lab, second, node, other)
            yield migration
            migration.require_untouched()
        finally:
            end_guest(lab, second)


@pytest.mark.parametrize("options", [MOVED, ("--persistent",)], ids=["moved", "defined on both nodes"])
def test_a_domain_that_migrates_before_it_is_listed_is_saved_where_it_arrives(
    migration: Migration, node: Node, options: tuple[str, ...]
) -> None:
    with (
        migration.under_way(*options) as moving,
        node.started("backup", GUEST, RETRY_FOR=RETRIES) as source,
        migration.second_node.started("backup", GUEST, RETRY_FOR=RETRIES) as destination,
    ):
        for run in (source, destination):
            print(*lines_until(run, "retried in"))
        migration.complete(moving)
        assert (_code(source), _code(destination)) == (0, 0)
    assert domain_of(node)["status"] == "skipped"
    assert domain_of(migration.second_node)["status"] == "saved"
    assert migration.consistencies() == ["filesystem"]


def test_a_domain_whose_migration_is_cancelled_is_saved_where_it_stayed(
    migration: Migration, node: Node
) -> None:
    with (
        migration.under_way() as moving,
        node.started("backup", GUEST, RETRY_FOR=RETRIES) as source,
        migration.second_node.started("backup", GUEST, RETRY_FOR=RETRIES) as destination,
    ):
        for run in (source, destination):
            print(*lines_until(run, "retried in"))
        migration.cancel(moving)
        assert (_code(source), _code(destination)) == (0, 0)
    assert domain_of(node)["status"] == "saved"
    assert domain_of(migration.second_node)["status"] == "skipped"
    assert migration.consistencies() in RIGHT_AFTER_A_CANCELLED_ONE


@pytest.mark.parametrize("options", [MOVED, ("--persistent",)], ids=["moved", "defined on both nodes"])
def test_a_domain_that_migrates_between_its_lock_and_its_freeze_is_saved_where_it_arrives(
    migration: Migration, node: Node, options: tuple[str, ...]
) -> None:
    with held_before_freeze(node, GUEST, RETRY_FOR=RETRIES) as (source, go_on):
        with migration.under_way(*options) as moving:
            migration.complete(moving)
        go_on()
        assert _code(source) == 0
    assert domain_of(node)["status"] == "skipped"
    assert migration.second_node.run("backup", GUEST).returncode == 0
    assert migration.consistencies() == ["filesystem"]


def test_a_guest_that_is_frozen_is_thawed_at_once_when_its_migration_begins_which_goes_on(
    migration: Migration, node: Node, lab: Lab
) -> None:
    """A worker that is stopped before it has read the answer to its freeze rightly cancels the migration."""
    gone = any(_thawed_while_it_migrates(migration, node, lab) for _ in range(ATTEMPTS))
    assert gone, "each migration was cancelled"
    # saved if the snapshots, which others make, were there before the worker went on
    assert domain_of(node)["status"] in ("skipped", "saved")


def _thawed_while_it_migrates(migration: Migration, node: Node, lab: Lab) -> bool:
    """Have a frozen guest migrate and see it thawed; tell whether it arrives."""
    with (
        frozen(node, lab, GUEST, RETRY_FOR=RETRIES, FREEZE_TIMEOUT=90) as (_, worker),
        migration.under_way(*MOVED) as moving,
    ):
        os.kill(worker, signal.SIGCONT)
        within(lambda: not held(node), THAWED_WITHIN, "it is thawed")
        assert freeze_status(lab, GUEST) == "thawed"
        migration.let_go()
        return migration.arrives(moving)


def test_a_guest_that_is_being_frozen_is_thawed_at_once_while_its_migration_is_prepared(
    migration: Migration, node: Node, lab: Lab
) -> None:
    """A migration that sends memory before the freeze has ended, as on a busy machine, is cancelled."""
    lengths = (0.5, 0.3, 0.1, 0)  # of the freeze; how long preparing takes depends on the machine
    gone = any(_thawed_while_a_migration_is_prepared(migration, node, lab, seconds) for seconds in lengths)
    assert gone, "each migration was cancelled"
    assert domain_of(node)["status"] in ("skipped", "saved")


def _thawed_while_a_migration_is_prepared(migration: Migration, node: Node, lab: Lab, seconds: float) -> bool:
    """Have a guest migrate while it is being frozen and see it thawed; tell whether it arrives."""
    done_in_guest(lab, GUEST, f"echo sleep {seconds} >/run/on-freeze")
    with node.started("backup", GUEST, RETRY_FOR=RETRIES) as source:
        wait_until(lambda: held(node), 60, "it is being frozen")
        with migration.begun(*MOVED) as moving:  # slow: one that ends within the freeze takes it along
            within(lambda: not held(node), THAWED_WITHIN, "it is thawed")
            migration.await_memory(moving)
            migration.let_go()
            arrives = migration.arrives(moving)
        assert _code(source) == 0
    return arrives


def test_a_migration_that_overtakes_a_freeze_is_cancelled(migration: Migration, node: Node, lab: Lab) -> None:
    """On the destination nobody would thaw the guest."""
    with (
        agent_hook(lab, GUEST, "freeze", "sleep 20"),
        node.started("backup", GUEST, RETRY_FOR=RETRIES, FREEZE_TIMEOUT=90) as source,
    ):
        wait_until(lambda: held(node), 60, "it is being frozen")
        with migration.begun() as moving:
            assert "cancel" in moving.communicate(timeout=240)[0]
        assert _code(source) == 0
    assert migration.whereabouts() == [lab]
    assert migration.consistencies() in RIGHT_AFTER_A_CANCELLED_ONE


def test_a_migration_that_begins_while_the_guest_is_paused_is_cancelled_at_once(
    migration: Migration, node: Node, lab: Lab
) -> None:
    """libvirt would refuse to resume it until it arrives, and leave it paused there."""
    settings = {"FREEZE": "never", "RETRY_FOR": RETRIES, "FREEZE_TIMEOUT": 90, "CEPH_TIMEOUT": 60}
    with held_before_freeze(node, GUEST, **settings) as (source, go_on), ExitStack() as stack:
        go_on()
        wait_until(lambda: held(node), 60, "it is about to be paused")
        with stopped(lab.mon_pid):  # makes no snapshot, which takes a second
            wait_until(lambda: lab.virsh("domstate", GUEST).strip() == "paused", 20, "it is paused")
            moving = stack.enter_context(migration.begun())  # is not prepared before the monitor goes on
            wait_until(lambda: "None" not in lab.virsh("domjobinfo", GUEST), 20, "its migration begins")
        assert "cancel" in moving.communicate(timeout=60)[0]
        assert _code(source) == 0
    assert migration.whereabouts() == [lab]
    assert migration.consistencies() in (["paused"], ["crash"])


def test_a_domain_that_migrates_while_it_is_streamed_is_saved_by_the_source_alone(
    migration: Migration, node: Node
) -> None:
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", RESTIC_BINARY=restic.path, MIN_AGE=HOUR, INCLUDE_DOMAINS=[GUEST]) as source:
        restic.reached()
        with migration.under_way(*MOVED) as moving:
            migration.complete(moving)
        other = migration.second_node
        assert other.run("backup", MIN_AGE=HOUR).returncode == 0
        assert domain_of(other)["status"] == "skipped"
        restic.let_go()
        assert _code(source) == 0
    assert domain_of(node)["status"] == "saved"
    assert other.run("backup", MIN_AGE=HOUR).returncode == 0
    assert migration.consistencies() == ["filesystem"]


def test_a_domain_that_is_left_shut_off_where_it_migrated_from_is_saved_where_it_runs(
    migration: Migration, node: Node, lab: Lab
) -> None:
    """After a restart of the first node's libvirtd nothing there tells that the domain has migrated."""
    with migration.under_way("--persistent") as moving:
        migration.complete(moving)
    lab.stop_libvirtd()
    lab.start_libvirtd()
    for one in (node, migration.second_node):
        assert one.run("backup", MIN_AGE=HOUR, INCLUDE_DOMAINS=[GUEST]).returncode == 0
    assert domain_of(node)["status"] == "skipped"
    assert migration.consistencies() == ["filesystem"]


def _code(run: subprocess.Popen[str]) -> int:
    """Wait for a run's end."""
    print(run.communicate(timeout=150)[0])
    return run.returncode
