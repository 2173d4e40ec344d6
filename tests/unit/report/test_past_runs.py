"""backup/report/past_runs.py and report_text.py: a past run, chosen and shown as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.errors import BackupError, ConfigError
from backup.report.calendar import Days
from backup.report.copy_record import CopyRecord, write_record
from backup.report.past_runs import PastRuns, newest, past_runs, past_runs_of
from backup.report.report_types import Report
from backup.terminal.report_text import report_text

from ..past_reports import NOW, keep, night
from ..recorder import Recorder

TODAY, YESTERDAY = night(["web"]), night(["web"], 1)


def past_of(report: Report, copy: CopyRecord | None = None) -> PastRuns:
    return PastRuns(report, Days(NOW.date()), 0, copy)


def test_the_newest_run_is_shown_unless_another_is_named(tmp_path: Path) -> None:
    history = keep(tmp_path, YESTERDAY, TODAY)
    assert past_runs(history, "", NOW.date()).report == TODAY
    past = past_runs(history, YESTERDAY["run"], NOW.date())
    assert past.report == YESTERDAY
    (row,) = past.days.rows()
    assert [bool(day.kind) for day in row.days[-3:]] == [False, True, True], "of all runs, whichever is shown"


def test_an_unknown_run_is_a_usage_error_that_names_the_newest_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        past_runs(keep(tmp_path, YESTERDAY, TODAY), "no such", NOW.date())
    (error,) = raised.value.errors
    assert error.message == "there is no report of run 'no such'"
    assert error.hint == f"the newest runs: {TODAY['run']}, {YESTERDAY['run']}"


def test_without_any_report_the_error_names_the_directory(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=f"no report in {tmp_path}/reports") as raised:
        past_runs(keep(tmp_path), "", NOW.date())
    assert "STATE_DIR" in raised.value.hint


def test_reports_of_other_versions_are_ignored_and_counted(tmp_path: Path) -> None:
    other = {**night([]), "schema": 2, "domains": "as nobody knows"}
    past = past_runs(keep(tmp_path, YESTERDAY, other), "", NOW.date())
    assert (past.report, past.left_out) == (YESTERDAY, 1)
    alone = keep(tmp_path / "alone", other)
    with pytest.raises(BackupError, match=r"no report .* of this version, 1 of other versions"):
        past_runs(alone, "", NOW.date())


def test_a_report_as_text_has_a_row_per_domain_and_each_problem_with_its_hint() -> None:
    report = night(["web", "db\n\x1b[2J", "old"], named=["web", "[do]*"])
    saved, failed, skipped = report["domains"]
    failed.update(status="failed", images=[], consistency=None, reason="no answer", hint="is it on?")
    skipped.update(status="skipped", images=[], consistency=None, reason="saved already", timeline=None)
    report.update(exit_code=3, errors=["cannot connect to libvirt"])
    saved.update(proof_failure="vda differs at 4096")
    head, asked, verdict, _, *rest = report_text(past_of(report)).splitlines()
    assert head.startswith(f"run {report['run']} on node1, 2026-11-25 02:00 UTC, ")
    assert asked == "selected on the command line: web, [do]*"
    assert verdict == "1 of 2 domains failed (exit code 3)"
    assert [line.split()[:2] for line in rest[:4]] == [
        ["domain", "result"],
        ["web", "saved"],
        ["db\\n\\x1b[2J", "failed"],
        ["old", "skipped:"],
    ]
    assert rest[4:] == [
        "",
        "cannot connect to libvirt",
        "",
        "db\\n\\x1b[2J: no answer",
        "hint: is it on?",
        "",
        "web: a verification or drill failed: vda differs at 4096",
    ]


@pytest.mark.parametrize(
    ("code", "errors", "number", "verdict"),
    [
        (0, [], 2, "2 domains saved"),
        (0, [], 1, "1 domain saved"),
        (0, [], 0, "Nothing to do"),
        (1, ["no libvirt"], 0, "Nothing could be done"),
        (3, ["no libvirt"], 2, "2 domains saved, the run had errors"),
        (143, [], 1, "Interrupted by SIGTERM, 1 saved"),
    ],
)
def test_the_verdict_explains_the_exit_code(code: int, errors: list[str], number: int, verdict: str) -> None:
    report = night(["a", "b"][:number])
    report.update(exit_code=code, errors=errors)
    assert report_text(past_of(report)).splitlines()[1] == f"{verdict} (exit code {code})"


@pytest.mark.parametrize(
    ("copied", "missing", "error", "line"),
    [
        (2, 0, "", "2 restore points copied; none is missing"),
        (1, 0, "", "1 restore point copied; none is missing"),
        (1, 3, "3 are not in the copy", "1 restore point copied; 3 are not in the copy"),
        (0, 0, "no space left", "failed: no space left"),
    ],
)
def test_the_last_copy_is_a_line_of_the_newest_run(
    tmp_path: Path, copied: int, missing: int, error: str, line: str
) -> None:
    history, began = keep(tmp_path, YESTERDAY, TODAY), "2026-11-25T02:10:11+00:00"
    write_record(str(history.directory.parent), CopyRecord(began, began, copied, missing, error), Recorder())
    past = past_runs(history, "", NOW.date())
    assert report_text(past).splitlines()[2] == f"copy of 2026-11-25 02:10 UTC: {line}"
    assert past_runs(history, YESTERDAY["run"], NOW.date()).copy is None


def test_of_several_groups_those_without_the_run_are_left_out(tmp_path: Path) -> None:
    histories = [keep(tmp_path / "a", YESTERDAY), keep(tmp_path / "b", TODAY), keep(tmp_path / "none")]
    pasts = past_runs_of(histories, "", NOW.date())
    assert [past.report for past in pasts] == [YESTERDAY, TODAY]
    assert newest(pasts).report == TODAY
    (only,) = past_runs_of(histories, YESTERDAY["run"], NOW.date())
    assert only.report == YESTERDAY
    with pytest.raises(ConfigError):
        past_runs_of(histories, "no such", NOW.date())
