"""Groups of domains on one node: several configurations, one node, one scrape, and no guest frozen twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provoke import agent_hook, freeze_status, kill
from tests.integration.left_behind import left_behind
from tests.integration.monitoring import watching
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB
from tests.quick_repository import make_repository

# Two groups that save one disk each of the same domain, from different pools: they have no lock in common.
ROOT = {"INCLUDE_DOMAINS": [WEB], "EXCLUDE_IMAGES": ["ssd/*"], "FREEZE": "required", "FREEZE_TIMEOUT": 90}
DATA = {"INCLUDE_DOMAINS": [WEB], "EXCLUDE_IMAGES": ["vms/*"], "FREEZE": "required", "FREEZE_TIMEOUT": 90}


class Groups:
    """The groups of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def configure(self, group: str, **constants: Any) -> None:
        """Write the settings of a group, with a repository of its own."""
        repository = self.node.directory / f"repository-{group}"
        if not repository.exists():
            make_repository(repository)
        self.node.command()  # the settings without a group
        merged = {**self.node.constants, "RESTIC_REPOSITORY": str(repository), **constants}
        merged = {name: value for name, value in merged.items() if name not in ("REPORT_FILE", "STATE_DIR")}
        merged = {"STATE_DIR": str(self.node.directory / f"state-{group}"), **merged}
        merged.setdefault("REPORT_FILE", str(self.report_file(group)))
        path = self.node.directory / f"{group}.py"
        path.write_text("".join(f"{name} = {value!r}\n" for name, value in merged.items()))

    def report_file(self, group: str) -> Path:
        return self.node.directory / f"report-{group}.json"

    def domains(self, group: str) -> Mapping[str, Any]:
        """Give the domains of the group's last run, by their names."""
        report = json.loads(self.report_file(group).read_text())
        assert report["group"] == group
        return {domain["name"]: domain for domain in report["domains"]}

    def frozen(self, group: str) -> tuple[datetime, datetime]:
        """Give when the group's last run had web frozen."""
        web = self.domains(group)[WEB]
        assert web["consistency"] == "filesystem"
        since = datetime.fromisoformat(web["frozen_at"])
        return since, since + timedelta(seconds=web["frozen_seconds"])

    def run(self, group: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.node.run("--group", group, *words)

    def notes(self, group: str) -> Sequence[Path]:
        return sorted((self.node.runtime_dir / "groups" / group / "held").glob("*.json"))


@pytest.fixture
def groups(node: Node) -> Iterator[Groups]:
    yield Groups(node)
    for group in ("root", "data"):
        if (node.directory / f"{group}.py").exists():
            assert node.run("--group", group, "cleanup", "--all").returncode == 0


def test_each_group_has_its_domains_repository_state_and_report(groups: Groups) -> None:
    groups.configure("root", **ROOT)
    groups.configure("data", INCLUDE_DOMAINS=[ARCHIVE])
    for group, domain in (("root", WEB), ("data", ARCHIVE)):
        done = groups.run(group, "backup")
        assert done.returncode == 0, done.stderr
        saved = {name for name, one in groups.domains(group).items() if one["status"] == "saved"}
        assert saved == {domain}
        points = json.loads(groups.run(group, "restore-points", "--json").stdout)
        assert {point["domain"] for point in points} == {domain}
    status = json.loads(groups.node.run("status", "--json").stdout)
    shown = {(one.get("group"), one["name"]) for one in status["domains"] if one["taken"]}
    assert shown == {("root", WEB), ("data", ARCHIVE)}
    text = groups.node.run("report").stdout
    assert "of group root on" in text
    assert "of group data on" in text


def test_two_groups_never_quiesce_the_same_domain_at_once(groups: Groups, lab: Lab) -> None:
    """Their images lie in different pools, and so do their locks in the cluster."""
    groups.configure("root", **ROOT)
    groups.configure("data", **DATA)
    with agent_hook(lab, WEB, "freeze", "sleep 3"), ExitStack() as stack:
        runs = {
            group: stack.enter_context(groups.node.started("--group", group, "backup"))
            for group in ("root", "data")
        }
        for run in runs.values():
            output, _ = run.communicate(timeout=300)
            assert run.returncode == 0, output
    first, second = sorted(groups.frozen(group) for group in runs)
    assert first[1] - first[0] > timedelta(seconds=3)
    assert first[1] <= second[0]
    assert freeze_status(lab, WEB) == "thawed"


def test_a_guest_of_a_killed_run_is_thawed_by_the_next_run_of_another_group(groups: Groups, lab: Lab) -> None:
    node = groups.node
    groups.configure("root", **ROOT)
    groups.configure("data", INCLUDE_DOMAINS=[ARCHIVE])
    with node.started("--group", "root", "backup") as process:
        wait_until(lambda: groups.notes("root"), 60, "the guest is being frozen")
        (worker,) = node.workers()
        for _ in range(200):
            os.kill(worker, signal.SIGSTOP)
            if freeze_status(lab, WEB) == "frozen":
                break
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.005)  # or it may be stopped again before it gets on
        assert freeze_status(lab, WEB) == "frozen"
        kill(*node.watchdogs(), process.pid, worker)
        process.communicate(timeout=300)
    assert groups.notes("root")
    done = groups.run("data", "backup")
    assert done.returncode == 0, done.stderr
    assert freeze_status(lab, WEB) == "thawed"
    assert groups.notes("root") == []

    def cleaned() -> bool:
        """Clean up, which takes until the dead run's lock has expired."""
        return groups.run("root", "cleanup").returncode == 0 and not left_behind(lab, groups.node)

    wait_until(cleaned, 60, "its snapshot and lock are removed")
    # or the images of a later test would be in use by another client, which no required freeze allows
    wait_until(
        lambda: lab.rbd("status", f"vms/{WEB}-root").count(b"watcher=") == 1, 60, "Ceph has forgotten it"
    )


