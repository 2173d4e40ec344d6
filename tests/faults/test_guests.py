"""Faults in the quiesced moment: whatever stops, dies or comes too late, no guest stays frozen."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.provoke import (
    ONCE_FROZEN,
    agent_hook,
    freeze_status,
    frozen,
    held,
    in_frozen_cgroup,
    kill,
    kill_agent,
    stopped,
)
from tests.integration.node import Node, wait_until, within
from tests.lab import Lab
from tests.lab.sample import WEB
from tests.unit.waiting import runs

LIMIT = 6  # seconds, as FREEZE_TIMEOUT
POSSIBLE = 60  # seconds in which a freeze that was asked for may still happen, and more
IN_TIME = LIMIT + 5  # seconds from the freeze on, on a busy machine


def test_a_worker_that_is_stopped_costs_its_job_and_no_more_than_freeze_timeout(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=LIMIT):
        within(lambda: not held(node), IN_TIME, "main has thawed the guest")
        assert freeze_status(lab, WEB) == "thawed"
    web = node.report()["domains"][WEB]
    assert web["status"] == "failed"
    assert f"it did not thaw or resume the guest within {LIMIT} s (FREEZE_TIMEOUT)" in web["reason"]
    assert node.snapshots() == []
    _saved_by_the_next_run(node)


def test_a_worker_that_not_even_sigkill_ends_keeps_neither_its_guest_nor_main(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=LIMIT) as (main, worker), in_frozen_cgroup(worker):
        within(lambda: not held(node), IN_TIME, "main has thawed the guest")
        assert freeze_status(lab, WEB) == "thawed"
        os.kill(main, signal.SIGTERM)
        time.sleep(2)  # two that come at once are one
        os.kill(main, signal.SIGTERM)
        wait_until(lambda: not runs(main), 60, "the run has ended")
        assert runs(worker)
    report = node.report()
    assert report["exit_code"] == 143
    assert "its worker process was killed, but does not end" in report["domains"][WEB]["reason"]
    _saved_by_the_next_run(node)


def test_where_all_are_stopped_the_guest_is_thawed_once_they_go_on(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=LIMIT) as (main, worker):
        with in_frozen_cgroup(main, worker, *node.watchdogs()):
            os.kill(worker, signal.SIGCONT)
            time.sleep(IN_TIME)
            assert freeze_status(lab, WEB) == "frozen", "nobody can act"
        within(lambda: not held(node), IN_TIME, "the guest was thawed")
        assert freeze_status(lab, WEB) == "thawed"
    web = node.report()["domains"][WEB]
    assert (web["status"], web["consistency"]) != ("saved", "filesystem") or web["frozen_seconds"] < LIMIT
    _saved_by_the_next_run(node)


def test_where_main_is_stopped_too_the_watchdog_thaws_in_time(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=LIMIT) as (main, _), stopped(main):
        within(lambda: not held(node), IN_TIME + 2, "the watchdog has thawed the guest")
        assert freeze_status(lab, WEB) == "thawed"
    assert node.report()["domains"][WEB]["status"] == "failed"
    _saved_by_the_next_run(node)


@pytest.mark.parametrize("seconds", [0, 40], ids=["at once", "after longer than a call may wait"])
def test_a_freeze_that_libvirt_gets_to_when_its_sender_is_dead_is_undone(
    node: Node, lab: Lab, seconds: int
) -> None:
    with node.started("backup", WEB, FREEZE_TIMEOUT=LIMIT) as process:
        wait_until(lambda: held(node), 60, "the guest is being frozen")
        with stopped(lab.libvirtd_pid):
            (worker,) = node.workers()
            kill(process.pid, worker)
            time.sleep(seconds)
        wait_until(lambda: not held(node), POSSIBLE, "the watchdog has dealt with it")
    _writes(lab)
    _saved_by_the_next_run(node)


def test_a_freeze_of_a_slow_agent_whose_sender_was_killed_is_undone(node: Node, lab: Lab) -> None:
    with agent_hook(lab, WEB, "freeze", "sleep 3"):
        with node.started("backup", WEB, FREEZE_TIMEOUT=LIMIT) as process:
            wait_until(lambda: held(node), 60, "the guest is being frozen")
            (worker,) = node.workers()
            kill(worker, process.pid)
            wait_until(lambda: not held(node), POSSIBLE, "the watchdog has dealt with it")
        _writes(lab)
    _saved_by_the_next_run(node)


def test_an_agent_that_dies_while_main_and_worker_are_killed_is_waited_for(node: Node, lab: Lab) -> None:
    """The next run is not kept from saving the domain, and the watchdog thaws it as soon as it can."""
    kill_agent(lab, WEB, seconds=75, when=ONCE_FROZEN)
    with frozen(node, lab, WEB) as (main, worker):
        wait_until(lambda: not lab.hypervisor.agent_answers(WEB), 20, "the agent is dead")
        kill(main, worker)
        done = node.run("backup", WEB, FREEZE_TIMEOUT=LIMIT, RETRY_FOR=10)
        assert done.returncode == 3, done.stderr
        assert node.report()["errors"] == ["web01: the guest may still be frozen after the run"]
        assert "the guest may still be frozen or paused by an earlier backup" in done.stderr
        assert node.report()["domains"][WEB]["consistency"] == "crash"
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 90, "the agent answers again")
    wait_until(lambda: not held(node), 40, "a watchdog has thawed the guest")
    _writes(lab)


def test_a_guest_that_was_started_anew_is_in_the_way_of_nothing(node: Node, lab: Lab, plain: str) -> None:
    with frozen(node, lab, plain) as (main, worker):
        kill(*node.watchdogs(), main, worker)
    lab.destroy_domain(plain)
    lab.start_domain(plain, wait_for_agent=False)
    assert held(node)
    done = node.run("backup", plain, LOCK_DURATION=3, RETRY_FOR=10)
    assert done.returncode == 0, done.stderr
    assert not held(node)
    wait_until(lambda: lab.hypervisor.agent_answers(plain), 60, "the guest has booted")


def _writes(lab: Lab) -> None:
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers")
    assert freeze_status(lab, WEB) == "thawed"
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))


def _saved_by_the_next_run(node: Node) -> None:
    """Have the next run save it, once the lock of the run that was killed has expired."""
    done = node.run("backup", WEB, RETRY_FOR=20)
    assert done.returncode == 0, done.stderr
    # the cluster counts the dead worker for a while among those that have the images open
    assert node.report()["domains"][WEB]["consistency"] in ("filesystem", "crash")
