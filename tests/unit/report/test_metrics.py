"""backup/report/metrics.py and publish.py: METRICS_FILE, and the alerts and the dashboard that use it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backup import __version__
from backup.job_result import JobResult, Status
from backup.model import Consistency, Level
from backup.report import publish as publishing
from backup.report.copy_record import CopyRecord
from backup.report.domain_record import DomainRecord, DomainRecords
from backup.report.metrics import exposition
from backup.report.publish import publish_metrics
from backup.report.run_report import RunResult, report_json
from backup.selection import ON_OVERLAYS
from backup.settings import Settings
from backup.stored import SavedImage
from tests.dashboard import for_all, queries

from ..recorder import Recorder
from ..samples import LAYOUT, OTHER_UUID, RUN, TAKEN, UUID, settings

ROOT = Path(__file__).parents[3]
IMAGE = SavedImage("vda", "vms/web-root", 4096, 1024, 512, 0.5, "0123abcd", LAYOUT, read_bytes=1000)
SAVED = JobResult(
    "web",
    UUID,
    Status.SAVED,
    consistency=Consistency.FILESYSTEM,
    frozen_seconds=0.25,
    taken=TAKEN,
    seconds=2.5,
    images=(IMAGE, replace(IMAGE, target="vdb")),
    leftovers=2,
)
FAILED = JobResult("db", OTHER_UUID, Status.FAILED, reason="no answer", seconds=1.5, frozen_seconds=10)
EXCLUDED = JobResult("test7", "uuid of test7", Status.SKIPPED, "excluded")
PROOF = DomainRecord(
    saved="2024-02-03T04:05:06+00:00", verified="1970-01-02T00:00:00+00:00", failure="damaged"
)


def run_of(*results: JobResult, run: str = RUN, **changes: Any) -> RunResult:
    return RunResult(run, "node1", TAKEN, TAKEN + timedelta(seconds=61), results, **changes)


def text_of(*runs: RunResult, known: Mapping[str, DomainRecord] | None = None) -> str:
    """Give the file's text after these runs, newest first."""
    reports = [json.loads(json.dumps(report_json(run, {}))) for run in runs]
    return exposition(reports, known or {}, copy=COPY).decode()


def values(text: str) -> dict[str, float]:
    """Give each sample by its name, without the prefix, and its labels but the UUID."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = " ".join(value for name, value in sample.labels.items() if name != "uuid")
            found[f"{sample.name[len('virt_rbd_backup_') :]} {labels}".strip()] = sample.value
    return found


COPY = CopyRecord(TAKEN.isoformat(), TAKEN.isoformat(), copied=2)
WHOLE = text_of(run_of(SAVED, FAILED, not_selected=(EXCLUDED,)), known={UUID: PROOF})


def test_the_run_and_each_domain_have_their_metrics() -> None:
    assert values(WHOLE) == {
        f"build_info {__version__}": 1,
        "run_finished_timestamp_seconds": TAKEN.timestamp() + 61,
        "run_duration_seconds": 61,
        "run_exit_code": 3,
        "run_errors": 0,
        "domain_last_success_timestamp_seconds web": TAKEN.timestamp(),
        "domain_last_success_timestamp_seconds db": 0,
        "domain_consecutive_failures web": 0,
        "domain_consecutive_failures db": 1,
        "domain_duration_seconds web": 2.5,
        "domain_duration_seconds db": 1.5,
        "domain_frozen_seconds web": 0.25,
        "domain_frozen_seconds db": 10,
        "domain_read_bytes web": 2000,
        "domain_read_bytes db": 0,
        "domain_skipped_bytes web": 2 * 3096,
        "domain_skipped_bytes db": 0,
        "domain_stored_bytes web": 1024,
        "domain_stored_bytes db": 0,
        "domain_leftovers web": 2,
        "domain_leftovers db": 0,
        "domain_last_verified_timestamp_seconds web": 86400,
        "domain_last_verified_timestamp_seconds db": 0,
        "domain_last_drill_timestamp_seconds web": 0,
        "domain_last_drill_timestamp_seconds db": 0,
        "domain_proof_failed web": 1,
        "domain_proof_failed db": 0,
        "domain_consistency filesystem web": 1,
        "copy_finished_timestamp_seconds": TAKEN.timestamp(),
        "copy_failed": 0,
    }
    assert f'virt_rbd_backup_domain_leftovers{{domain="web",uuid="{UUID}"}} 2.0\n' in WHOLE


def test_a_domain_that_another_node_backs_up_has_only_some_metrics() -> None:
    found = values(text_of(run_of(JobResult("web", UUID, Status.SKIPPED, "saved already (MIN_AGE)"))))
    assert {name for name in found if name.startswith("domain_")} == {
        "domain_last_success_timestamp_seconds web",
        "domain_consecutive_failures web",
        "domain_last_verified_timestamp_seconds web",
        "domain_last_drill_timestamp_seconds web",
        "domain_proof_failed web",
    }


def test_a_domain_keeps_its_metrics_while_an_instant_restore_of_it_has_not_ended() -> None:
    """No backup is made of it: the age of its restore points has to be seen."""
    skipped = JobResult("web", UUID, Status.SKIPPED, ON_OVERLAYS)
    found = values(text_of(run_of(not_selected=(skipped,)), run_of(SAVED)))
    assert found["domain_last_success_timestamp_seconds web"] == TAKEN.timestamp()
    assert text_of(run_of(not_selected=(EXCLUDED,))).count("test7") == 0


def test_a_time_of_the_future_is_none_in_the_metrics() -> None:
    """Or no alert would fire before it has come."""
    future = "2999-01-01T00:00:00+00:00"
    known = {UUID: DomainRecord(saved=future, verified=future, drilled=future)}
    found = values(text_of(run_of(SAVED), known=known))
    names = ("last_success", "last_verified", "last_drill")
    times = [found[f"domain_{name}_timestamp_seconds web"] for name in names]
    assert times == [TAKEN.timestamp(), 0, 0]


def test_a_run_that_could_do_nothing_has_metrics_and_removes_no_domain() -> None:
    nothing = run_of(nothing_done=True, errors=("no libvirt",))
    found = values(text_of(nothing, run_of(SAVED)))
    assert (found["run_exit_code"], found["run_errors"]) == (1, 1)
    assert found["domain_last_success_timestamp_seconds web"] == TAKEN.timestamp()


def test_a_name_in_any_alphabet_makes_valid_metrics() -> None:
    name = 'Büro "1"\\x'
    found = values(text_of(run_of(replace(FAILED, name=name))))
    assert found[f"domain_consecutive_failures {name}"] == 1


def test_promtool_finds_no_error() -> None:
    promtool("check", "metrics", stdin=WHOLE)


def test_the_manual_explains_each_metric() -> None:
    page = (ROOT / "res/docs/monitoring.md").read_text()
    assert [name for name in names_in(WHOLE) if f"| `{name}` | " not in page] == []


def publish(result: RunResult, chosen: Settings, recorder: Recorder) -> None:
    publish_metrics(chosen, recorder, publishing.publish(result, chosen, recorder))


def settings_in(directory: Path, **changes: Any) -> Settings:
    """Keep reports of TAKEN's day, too."""
    of_test = {"state_dir": str(directory / "state"), "metrics_file": str(directory / "backup.prom")}
    return settings(**{"report_days": 36500, **of_test, **changes})


