"""main.py backup, started by a timer, that does not begin: exit codes 2 and 11 are notified."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backup.watch.node_lock import only_run
from tests.integration.terminal import on_terminal

from .listening import Web, web_server
from .program_node import MAIN, PYTHON, Node

SCHEMA = json.loads((MAIN.parent / "res/report.schema.json").read_text())


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as web:
        yield web


@pytest.fixture
def node(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose notifications are stored, as a service of systemd sees it."""
    node = Node(tmp_path)
    program = tmp_path / "notify"
    program.write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/got; cd {tmp_path}/got; cat >$(ls | wc -l)\n")
    program.chmod(0o700)
    node.constants |= {"NOTIFY_COMMAND": [str(program), "hunter2"], "PING_URL": f"{web.url}/hunter2"}
    monkeypatch.setenv("INVOCATION_ID", "0123456789abcdef")
    return node


def notified(node: Node) -> Sequence[Mapping[str, Any]]:
    """Return the reports that were sent."""
    paths = sorted((node.directory / "got").glob("*"), key=lambda path: int(path.name))
    reports = [json.loads(path.read_text()) for path in paths]
    for report in reports:
        jsonschema.validate(report, SCHEMA)
    return reports


@contextmanager
def active_run(node: Node) -> Iterator[None]:
    with only_run(str(node.runtime_dir)):
        yield


def test_an_error_in_the_settings_is_notified_each_time(node: Node, web: Web) -> None:
    for _ in range(2):
        assert node.run(WORKERS=0, RESTIC_OPTIONS="--password=hunter2").returncode == 2
    sent = notified(node)
    assert [report["exit_code"] for report in sent] == [2, 2]
    assert sent[0]["errors"] == [
        "WORKERS = 0: has to be a whole number from 1 to 64",
        "RESTIC_OPTIONS = ...: has to be a list of strings",
    ]
    assert [(path, body.split(": ")[-1]) for _, path, body in web.asked] == [
        ("/hunter2/fail", "not started (exit code 2)")
    ] * 2
    assert not node.report_file.exists(), "there was no run"
    assert "hunter2" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("arguments", "constants", "error"),
    [
        ((), {"RESTIC_REPOSITORY": ""}, "RESTIC_REPOSITORY is not set"),
        (("backup", "wbe"), {}, "there is no domain 'wbe'"),
        (("--no-such-option",), {}, "the command line is wrong: see the journal"),
        (("backup", "--verify=x"), {}, "the command line is wrong: see the journal"),
        ((), {"WROKERS": 1}, "WROKERS is not a known constant"),
    ],
)
def test_whatever_error_of_usage_or_settings_is_notified(
    node: Node, arguments: Sequence[str], constants: Mapping[str, Any], error: str
) -> None:
    assert node.run(*arguments, **constants).returncode == 2
    (report,) = notified(node)
    assert (report["exit_code"], report["errors"]) == (2, [error])


@pytest.mark.parametrize("option", ["--config {}", "--config={}", "backup --config {}"])
def test_a_wrong_command_line_is_notified_as_the_settings_that_it_names_say(node: Node, option: str) -> None:
    node.configure()
    own = node.directory / "own.py"
    own.write_text(node.settings.read_text())
    own.chmod(0o600)
    node.settings.write_text("")
    assert node.start(("--no-such-option", *option.format(own).split())).returncode == 2
    assert [report["exit_code"] for report in notified(node)] == [2]


def test_a_missing_module_is_notified_too(node: Node) -> None:
    (node.directory / "sitecustomize.py").write_text("import sys; sys.modules['xxhash'] = None")
    node.configure()
    command = ("env", f"PYTHONPATH={node.directory}", PYTHON, str(MAIN))
    assert node.start((), command=command).returncode == 1
    (report,) = notified(node)
    assert report["exit_code"] == 1
    assert report["errors"][0].endswith("has no module xxhash")


def test_other_commands_notify_of_nothing(node: Node, web: Web) -> None:
    lines = ("backup --dry-run", "backup --help", "cleanup", "list", "drill", "check --verify", "verify x")
    done = node.run_each(*lines, WORKERS=0)
    assert {one.returncode for one in done.values()} == {0, 2}
    assert (notified(node), web.asked) == ([], [])


