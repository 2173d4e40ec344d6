"""backup/report/run_report.py: the result of a run, and the schema of its report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backup import __version__
from backup.job_result import JobResult, Phase, Status, Timeline
from backup.model import Consistency, Disk
from backup.report.domain_record import DomainRecord
from backup.report.report_types import (
    DomainEntry,
    ImageEntry,
    PhaseEntry,
    Report,
    SkippedDisk,
    TimelineEntry,
)
from backup.report.run_report import RunResult, report_json
from backup.stored import SavedImage

from ..samples import LAYOUT, RUN, TAKEN, UUID

IMAGE = SavedImage("vda", "vms/web-root", 4096, 1024, 512, 0.51234, "0123abcd", LAYOUT, read_bytes=1000)
SAVED = JobResult(
    "web",
    UUID,
    Status.SAVED,
    consistency=Consistency.FILESYSTEM,
    frozen_seconds=0.12345,
    frozen_at=TAKEN + timedelta(seconds=1),
    taken=TAKEN + timedelta(seconds=1.5),
    seconds=2.5,
    images=(IMAGE,),
    skipped_disks=(Disk("vdb", "/srv/x", skipped="no RBD image (file)"),),
    leftovers=2,
    timeline=Timeline(
        1, TAKEN, TAKEN + timedelta(seconds=3), ((Phase.STREAM, TAKEN + timedelta(seconds=2)),)
    ),
)
FAILED = JobResult("db", UUID, Status.FAILED, reason="no answer", hint="is it on?")
SKIPPED = JobResult("gone", UUID, Status.SKIPPED, reason="gone")
SCHEMA = json.loads((Path(__file__).parents[3] / "res/report.schema.json").read_text())
LOST = "cannot connect to libvirt at qemu+ssh://node2/system: no route to host"


def run_of(*results: JobResult, **changes: Any) -> RunResult:
    return RunResult(RUN, "node1", TAKEN, TAKEN + timedelta(seconds=61), results, **changes)


@pytest.mark.parametrize(
    ("results", "changes", "code"),
    [
        ([], {}, 0),
        ([SAVED], {}, 0),
        ([SAVED, SKIPPED], {}, 0),
        ([SAVED, FAILED, SKIPPED], {}, 3),
        ([SAVED], {"errors": [LOST]}, 3),
        ([], {"errors": [LOST]}, 3),
        ([], {"nothing_done": True}, 1),
        ([], {"nothing_done": True, "errors": [LOST]}, 1),
        ([SAVED], {"signal_number": 2}, 130),
        ([SAVED, FAILED], {"signal_number": 15}, 143),
        ([], {"signal_number": 15, "nothing_done": True, "errors": [LOST]}, 143),
    ],
)
def test_the_exit_code_shows_failures_and_interruptions(
    results: Sequence[JobResult], changes: Any, code: int
) -> None:
    assert run_of(*results, **changes).exit_code == code


def test_the_report_has_the_run_each_domain_and_each_image() -> None:
    proof = DomainRecord(
        saved="2024-02-03T04:05:07+00:00",
        verified="2024-02-01T00:00:00+00:00",
        drilled="2024-02-02T00:00:00+00:00",
        drill_kind="instant",
        failure="it is damaged",
    )
    report = in_json(run_of(SAVED, FAILED, errors=(LOST,), named=("web", "db")), {UUID: proof})
    saved, failed = report.pop("domains")
    assert report == {
        "schema": 1,
        "version": __version__,
        "run": RUN,
        "host": "node1",
        "started": "2024-02-03T04:05:06.789+00:00",
        "finished": "2024-02-03T04:06:07.789+00:00",
        "exit_code": 3,
        "named": ["web", "db"],
        "errors": [LOST],
    }
    assert saved == {
        "name": "web",
        "uuid": UUID,
        "selected": True,
        "status": "saved",
        "reason": "",
        "hint": "",
        "consistency": "filesystem",
        "taken": "2024-02-03T04:05:08.289+00:00",
        "frozen_at": "2024-02-03T04:05:07.789+00:00",
        "frozen_seconds": 0.123,
        "seconds": 2.5,
        "leftovers": 2,
        "timeline": {
            "lane": 1,
            "started": "2024-02-03T04:05:06.789+00:00",
            "finished": "2024-02-03T04:05:09.789+00:00",
            "phases": [{"phase": "streaming", "started": "2024-02-03T04:05:08.789+00:00"}],
        },
        "last_saved": "2024-02-03T04:05:07+00:00",
        "last_verified": "2024-02-01T00:00:00+00:00",
        "last_drill": "2024-02-02T00:00:00+00:00",
        "last_drill_kind": "instant",
        "proof_failure": "it is damaged",
        "images": [
            {
                "image": "vms/web-root",
                "target": "vda",
                "size": 4096,
                "data_bytes": 1024,
                "read_bytes": 1000,
                "skipped_bytes": 3096,
                "stored_bytes": 512,
                "seconds": 0.512,
                "restore_id": "0123abcd",
            }
        ],
        "not_covered": [{"target": "vdb", "source": "/srv/x", "reason": "no RBD image (file)"}],
    }
    assert failed["status"] == "failed"
    assert (failed["reason"], failed["hint"]) == ("no answer", "is it on?")
    assert (failed["consistency"], failed["taken"], failed["timeline"]) == (None, None, None)


@pytest.mark.parametrize(
    "result",
    [
        run_of(SAVED, FAILED, SKIPPED),
        run_of(not_selected=(SKIPPED,), errors=(LOST,)),
        run_of(nothing_done=True),
        run_of(SAVED, signal_number=1),
        run_of(SAVED, all_listed=True),
    ],
)
def test_each_report_matches_the_schema_without_further_members(result: RunResult) -> None:
    jsonschema.validate(in_json(result, {}), closed(SCHEMA), format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    ("form", "described"),
    [
        (Report, SCHEMA),
        (DomainEntry, SCHEMA["$defs"]["domain"]),
        (TimelineEntry, SCHEMA["$defs"]["timeline"]),
        (PhaseEntry, SCHEMA["$defs"]["timeline"]["properties"]["phases"]["items"]),
        (ImageEntry, SCHEMA["$defs"]["image"]),
        (SkippedDisk, SCHEMA["$defs"]["domain"]["properties"]["not_covered"]["items"]),
    ],
)
def test_the_types_have_the_members_of_the_schema(form: Any, described: Any) -> None:
    assert set(form.__annotations__) == set(described["properties"])
    assert form.__required_keys__ == set(described["required"])


@pytest.mark.parametrize("member", ["schema", "status", "lane"])
def test_the_schema_refuses_values_of_another_type(member: str) -> None:
    text = json.dumps(in_json(run_of(SAVED), {}))
    wrong = re.sub(rf'"{member}": (1|"saved")', f'"{member}": "x"', text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(wrong), SCHEMA)


def in_json(result: RunResult, known: Mapping[str, DomainRecord]) -> Any:
    return json.loads(json.dumps(report_json(result, known)))


def closed(schema: Any) -> Any:
    """Give the schema with every object closed: what is not described must not be there."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    return {**inner, "additionalProperties": False} if "required" in schema else inner


def test_a_run_of_a_group_has_its_name_in_the_report() -> None:
    assert "group" not in report_json(run_of(SAVED), {})
    report = report_json(run_of(SAVED, group="db"), {})
    assert report["group"] == "db"
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
