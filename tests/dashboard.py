"""res/grafana-dashboard.json, as Grafana reads it: its variables, and what its panels ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DASHBOARD: Any = json.loads((ROOT / "res/grafana-dashboard.json").read_text())
SCHEMA: Any = json.loads((ROOT / "tests/grafana_dashboard.schema.json").read_text())
LABEL = re.compile(r"\{\{(\w+)\}\}")  # in a legend
LABEL_VALUES = re.compile(r"label_values\((?P<metric>\w+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Variable:
    """One that Grafana fills with the values of a label. `all` stands for all of them together."""

    name: str
    metric: str
    label: str
    all: str


@dataclass(frozen=True)
class Query:
    """What a panel asks. `labels` are those that its legend shows; it draws a line unless it is `instant`."""

    panel: str
    expression: str
    labels: Sequence[str]
    instant: bool


def variables(dashboard: Any = DASHBOARD) -> Sequence[Variable]:
    found = []
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            asked = LABEL_VALUES.fullmatch(one["query"]["query"])
            assert asked, f"{one['name']}: Grafana's other functions are not known here"
            found.append(Variable(one["name"], asked["metric"], asked["label"], one["allValue"]))
    return found


def queries(dashboard: Any = DASHBOARD) -> Iterator[Query]:
    for panel in dashboard["panels"]:
        for one in panel["targets"]:
            labels = LABEL.findall(one["legendFormat"])
            yield Query(f"{panel['title']} {one['refId']}", one["expr"], labels, one.get("instant", False))


def for_all(query: Query) -> str:
    """Give the query's expression with each variable for all of its values."""
    return filled(query.expression, {one.name: one.all for one in variables()})


def filled(expression: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(f"${name}", value)
    return expression
