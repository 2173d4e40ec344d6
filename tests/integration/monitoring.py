"""Prometheus, with node_exporter, as they would watch a node: the metrics of a directory, and our alerts."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.dashboard import DASHBOARD, filled, queries, variables
from tests.integration.node import wait_until

RES = Path(__file__).parents[2] / "res"


# What an expression of the rules selects: our metrics, the series that a rule records, and Prometheus' own.
SELECTOR = re.compile(r"\b(?:(?:uuid:)?virt_rbd_backup_\w+(?::min)?(?:\{[^}]*\})?|up\b(?=\s))")
STEP = 5  # seconds between the points of a line
LIMIT = 30  # seconds for a program to end


class Prometheus:
    """One that runs, to be asked."""

    def __init__(self, port: int) -> None:
        self._api = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> Sequence[Any]:
        """Give the samples of now. Raises OSError if it can't answer that."""
        return self._results("query", query=expression)

    def lines(self, expression: str) -> Sequence[Any]:
        """Give the series of the last minute. Raises OSError."""
        now = time.time()
        return self._results("query_range", query=expression, start=now - 60, end=now, step=STEP)

    def has(self, expression: str) -> bool:
        try:
            return bool(self.query(expression))
        except OSError:  # not up yet
            return False

    def values(self, metric: str, label: str) -> Sequence[str]:
        """Give the values of a metric's label, as Grafana finds them for a variable. Raises OSError."""
        values: Sequence[str] = self._data(f"label/{label}/values", **{"match[]": metric})
        return values

    def rules(self) -> Sequence[Any]:
        """Give the rules with their state. Raises OSError."""
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def _results(self, path: str, **parameters: object) -> Sequence[Any]:
        results: Sequence[Any] = self._data(path, **parameters)["result"]
        return results

    def _data(self, path: str, **parameters: object) -> Any:
        with urlopen(f"{self._api}/{path}?{urlencode(parameters)}", timeout=60) as answer:
            return json.load(answer)["data"]


def unanswered(prometheus: Prometheus, dashboard: Any = DASHBOARD) -> Sequence[str]:
    """Name variables and panels of a dashboard that get no data, for all nodes or one, or lack a label."""
    found = []
    choices: list[dict[str, str]] = [{}]
    for one in variables(dashboard):
        values = prometheus.values(one.metric, one.label)
        found += [] if values else [f"variable {one.name}"]
        choices = [
            {**choice, one.name: value} for choice in choices for value in (one.all, *map(escaped, values))
        ]
    for choice in choices:
        for query in queries(dashboard):
            expression = filled(query.expression, choice)
            series = prometheus.query(expression) if query.instant else prometheus.lines(expression)
            if not series or not all(set(query.labels) <= one["metric"].keys() for one in series):
                found.append(f"{query.panel} of {choice}")
    return found


def escaped(value: str) -> str:
    """Give a variable's value as Grafana puts it into a regular expression in quotes."""
    return re.escape(value).replace("\\", "\\\\")


def rules_without_data(prometheus: Prometheus) -> Sequence[str]:
    """Name the rules that fail, and what selects nothing in the others, sound as the state may be."""
    found = []
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            found.append(f"{rule['name']}: {rule['health']} {rule.get('lastError')}")
        selectors = SELECTOR.findall(rule["query"])
        assert selectors, rule["name"]
        found += [f"{rule['name']}: {one}" for one in selectors if not prometheus.query(one)]
    return found


@contextmanager
def watching(metrics: Path, directory: Path) -> Iterator[Prometheus]:
    """Have both run on loopback, and all that the metrics tell read, during the block."""
    exporter_port, port = _free_ports(2)
    configuration = directory / "prometheus.json"  # JSON is YAML
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(RES / "prometheus-alerts.yml")],
                "scrape_configs": [
                    {
                        "job_name": "node",
                        "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
                    }
                ],
            }
        )
    )
    with ExitStack() as stack:
        for command in (
            [
                "prometheus-node-exporter",
                "--collector.disable-defaults",
                "--collector.textfile",
                f"--collector.textfile.directory={metrics}",
                f"--web.listen-address=127.0.0.1:{exporter_port}",
            ],
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
        ):
            stack.enter_context(_running(command, directory / f"{command[0]}.log"))
        prometheus = Prometheus(port)
        wait_until(lambda: prometheus.has("virt_rbd_backup_build_info"), 60, "Prometheus has the metrics")
        yield prometheus


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_ports(number: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
