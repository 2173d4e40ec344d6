"""backup/report/health.py: the state of a node and its domains, from the reports of past runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backup.job_result import NOT_BEGUN
from backup.report.health import NodeHealth, node_health
from backup.report.report_types import Report


def entry(name: str, status: str = "saved", **changes: Any) -> Any:
    return {"name": name, "uuid": f"uuid of {name}", "status": status, "selected": True, **changes}


def report(run: str, *domains: Any, **changes: Any) -> Any:
    return {"run": run, "domains": domains, "named": [], "errors": [], "exit_code": 0, **changes}


def names(seen: NodeHealth) -> list[str]:
    return [one.newest["name"] for one in seen.domains]


def test_a_run_of_named_domains_does_not_change_the_others() -> None:
    seen = node_health(
        [
            report("2", entry("web", "failed"), named=["web"], exit_code=3),
            report("1", entry("web"), entry("db")),
        ]
    )
    assert names(seen) == ["db", "web"]
    assert seen.run
    assert seen.run["run"] == "1"
    assert [one.failures for one in seen.domains] == [0, 1]


def test_a_domain_missing_in_the_last_complete_list_is_gone() -> None:
    seen = node_health(
        [
            report("4", entry("new", "failed"), named=["new"]),
            report("3", entry("web", "failed")),
            report("2", entry("gone"), named=["gone"]),
            report("1", entry("web"), entry("gone")),
        ]
    )
    assert names(seen) == ["new", "web"]


def test_an_incomplete_run_removes_no_domain() -> None:
    incomplete = [
        report("6", exit_code=1, errors=["no libvirt"]),
        report("5", entry("web"), exit_code=3, errors=["no libvirt at the other node"]),
        report("4", exit_code=143),
    ]
    seen = node_health([*incomplete, report("3", entry("db")), report("2", entry("gone"))])
    assert names(seen) == ["db", "web"]
    assert seen.run
    assert seen.run["run"] == "6"


def test_errors_that_are_not_about_the_list_of_domains_keep_no_domain_that_is_gone() -> None:
    """An after-run hook that fails each night, or a prune."""
    failed = {"exit_code": 3, "errors": ["hook after-run.d/x failed"]}
    before = report("1", entry("web"), entry("gone"))
    assert names(node_health([report("2", entry("web"), **failed, all_listed=True), before])) == ["web"]
    kept = node_health([report("2", entry("web"), **failed, all_listed=False), before])
    assert names(kept) == ["gone", "web"]


def test_domains_that_are_not_selected_are_left_out() -> None:
    assert names(node_health([report("1", entry("test7", "skipped", selected=False), entry("web"))])) == [
        "web"
    ]
    assert names(node_health([report("1", {**entry("web"), "selected": True})])) == ["web"]


def test_a_skipped_domain_keeps_the_state_of_its_last_job() -> None:
    (one,) = node_health(
        [
            report("4", entry("web", "skipped")),
            report("3", entry("web", "failed", seconds=3)),
            report("2", entry("web", "saved", seconds=2)),
        ]
    ).domains
    assert one.job
    assert one.saved
    assert (one.job["seconds"], one.saved["seconds"], one.failures) == (3, 2, 0)


def test_failures_are_counted_since_the_last_success() -> None:
    runs = [report(str(n), entry("web", status)) for n, status in enumerate(["failed", "failed", "saved"])]
    assert [one.failures for one in node_health([*runs, report("0", entry("web", "failed"))]).domains] == [2]


def test_a_job_that_an_interrupted_run_never_began_ends_no_row_of_failures() -> None:
    before = [report("2", entry("web", "failed")), report("1", entry("web", "failed"))]
    interrupted = report("3", entry("web", "skipped", reason=NOT_BEGUN), exit_code=143)
    assert [one.failures for one in node_health([interrupted, *before]).domains] == [2]


def test_without_a_run_of_all_domains_the_last_run_is_taken() -> None:
    seen = node_health([report("2", entry("web"), named=["web"]), report("1", entry("db"), named=["db"])])
    assert seen.run
    assert (seen.run["run"], names(seen)) == ("2", ["db", "web"])
    assert node_health([]) == NodeHealth(None, [])


def test_no_more_reports_are_read_than_necessary() -> None:
    read = []

    def reports() -> Iterator[Report]:
        for one in [
            report("3", entry("web", "skipped"), entry("off", "skipped", selected=False)),
            report("2", entry("web")),
            report("1", entry("web")),
        ]:
            read.append(one["run"])
            yield one

    node_health(reports())
    assert read == ["3", "2"]