def test_the_file_is_replaced_atomically_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "backup.prom"
    path.write_text("of the last run")
    recorder = Recorder()
    publish(run_of(SAVED, FAILED), settings_in(tmp_path), recorder)
    found = values(path.read_text())
    assert found["domain_consecutive_failures db"] == 1
    assert found["domain_consistency filesystem web"] == 1, "with the name that the alerts have"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {one.name for one in tmp_path.iterdir()} == {"backup.prom", "state"}, "no draft"
    publish(run_of(FAILED, run=f"{RUN}2"), settings_in(tmp_path), recorder)
    assert values(path.read_text())["domain_consecutive_failures db"] == 2
    assert recorder.messages == []


def test_a_verification_updates_the_metrics_at_once(tmp_path: Path) -> None:
    of_test = settings_in(tmp_path)
    publish(run_of(SAVED), of_test, Recorder())
    DomainRecords(of_test.state_dir, Recorder()).update(UUID, "web", failure="damaged")
    publish_metrics(of_test, Recorder())
    found = values((tmp_path / "backup.prom").read_text())
    assert (found["domain_proof_failed web"], found["run_exit_code"]) == (1, 0)


@pytest.mark.parametrize("repository", ["", "/srv/copy"])
def test_a_copy_that_never_ran_is_seen_by_the_alert(tmp_path: Path, repository: str) -> None:
    publish_metrics(settings_in(tmp_path, copy_repository=repository), Recorder())
    found = values((tmp_path / "backup.prom").read_text())
    expected = {"copy_finished_timestamp_seconds": 0, "copy_failed": 0} if repository else {}
    assert {name: value for name, value in found.items() if name.startswith("copy_")} == expected


def test_an_unusable_state_directory_does_not_hide_this_run(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    publish(run_of(SAVED), settings_in(tmp_path), Recorder())
    found = values((tmp_path / "backup.prom").read_text())
    assert found["domain_last_success_timestamp_seconds web"] == TAKEN.timestamp()


def test_a_metrics_file_that_can_t_be_written_is_one_error_line(tmp_path: Path) -> None:
    path, recorder = tmp_path / "missing/backup.prom", Recorder()
    publish(run_of(SAVED), settings_in(tmp_path, metrics_file=str(path)), recorder)
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith(
        f"cannot write the metrics {path}: no such file or directory (hint: see METRICS_FILE"
    )


def test_alerts_and_dashboard_use_all_metrics_and_no_others() -> None:
    texts = [
        (ROOT / "res" / name).read_text() for name in ("prometheus-alerts.yml", "grafana-dashboard.json")
    ]
    used = set(re.findall(r"(?<![:\w])virt_rbd_backup_\w+(?!\w*:)", " ".join(texts)))
    assert used - names_in(WHOLE) == set()
    assert names_in(WHOLE) - used == set(), "every metric is shown"


def test_the_dashboard_s_expressions_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"panel{number}", "expr": for_all(one)} for number, one in enumerate(queries())]
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


def names_in(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def promtool(*arguments: str, stdin: str = "") -> None:
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_with_a_group_each_sample_has_it_as_a_label_and_no_two_files_have_the_same_sample() -> None:
    run = run_of(SAVED, FAILED)
    texts = [exposition([report_json(run, {})], {}, group).decode() for group in ("", "a", "b")]
    samples = [
        [
            (one.name, *sorted(one.labels.items()))
            for family in text_string_to_metric_families(text)
            for one in family.samples
        ]
        for text in texts
    ]
    assert all("group" not in dict(labels) for _, *labels in samples[0])
    for group, found in zip("ab", samples[1:]):
        assert found
        assert all(dict(labels)["group"] == group for _, *labels in found)
    every = [one for found in samples for one in found]
    assert len(every) == len(set(every))
    helps = [{line for line in text.splitlines() if line.startswith("#")} for text in texts]
    assert helps[0] == helps[1] == helps[2], "node_exporter wants the same HELP in all files"
