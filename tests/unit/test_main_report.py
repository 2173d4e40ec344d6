"""main.py report as an admin runs it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import main
from backup.report.run_report import RunResult
from backup.system.stop_request import StopRequest

from .program_node import MAIN, PYTHON, Node
from .recorder import Recorder
from .samples import RUN, TAKEN, settings


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with a failed run."""
    node = Node(tmp_path_factory.mktemp("node"))
    node.run()
    return node


def test_the_last_run_is_shown_as_text_and_as_json(node: Node) -> None:
    report = json.loads(node.report_file.read_text())
    done = node.run("report")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"run {report['run']} on ")
    assert lines[1] == "1 of 1 domains failed (exit code 3)"
    assert lines[-2:] == [
        f"web: there is no {node.directory}/no.conf",
        "hint: set CEPH_CONF to the cluster's configuration file",
    ]
    assert json.loads(node.run("report", "--run", report["run"], "--json").stdout) == report


def test_the_page_replaces_the_last_one_and_is_readable_by_all(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("of the last run")
    done = node.run("report", "--html", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path], "no draft"
    assert node.run("report", "--html", "-").stdout.rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (("--html", "/nowhere/x"), 1, "cannot write /nowhere/x: no such file or directory", "directory"),
        (("--html", "/"), 1, "cannot write /: ", "directory"),
        (("--run", "x"), 2, "there is no report of run 'x'", "the newest run: 2"),
        (("--html", "x", "--json"), 2, "argument --json: not allowed with argument --html", "--help"),
        (("web",), 2, "unexpected argument web for `main.py report`", "--help"),
    ],
)
def test_an_impossible_request_is_one_error_with_a_hint(
    node: Node, arguments: tuple[str, ...], code: int, error: str, hint: str
) -> None:
    done = node.run("report", *arguments)
    error_line, hint_line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, "")
    assert error_line.startswith(f"error: {error}")
    assert hint in hint_line


def test_without_a_run_there_is_no_report(tmp_path: Path) -> None:
    done = Node(tmp_path).run("report")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: there is no report in {tmp_path}/state/reports\nhint: ")


def test_only_the_page_needs_jinja(node: Node) -> None:
    (node.directory / "sitecustomize.py").write_text("import sys; sys.modules['jinja2'] = None")
    without = ("env", f"PYTHONPATH={node.directory}", PYTHON, str(MAIN))
    assert node.start(("report",), command=without).returncode == 0
    done = node.start(("report", "--html", "-"), command=without)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"error: this interpreter ({PYTHON}) has no module jinja2"
    assert hint.endswith("; apt-get install python3-jinja2")


def test_a_fault_in_the_metrics_keeps_no_notification_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(main, "publish_metrics", faulty)
    monkeypatch.setattr("backup.report.publish.publish_metrics", faulty)
    chosen = settings(
        state_dir=str(tmp_path), notify_command=["touch", f"{tmp_path}/sent"], notify_on="always"
    )
    with pytest.raises(RuntimeError, match="a bug"):
        main._publish(RunResult(RUN, "node1", TAKEN, TAKEN, ()), chosen, Recorder(), StopRequest())
    assert (tmp_path / "sent").exists()