def test_the_metrics_of_all_groups_are_one_scrape(groups: Groups, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    groups.configure("root", **ROOT, METRICS_FILE=str(metrics / "root.prom"))
    groups.configure("data", INCLUDE_DOMAINS=[ARCHIVE], METRICS_FILE=str(metrics / "data.prom"))
    for group in ("root", "data"):
        assert groups.run(group, "backup").returncode == 0
    constants = {"INCLUDE_DOMAINS": [ARCHIVE], "METRICS_FILE": str(metrics / "none.prom")}
    assert groups.node.run("backup", **constants).returncode == 0
    with watching(metrics, tmp_path) as prometheus:

        def groups_of(expression: str) -> set[str]:
            return {one["metric"].get("group", "") for one in prometheus.query(expression)}

        wait_until(lambda: len(groups_of("virt_rbd_backup_build_info")) == 3, 30, "all files are read")
        assert groups_of("virt_rbd_backup_run_exit_code") == {"", "root", "data"}
        assert prometheus.query("node_textfile_scrape_error")[0]["value"][1] == "0"


def test_check_finds_a_domain_in_two_groups(groups: Groups) -> None:
    incremental = {"OUTPUT": "restic_incremental", "INCLUDE_DOMAINS": [ARCHIVE]}
    groups.configure("root", **incremental)
    groups.configure("data", **incremental)
    checked = groups.node.run("check", INCLUDE_DOMAINS=[WEB]).stdout
    assert f"WARNING  domain {ARCHIVE} is selected by group data and group root" in checked
    assert "each backup is a full read" in checked
    for _ in range(2):
        for group in ("root", "data"):
            assert groups.run(group, "backup").returncode == 0
            (image,) = groups.domains(group)[ARCHIVE]["images"]
            assert image["read_bytes"] > 1 << 20, "as check has warned"
