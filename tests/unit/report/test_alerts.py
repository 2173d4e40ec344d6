"""res/prometheus-alerts.yml: each state raises its alert, and a sound state raises none."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

RULES = Path(__file__).parents[3] / "res/prometheus-alerts.yml"
NODE = 'job="node", instance="node1"'
WEB = f'domain="web", uuid="u1", {NODE}'
ELSEWHERE = 'domain="web", uuid="u1", job="node", instance="node2"'

# In promtool's notation, a value every 12 hours, for 40 days from 1970 on.
NOW = f"0+{12 * 3600}x80"  # is always of this very moment
STOPPED = f"0+{12 * 3600}x76 {76 * 12 * 3600}+0x3"  # is of two days ago
YES, NO = "1+0x80", "0+0x80"
UNTIL_THEN, SINCE_THEN = "1+0x76 _x4", "_x77 1+0x3"


def metric(name: str, labels: str, prefix: str = "virt_rbd_backup_") -> str:
    return f"{prefix}{name}{{{labels}}}"


def consistency(word: str, labels: str = WEB) -> str:
    return metric("domain_consistency", f'{labels}, consistency="{word}"')


BUILD = metric("build_info", f'version="1", {NODE}')
UP = metric("up", NODE, "")
FINISHED = metric("run_finished_timestamp_seconds", NODE)
EXIT_CODE = metric("run_exit_code", NODE)
ERRORS = metric("run_errors", NODE)
SAVED = metric("domain_last_success_timestamp_seconds", WEB)
FAILURES = metric("domain_consecutive_failures", WEB)
FROZEN = metric("domain_frozen_seconds", WEB)
LEFTOVERS = metric("domain_leftovers", WEB)
VERIFIED = metric("domain_last_verified_timestamp_seconds", WEB)
DRILLED = metric("domain_last_drill_timestamp_seconds", WEB)
PROOF_FAILED = metric("domain_proof_failed", WEB)
COPIED = metric("copy_finished_timestamp_seconds", NODE)
COPY_FAILED = metric("copy_failed", NODE)

SOUND: Mapping[str, str] = {
    **dict.fromkeys((SAVED, FINISHED, VERIFIED, DRILLED, COPIED), NOW),
    **dict.fromkeys((EXIT_CODE, ERRORS, FAILURES, LEFTOVERS, PROOF_FAILED, COPY_FAILED), NO),
    **dict.fromkeys((BUILD, UP, FROZEN, consistency("filesystem")), YES),
}

CASES: Mapping[str, tuple[Mapping[str, str], str]] = {
    "all is well": ({}, ""),
    "not saved for two days": ({SAVED: STOPPED}, "DomainTooOld"),
    "saved by another node since": (
        {SAVED: STOPPED, metric("domain_last_success_timestamp_seconds", ELSEWHERE): NOW},
        "",
    ),
    "never saved": ({SAVED: NO}, "DomainNeverSaved"),
    "never saved by this node, but by another": (
        {SAVED: NO, metric("domain_last_success_timestamp_seconds", ELSEWHERE): NOW},
        "",
    ),
    "failed twice": ({FAILURES: "2+0x80"}, "DomainFailing"),
    "some failed": ({EXIT_CODE: "3+0x80"}, ""),
    "nothing could be done": ({EXIT_CODE: YES, ERRORS: YES}, "RunIncomplete"),
    "one libvirt was out of reach": ({EXIT_CODE: "3+0x80", ERRORS: YES}, "RunIncomplete"),
    "interrupted": ({EXIT_CODE: "143+0x80"}, "RunIncomplete"),
    "no run for two days": ({FINISHED: STOPPED}, "NoRun"),
    "a node's metrics are gone": (
        {BUILD: UNTIL_THEN, metric("build_info", 'instance="node2"'): YES},
        "MetricsGone",
    ),
    "a group beside the others": (
        {name.replace("{", '{group="db", ', 1): values for name, values in SOUND.items() if name != UP},
        "",
    ),
    "no run of a group": ({FINISHED.replace("{", '{group="db", '): STOPPED}, "NoRun"),
    "a group's metrics are gone": ({BUILD.replace("{", '{group="db", '): UNTIL_THEN}, "MetricsGone"),
    "a node is gone": (
        {BUILD: UNTIL_THEN, UP: "1+0x76 0+0x3", metric("build_info", 'instance="node2"'): YES},
        "",
    ),
    "a node that never had metrics": ({metric("up", 'job="node", instance="mail"', ""): YES}, ""),
    "no metrics": ({BUILD: "_x81"}, "NoMetrics"),
    "frozen for long": ({FROZEN: "11+0x80"}, "FrozenTooLong"),
    "the agent is gone": (
        {consistency("filesystem"): UNTIL_THEN, consistency("paused"): SINCE_THEN},
        "ConsistencyLost",
    ),
    "in use elsewhere": (
        {consistency("filesystem"): UNTIL_THEN, consistency("crash"): SINCE_THEN},
        "ConsistencyLost",
    ),
    "shut off": ({consistency("filesystem"): UNTIL_THEN, consistency("offline"): SINCE_THEN}, ""),
    "never had an agent": ({consistency("filesystem"): "_x81", consistency("paused"): YES}, ""),
    "frozen on another node since": (
        {
            consistency("filesystem"): "_x81",
            consistency("paused"): YES,
            consistency("filesystem", ELSEWHERE): YES,
        },
        "",
    ),
    "leftovers": ({LEFTOVERS: YES}, "Leftovers"),
    "damaged": ({PROOF_FAILED: YES}, "ProofFailed"),
    "verified long ago": ({VERIFIED: "1+0x80"}, "VerifiedTooLongAgo"),
    "never verified": ({VERIFIED: NO}, ""),
    "drilled long ago": ({DRILLED: "1+0x80"}, "NoDrill"),
    "never drilled": ({DRILLED: NO}, ""),
    "not copied": ({COPY_FAILED: YES}, "CopyFailed"),
    "copied two days ago": ({COPIED: STOPPED}, "CopyTooOld"),
    "never copied": ({COPIED: "0x81"}, "CopyTooOld"),
    "no copies at all": ({COPIED: "_x81", COPY_FAILED: "_x81"}, ""),
}


def scene(series: Mapping[str, str], alert: str) -> object:
    """Give promtool's test that this raises the alert, or none."""
    raised = [{"labels": f'{{alertname="VirtRbdBackup{alert}"}}', "value": 1}] if alert else []
    question = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "rule_files": [str(RULES)],
        "evaluation_interval": "12h",
        "tests": [
            {
                "interval": "12h",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": question, "eval_time": "40d", "exp_samples": raised}],
            }
        ],
    }


@pytest.mark.parametrize("name", CASES)
def test_each_state_raises_its_alert_and_no_other(name: str, tmp_path: Path) -> None:
    changes, alert = CASES[name]
    path = tmp_path / "scene.yml"  # JSON is YAML
    path.write_text(json.dumps(scene({**SOUND, **changes}, alert)))
    promtool("test", "rules", str(path))


def test_each_alert_has_a_state_that_raises_it() -> None:
    alerts = re.findall(r"- alert: VirtRbdBackup(\w+)", RULES.read_text())
    assert {alert for _, alert in CASES.values()} - {""} == set(alerts)


def test_promtool_finds_no_fault() -> None:
    promtool("check", "rules", str(RULES))


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
