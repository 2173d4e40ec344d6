"""METRICS_FILE of real runs, and what Prometheus, the alerts and the dashboard make of it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.monitoring import rules_without_data, unanswered, watching
from tests.integration.node import Node, wait_until
from tests.lab.sample import DATABASE, WEB
from tests.quick_repository import make_repository


def test_prometheus_alerts_and_dashboard_show_how_a_real_run_went(node: Node, tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    node.constants["METRICS_FILE"] = str(directory / "virt-rbd-backup.prom")
    only = {"INCLUDE_DOMAINS": [WEB, DATABASE]}
    done = node.run("backup", "--verify", FREEZE="required", **only)
    assert done.returncode == 3, "one has no guest agent"
    with watching(directory, tmp_path) as prometheus:

        def firing() -> set[tuple[str, str]]:
            alerts = prometheus.query('ALERTS{alertname=~"VirtRbd.*"}')
            return {(one["metric"]["alertname"], one["metric"].get("domain", "")) for one in alerts}

        def shown(expression: str) -> dict[str, float]:
            samples = prometheus.query(expression)
            return {one["metric"].get("domain", ""): float(one["value"][1]) for one in samples}

        expected = {("VirtRbdBackupDomainNeverSaved", DATABASE), ("VirtRbdBackupDomainFailing", DATABASE)}
        wait_until(lambda: firing() == expected, 120, "the alerts of what failed, and no others")
        assert unanswered(prometheus) == []
        assert prometheus.query("node_textfile_scrape_error")[0]["value"][1] == "0"
        assert 0 < shown("uuid:virt_rbd_backup_domain_age_seconds:min")[WEB] < 600
        assert 0 < shown("virt_rbd_backup_domain_frozen_seconds")[WEB] < 30
        assert shown("virt_rbd_backup_domain_read_bytes")[WEB] == sum(
            image["read_bytes"] for image in node.report()["domains"][WEB]["images"]
        )

        assert node.run("backup", DATABASE, **only).returncode == 0
        make_repository(tmp_path / "copy")
        node.constants["COPY_REPOSITORY"] = str(tmp_path / "copy")
        done = node.run("copy")
        assert (done.returncode, "2 restore points copied; none is missing" in done.stdout) == (0, True)
        wait_until(lambda: firing() == set(), 120, "the failed domain, saved by name, clears its alerts")
        assert set(shown("virt_rbd_backup_domain_consecutive_failures")) == {WEB, DATABASE}
        wait_until(lambda: not rules_without_data(prometheus), 120, "the copy's metrics are scraped too")

        assert node.run("backup", RESTIC_REPOSITORY="/nowhere", **only).returncode == 1
        expected = {("VirtRbdBackupRunIncomplete", "")}
        wait_until(lambda: firing() == expected, 120, "the alert of a run that could do nothing")
        assert set(shown("virt_rbd_backup_domain_consecutive_failures")) == {WEB, DATABASE}
