"""backup/report/history.py and publish.py: where reports are stored, and for how long."""

from __future__ import annotations

import gzip
import json
import stat
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest

from backup.job_result import JobResult, Status
from backup.model import Level
from backup.report import history
from backup.report.domain_record import read_records
from backup.report.history import History
from backup.report.publish import publish
from backup.report.run_report import RunResult

from ..recorder import Recorder
from ..samples import OTHER_UUID, TAKEN, UUID, settings

SAVED = JobResult("web", UUID, Status.SAVED, taken=TAKEN)
FAILED = JobResult("db", OTHER_UUID, Status.FAILED, reason="no answer", taken=TAKEN)


NOW = datetime.now(timezone.utc)


def run_id(days_ago: float) -> str:
    return f"{NOW - timedelta(days=days_ago):%Y%m%dT%H%M%SZ}-abcd"


def published(directory: Path, *results: JobResult, days_ago: float = 0, **changes: Any) -> Recorder:
    recorder = Recorder()
    result = RunResult(run_id(days_ago), "node1", TAKEN, TAKEN, results, **changes)
    values = {
        "state_dir": str(directory / "state"),
        "report_file": str(directory / "report.json"),
        "report_days": 7,
    }
    publish(result, settings(**values), recorder)
    return recorder


def kept(directory: Path) -> list[str]:
    return [report["run"] for report in History(str(directory / "state"), 7).newest_first()]


def test_the_report_file_is_replaced_and_can_be_read_by_monitoring(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("of the last run")
    assert published(tmp_path, SAVED).messages == []
    assert json.loads(path.read_text())["domains"][0]["name"] == "web"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {one.name for one in tmp_path.iterdir()} == {"report.json", "state"}, "no draft"


def test_reports_are_stored_for_report_days_and_read_newest_first(tmp_path: Path) -> None:
    for days_ago in (9, 7.1, 6.9, 0):
        published(tmp_path, SAVED, days_ago=days_ago)
    assert kept(tmp_path) == [run_id(0), run_id(6.9)]


def test_a_clock_that_is_wrong_once_costs_no_report_and_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path, SAVED, days_ago=2)
    published(tmp_path, SAVED, days_ago=1)

    class NextYear(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> NextYear:
            return cls.fromtimestamp(NOW.timestamp() + 365 * 86400, tz)

    with monkeypatch.context() as wrong:
        wrong.setattr(history, "datetime", NextYear)
        published(tmp_path, SAVED, days_ago=-365)
    published(tmp_path, SAVED)
    assert kept(tmp_path) == [run_id(0), run_id(1), run_id(2), run_id(-365)]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x1f\x8b\x08\0\0\0\0\0\0\0rubbish"])
def test_a_damaged_report_does_not_hide_the_others(tmp_path: Path, damage: bytes) -> None:
    published(tmp_path, SAVED, days_ago=1)
    published(tmp_path, SAVED)
    (tmp_path / "state/reports" / f"{run_id(1)}.json.gz").write_bytes(damage)
    assert kept(tmp_path) == [run_id(0)]


@pytest.mark.parametrize("content", ["[]", "null", '"report"', '{"run": "x"}', '{"schema": 2, "run": []}'])
def test_what_is_no_report_of_this_schema_is_left_out(tmp_path: Path, content: str) -> None:
    """Metrics and notifications read all of them at the end of each run."""
    published(tmp_path, SAVED, days_ago=1)
    published(tmp_path, SAVED)
    packed = gzip.compress(content.encode())
    (tmp_path / "state/reports" / f"{run_id(1)}.json.gz").write_bytes(packed)
    assert kept(tmp_path) == [run_id(0)]


def test_the_record_of_a_domain_has_its_last_success_not_its_failures(tmp_path: Path) -> None:
    published(tmp_path, SAVED, FAILED)
    published(tmp_path, FAILED)
    known = read_records(str(tmp_path / "state"))
    assert [(uuid, one.saved, one.verified) for uuid, one in known.items()] == [
        (UUID, "2024-02-03T04:05:06+00:00", "")
    ]


def test_a_backup_with_verify_is_recorded_as_a_verification(tmp_path: Path) -> None:
    published(tmp_path, SAVED, verified=True)
    assert read_records(str(tmp_path / "state"))[UUID].verified


def test_a_report_that_can_t_be_written_is_one_error_line_and_nothing_else_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.mkdir()
    assert published(tmp_path, SAVED).told(Level.ERROR) == [
        f"cannot write the report {path}: is a directory (hint: see REPORT_FILE)"
    ]
    assert kept(tmp_path) == [run_id(0)]
    (tmp_path / "state/reports").rename(tmp_path / "state/of before")
    (tmp_path / "state/reports").touch()
    assert "see STATE_DIR" in published(tmp_path, SAVED).told(Level.ERROR)[-1]
