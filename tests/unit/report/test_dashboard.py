"""res/grafana-dashboard.json: what Grafana needs of it; what a real Prometheus answers it and the alerts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import jsonschema
import pytest

from backup.job_result import JobResult, Status
from backup.model import Consistency
from backup.report.copy_record import CopyRecord, now, write_record
from backup.report.publish import publish, publish_metrics
from backup.report.run_report import RunResult
from backup.stored import SavedImage
from tests.dashboard import DASHBOARD, SCHEMA, queries
from tests.integration.monitoring import RES, Prometheus, rules_without_data, unanswered, watching
from tests.integration.node import wait_until

from ..recorder import Recorder
from ..samples import LAYOUT, OTHER_UUID, RUN, UUID, settings

NOW = datetime.now(timezone.utc)
IMAGE = SavedImage("vda", "vms/web-root", 4096, 1024, 512, 0.5, "0123abcd", LAYOUT, read_bytes=1000)
FROZEN = JobResult(
    "web",
    UUID,
    Status.SAVED,
    consistency=Consistency.FILESYSTEM,
    frozen_seconds=0.2,
    taken=NOW,
    images=(IMAGE,),
)
PAUSED = replace(FROZEN, name="db", uuid=OTHER_UUID, consistency=Consistency.PAUSED)


def changed(path: Sequence[Any], value: Any) -> Any:
    """Give the dashboard with another value at a place; None removes it."""
    dashboard = copy.deepcopy(DASHBOARD)
    place = dashboard
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return dashboard


def errors(dashboard: Any) -> Sequence[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(dashboard)]


def test_the_dashboard_has_what_grafana_needs_and_nothing_that_it_does_not_know() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert errors(DASHBOARD) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schemaVersion",), None),
        (("uid",), "x"),
        (("panels", 0, "gridPos", "w"), 25),
        (("panels", 0, "gridPos", "y"), None),
        (("panels", 0, "type"), "singlestat"),
        (("panels", 0, "datasource", "uid"), "P1809F7CD0C75ACF3"),
        (("panels", 0, "targets", 0, "refId"), None),
        (("panels", 0, "targets", 0, "expression"), "up"),
        (("panels", 6, "fieldConfig", "overrides", 0, "matcher", "options"), None),
        (("templating", "list", 1, "datasource"), None),
        (("templating", "list", 0, "type"), "interval"),
    ],
)
def test_what_grafana_would_not_show_is_an_error(path: Sequence[Any], value: Any) -> None:
    assert len(errors(changed(path, value))) == 1


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24, "the grid's width"


def test_queries_have_letters_of_their_own_and_known_variables() -> None:
    names = [one["name"] for one in DASHBOARD["templating"]["list"]]
    assert names[0] == "datasource", "the others need it"
    assert len(set(names)) == len(names)
    for panel in DASHBOARD["panels"]:
        letters = [one["refId"] for one in panel["targets"]]
        assert len(set(letters)) == len(letters), panel["title"]
    for query in queries():
        assert query.expression.count("$") == query.expression.count("$instance") > 0, query.panel


def test_thresholds_ascend_from_minus_infinity() -> None:
    found = list(_thresholds(DASHBOARD))
    assert found
    for steps in found:
        first, *others = (step["value"] for step in steps)
        assert first is None
        assert others == sorted(others)


def _thresholds(value: Any) -> Iterator[Any]:
    """Yield the steps of all thresholds, wherever they are."""
    if isinstance(value, dict):
        if value.get("mode") == "absolute":
            yield value["steps"]
        for one in value.values():
            yield from _thresholds(one)
    elif isinstance(value, list):
        for one in value:
            yield from _thresholds(one)


def test_columns_are_formatted_by_the_names_that_they_get() -> None:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "table":
            continue
        options = panel["transformations"][-1]["options"]
        columns = {f"Value #{one['refId']}" for one in panel["targets"]}
        renamed = options.get("renameByName", {})
        assert renamed.keys() <= columns
        assert columns - renamed.keys() <= options["excludeByName"].keys(), "no column without a name"
        formatted = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        assert formatted | {one["displayName"] for one in panel["options"].get("sortBy", ())} <= {
            *renamed.values()
        }


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that watches a node with two domains, one of them frozen, the other paused."""
    directory = tmp_path_factory.mktemp("node")
    metrics = directory / "metrics"
    metrics.mkdir()
    files = {"state_dir": str(directory / "state"), "metrics_file": str(metrics / "backup.prom")}
    files["copy_repository"] = "/srv/copy"
    write_record(files["state_dir"], CopyRecord(now(), now(), 2), Recorder())
    chosen, result = settings(report_days=36500, **files), RunResult(RUN, "node1", NOW, NOW, (FROZEN, PAUSED))
    publish_metrics(chosen, Recorder(), publish(result, chosen, Recorder()))
    with watching(metrics, directory) as prometheus:
        recorded = "uuid:virt_rbd_backup_domain_age_seconds:min"
        wait_until(lambda: prometheus.has(recorded), 30, "the rules were evaluated")
        yield prometheus


def test_all_that_the_dashboard_asks_a_real_prometheus_has_an_answer(prometheus: Prometheus) -> None:
    assert unanswered(prometheus) == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (
            ("panels", 0, "targets", 0, "expr"),
            'virt_rbd_backup_other{instance=~"$instance"}',
            "Domains A of {",
        ),
        (("panels", 0, "targets", 0, "expr"), 'up{instance=~"${instance}"}', "Domains A of {"),
        (("panels", 0, "targets", 0, "legendFormat"), "{{domain}}", "Domains A of {"),
        (
            ("templating", "list", 1, "query", "query"),
            "label_values(virt_rbd_backup_build_info, node)",
            "variable instance",
        ),
    ],
)
def test_a_query_without_an_answer_is_found(
    prometheus: Prometheus, path: Sequence[Any], value: str, found: str
) -> None:
    named = unanswered(prometheus, changed(path, value))
    assert named
    assert all(name.startswith(found) for name in named)


def test_every_rule_selects_data_of_a_real_prometheus(prometheus: Prometheus) -> None:
    assert len(prometheus.rules()) == (RES / "prometheus-alerts.yml").read_text().count("expr:")
    assert rules_without_data(prometheus) == []