def test_what_an_admin_types_notifies_of_nothing(
    node: Node, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.configure(WORKERS=0)
    environment = {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}
    # the shell of a desktop is part of a unit too
    with on_terminal((PYTHON, str(MAIN)), environment) as terminal:
        assert terminal.read_to_end() == 2
    monkeypatch.delenv("INVOCATION_ID")
    assert node.run(WORKERS=0).returncode == 2
    with active_run(node):
        assert node.run().returncode == 11
    assert (notified(node), web.asked) == ([], [])


def test_another_active_run_is_notified_once(node: Node, web: Web) -> None:
    for times in (1, 2):
        with active_run(node):
            for _ in range(2):
                assert node.run().returncode == 11
        assert len(notified(node)) == len(web.asked) == times
    report = notified(node)[-1]
    assert (report["exit_code"], report["errors"]) == (11, ["another run is active on this node"])


def test_the_notification_of_a_group_names_it(node: Node) -> None:
    program = Path(node.constants["NOTIFY_COMMAND"][0])
    program.write_text(program.read_text() + f"echo $VIRT_RBD_BACKUP_GROUP >{node.directory}/group\n")
    node.configure(STATE_DIR=f"{node.directory}/parent/state")
    node.settings.rename(node.directory / "db.py")
    (node.runtime_dir / "groups").mkdir(mode=0o700, parents=True)
    node.runtime_dir.chmod(0o700)
    with only_run(str(node.runtime_dir / "groups/db")):
        assert node.start(("--group", "db", "backup")).returncode == 11
    (report,) = notified(node)
    assert (report["group"], (node.directory / "group").read_text()) == ("db", "db\n")
    assert oct((node.directory / "parent").stat().st_mode & 0o777) == "0o700"


def test_on_change_it_is_notified_once_and_so_is_the_next_run_that_is_good(node: Node) -> None:
    quiet = {"NOTIFY_ON": "change", "PING_URL": "", "EXCLUDE_DOMAINS": ["*"]}
    assert node.run(**quiet).returncode == 0
    for _ in range(2):
        assert node.run(**quiet, WORKERS=0).returncode == 2
    assert [report["exit_code"] for report in notified(node)] == [2]
    for _ in range(2):
        assert node.run(**quiet).returncode == 0
    assert [report["exit_code"] for report in notified(node)] == [2, 0]
    assert not (node.directory / "state/not-started.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"active": "", "report": []}', '{"report": {}}'])
def test_a_damaged_record_of_it_disturbs_no_run(node: Node, content: str) -> None:
    (node.directory / "state").mkdir()
    (node.directory / "state/not-started.json").write_text(content)
    assert node.run(NOTIFY_ON="change", EXCLUDE_DOMAINS=["*"]).returncode == 0
    assert node.run(WORKERS=0).returncode == 2
    assert [report["exit_code"] for report in notified(node)] == [2]


@pytest.mark.parametrize("broken", ["WORKERS = ", "raise SystemExit", "NOTIFY_COMMAND = [1]"])
def test_settings_that_cannot_be_read_are_a_line_in_the_journal(node: Node, web: Web, broken: str) -> None:
    node.configure()
    with node.settings.open("a") as file:
        file.write(f"{broken}\n")
    done = node.start(())
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "NOTIFY_COMMAND" in line]
    if broken.startswith("NOTIFY_COMMAND"):
        assert len(web.asked) == 1, "what is valid is used"
        assert lines == ["error: NOTIFY_COMMAND = ...: has to be a list of strings"]
    else:
        assert web.asked == []
        assert lines == ["error: notification failed: NOTIFY_COMMAND and PING_URL cannot be read"]
    assert "hunter2" not in done.stderr


def test_what_others_can_write_starts_no_program(node: Node, web: Web) -> None:
    node.configure()
    node.settings.chmod(0o666)
    assert node.start(()).returncode == 2
    assert (notified(node), web.asked) == ([], [])


def test_a_notification_that_fails_changes_no_exit_code(node: Node) -> None:
    done = node.run(WORKERS=0, NOTIFY_COMMAND=["/nowhere/mail"], PING_URL="http://127.0.0.1:9/hunter2")
    assert done.returncode == 2
    assert "error: notification failed: /nowhere/mail failed with exit code 127" in done.stderr
    assert "warning: cannot ping 127.0.0.1: connection refused" in done.stderr
    assert "hunter2" not in done.stderr
