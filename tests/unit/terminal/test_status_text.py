"""backup/terminal/status_text.py: the status as a table and as JSON."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from backup.report.domain_record import DomainRecord
from backup.status.domain_status import BaseSnapshots, DomainStatus
from backup.status.max_age import Verdict
from backup.status.status import Status
from backup.terminal.status_text import status_json, status_table, verdict_json, verdict_text

from ..samples import MIB, OTHER_UUID, RUN, TAKEN, UUID, held_point

NOW = TAKEN + timedelta(hours=5)
RECORD = DomainRecord(verified="2024-02-01T04:00:00+00:00", drilled="damaged", failure="no answer")
WEB = DomainStatus("web", UUID, True, held_point(manifest_id="m"), RECORD, BaseSnapshots(2, 3 * MIB))
DB = DomainStatus("db", OTHER_UUID, True, None, DomainRecord(), BaseSnapshots(), "backup on node2")


def test_each_domain_has_a_row() -> None:
    elsewhere = replace(WEB, name="old", selected=False, record=DomainRecord(), bases=None)
    unknown = replace(WEB, name="odd", record=DomainRecord(), bases=BaseSnapshots(1, None))
    rows = status_table(Status(NOW, [DB, unknown, elsewhere, WEB])).splitlines()
    assert rows[1].split() == ["db", "none", "-", "-", "-", "never", "never", "-", "backup", "on", "node2"]
    assert rows[2].endswith("1, unknown size")
    assert rows[3].split()[-7:] == ["?", *["not", "backed", "up", "by", "this", "node"]]
    assert "2 d ago   unknown; FAILED since: no answer  2, up to 3.0 MiB" in rows[4]


def test_nothing_to_show_is_said() -> None:
    text = "no domain is backed up here, and there are no restore points\n"
    assert status_table(Status(NOW, [])) == text


def test_programs_get_the_same() -> None:
    db, web = status_json(Status(NOW, [DB, WEB]))["domains"]
    assert (web["run"], web["age"], web["consistency"], web["node"]) == (RUN, 5 * 3600, "crash", "node1")
    assert web["base_snapshots"] == {"number": 2, "used_bytes": 3 * MIB}
    assert (db["taken"], db["age"], db["verified"], db["job"]) == (None, None, None, "backup on node2")
    assert verdict_json(Verdict(3, "UNKNOWN: x")) == {"exit_code": 3, "text": "UNKNOWN: x"}
    assert verdict_json(Verdict(2, "x", Status(NOW, [DB])))["domains"] == [db]


def test_a_verdict_is_one_line_whatever_a_domain_is_called() -> None:
    assert verdict_text(Verdict(2, "CRITICAL: a\nOK: b")) == "CRITICAL: a\\nOK: b\n"
