"""backup/report.py: what a run came to."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backup.model import Consistency, Disk, JobResult, SavedImage, Status
from backup.proof import Proof
from backup.report import RunResult, write_report

from .raising import raises
from .samples import LAYOUT, RUN, TAKEN, UUID

IMAGE = SavedImage("vda", "vms/web-root", 4096, 1024, 512, 0.51234, "0123abcd", LAYOUT)
SAVED = JobResult(
    "web",
    UUID,
    Status.SAVED,
    consistency=Consistency.FILESYSTEM,
    frozen_seconds=0.12345,
    seconds=2.5,
    images=(IMAGE,),
    not_covered=(Disk("vdb", "/srv/x", not_covered="no RBD image (file)"),),
)
FAILED = JobResult("db", UUID, Status.FAILED, reason="no answer", hint="is it on?")
SKIPPED = JobResult("gone", UUID, Status.SKIPPED, reason="gone")


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
def test_the_exit_code_tells_failures_and_interruptions(
    results: Sequence[JobResult], changes: Any, code: int
) -> None:
    assert run_of(*results, **changes).exit_code == code


def test_the_report_tells_of_the_run_each_domain_and_each_image(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("of the last run")
    proof = Proof(
        verified="2024-02-01T00:00:00+00:00",
        drilled="2024-02-02T00:00:00+00:00",
        failure="it is damaged",
    )
    write_report(run_of(SAVED, FAILED, errors=(LOST,)), str(path), {UUID: proof})
    report = json.loads(path.read_text())
    domains = report.pop("domains")
    assert report == {
        "run": RUN,
        "host": "node1",
        "started": "2024-02-03T04:05:06+00:00",
        "finished": "2024-02-03T04:06:07+00:00",
        "exit_code": 3,
        "errors": [LOST],
    }
    assert domains[0] == {
        "name": "web",
        "uuid": UUID,
        "status": "saved",
        "reason": "",
        "consistency": "filesystem",
        "frozen_seconds": 0.123,
        "seconds": 2.5,
        "last_verified": "2024-02-01T00:00:00+00:00",
        "last_drill": "2024-02-02T00:00:00+00:00",
        "proof_failure": "it is damaged",
        "images": [
            {
                "image": "vms/web-root",
                "target": "vda",
                "size": 4096,
                "data_bytes": 1024,
                "stored_bytes": 512,
                "seconds": 0.512,
                "restore_id": "0123abcd",
            }
        ],
        "not_covered": [{"target": "vdb", "source": "/srv/x", "reason": "no RBD image (file)"}],
    }
    assert (domains[1]["status"], domains[1]["reason"], domains[1]["consistency"]) == (
        "failed",
        "no answer",
        None,
    )


def test_a_report_can_be_read_by_monitoring_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(run_of(SAVED), str(path), {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [*tmp_path.iterdir()] == [path]


def test_a_report_that_can_t_be_written_is_one_line_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.mkdir()
    with raises(f"cannot write the report {path}: is a directory"):
        write_report(run_of(SAVED), str(path), {})
    with raises(f"cannot write the report {path}/x/y: no such file or directory"):
        write_report(run_of(SAVED), f"{path}/x/y", {})
    assert [*tmp_path.iterdir()] == [path]
