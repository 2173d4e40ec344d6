"""Faults of the guest agent."""

from __future__ import annotations

from tests.faults.provoke import stop_agent
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import DATABASE, WEB


def test_a_required_freeze_that_can_not_be_had_fails_the_domain_alone(node: Node) -> None:
    done = node.run("backup", WEB, DATABASE, FREEZE="required")
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert domains[WEB]["consistency"] == "filesystem"
    assert domains[DATABASE]["status"] == "failed"
    assert "guest agent" in domains[DATABASE]["reason"]


def test_a_guest_agent_that_does_not_answer_gets_its_domain_paused(node: Node, lab: Lab) -> None:
    stop_agent(lab, WEB, seconds=20)
    done = node.run("backup", WEB, FREEZE_TIMEOUT=9)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers again")
    assert node.report()["domains"][WEB]["consistency"] == "paused"
    assert "warning: web01: not frozen" in done.stderr
