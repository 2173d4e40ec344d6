"""main.py as an admin runs it: output and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup import __version__
from backup.exit_codes import MEANINGS

from .driver_node import node_uri
from .hook_files import HookFiles
from .listening import web_server
from .program_node import MAIN, PYTHON, WEB, Done, Node
from .samples import UUID


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


USAGE_ERRORS = ("web", "backup --no-such-option", "list web")
OTHER_SETTINGS = ("list --config other.py", "--config other.py list")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """The results of commands that change nothing, all run at the same time."""
    harmless = ("--help", "--version", "list", "list --json", "backup wbe", "backup --dry-run web")
    return Node(tmp_path_factory.mktemp("node")).run_each(*harmless, *USAGE_ERRORS, *OTHER_SETTINGS)


def test_help_lists_the_commands_and_all_exit_codes(answers: dict[str, Done]) -> None:
    done = answers["--help"]
    assert done.returncode == 0
    for command in ("backup", "list", "restore-points", "check", "cleanup"):
        assert f"\n    {command} " in done.stdout
    for code, meaning in MEANINGS.items():
        assert re.search(rf"\n  {code} +{re.escape(meaning)}\n", done.stdout)


def test_version_is_the_program_s_own(answers: dict[str, Done]) -> None:
    done = answers["--version"]
    assert (done.returncode, done.stdout) == (0, f"virt-rbd-backup {__version__}\n")


def test_restore_points_are_listed_without_libvirt_or_ceph(node: Node) -> None:
    node.save_restore_point()
    elsewhere = {"LIBVIRT_URI": "test:///nowhere.xml", "CEPH_CONF": "/nowhere.conf"}
    shown = node.run("restore-points", **elsewhere)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["domain", "web"]
    (point,) = json.loads(node.run("restore-points", "web", "--json", **elsewhere).stdout)
    assert (point["domain"], point["uuid"], point["complete"]) == ("web", UUID, True)
    unknown = node.run("restore-points", "wbe", **elsewhere)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.splitlines() == [
        "error: there is no restore point of a domain 'wbe'",
        "hint: did you mean web?",
    ]


@pytest.mark.parametrize(
    ("command", "reported"),
    [
        ("verify", "there is no restore point to verify"),
        ("drill", "there is no complete restore point to drill"),
    ],
)
def test_verify_and_drill_fail_without_a_restore_point(node: Node, command: str, reported: str) -> None:
    done = node.run(command, DRILL_POOL="scratch")
    error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout, error) == (1, "", f"error: {reported}")
    assert "restore-points" in hint


@pytest.mark.parametrize("line", USAGE_ERRORS)
def test_a_usage_error_is_two_lines(answers: dict[str, Done], line: str) -> None:
    done = answers[line]
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "--help" in hint


def test_all_wrong_constants_are_reported_at_once(node: Node) -> None:
    done = node.run("list", WORKERS=0, FREEZ="auto")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: FREEZ is not a known constant",
        "hint: did you mean FREEZE?",
        "error: WORKERS = 0: has to be a whole number from 1 to 64",
        "hint: config.py explains each constant",
    ]


@pytest.mark.parametrize("line", OTHER_SETTINGS)
def test_the_config_option_overrides_the_environment_before_and_after_the_command(
    answers: dict[str, Done], line: str
) -> None:
    done = answers[line]
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read other.py: no such file or directory\nhint: ")


def test_an_unknown_domain_is_a_usage_error_that_lists_the_domains(answers: dict[str, Done]) -> None:
    done = answers["backup wbe"]
    assert done.returncode == 2
    assert done.stderr == "error: there is no domain 'wbe'\nhint: this node's domains: plain, web\n"


def test_a_missing_repository_setting_is_a_configuration_error(node: Node) -> None:
    done = node.run(RESTIC_REPOSITORY="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: RESTIC_REPOSITORY is not set\nhint: ")


def test_a_run_without_rbd_domains_has_nothing_to_do(node: Node) -> None:
    done = node.run("backup", EXCLUDE_IMAGES=["*"])
    assert (done.returncode, done.stderr) == (0, "")
    assert ": nothing to do in " in done.stdout
    domains = json.loads(node.report_file.read_text())["domains"]
    reported = {one["name"]: (one["status"], one["reason"]) for one in domains}
    assert reported == dict.fromkeys(("plain", "web"), ("skipped", "no RBD image to back up"))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Node, Done]]:
    """A run whose only domain fails, with a report that can be written and with one that can't."""

    def run(with_report: bool) -> tuple[Node, Done]:
        node = Node(tmp_path_factory.mktemp("node"))
        if not with_report:
            node.report_file = node.directory / "nowhere" / "report.json"
        return node, node.run(REPORT_FILE=str(node.report_file))

    with ThreadPoolExecutor() as threads:
        return dict(zip((True, False), threads.map(run, (True, False))))


def test_a_failed_domain_is_in_the_summary_the_report_and_the_exit_code(
    failing: dict[bool, tuple[Node, Done]],
) -> None:
    node, done = failing[True]
    reason = f"there is no {node.directory}/no.conf"
    assert done.returncode == 3
    hint = "(hint: set CEPH_CONF to the cluster's configuration file)"
    assert done.stderr == f"error: web: failed: {reason} {hint}\n"
    assert f"failed: {reason}\n" in done.stdout
    assert ": 1 failed in " in done.stdout
    report = json.loads(node.report_file.read_text())
    reported = {one["name"]: (one["status"], one["reason"]) for one in report["domains"]}
    assert reported == {"web": ("failed", reason), "plain": ("skipped", "no RBD image to back up")}
    assert report["exit_code"] == 3
    assert node.repository.snapshot_count() == 0
    assert {path.name for path in node.runtime_dir.iterdir()} == {"run.lock", "restic"}
    assert list(node.runtime_dir.glob("restic/*")) == []


def test_data_outside_of_the_disks_is_listed_and_fails_its_domain_if_configured(node: Node) -> None:
    shared = "<filesystem><source dir='/srv/a'/><target dir='data'/></filesystem>"
    uri = node_uri(node.directory / "shared.xml", WEB.replace("</devices>", f"{shared}</devices>"))
    listed = node.run("list", LIBVIRT_URI=uri).stdout
    assert "filesystem:data  /srv/a        no: no RBD image (9p file system)" in listed
    done = node.run("backup", LIBVIRT_URI=uri, UNCOVERED_DISKS="fail")
    assert done.returncode == 3
    (web,) = json.loads(node.report_file.read_text())["domains"]
    assert web["reason"].startswith("filesystem:data (/srv/a) cannot be backed up: ")


def test_a_report_that_can_t_be_written_does_not_change_the_exit_code(
    failing: dict[bool, tuple[Node, Done]],
) -> None:
    node, done = failing[False]
    assert (
        f"error: cannot write the report {node.report_file}: no such file or directory (hint: " in done.stderr
    )
    assert done.returncode == 3


def test_a_full_standard_output_does_not_lose_the_report(node: Node) -> None:
    node.configure(EXCLUDE_IMAGES=["*"])
    with Path("/dev/full").open("w") as full:
        done = node.start((), stdout=full)
    assert (done.returncode, done.stderr) == (0, "")
    assert node.report_file.exists()


def test_a_dry_run_shows_what_would_be_backed_up(answers: dict[str, Done]) -> None:
    done = answers["backup --dry-run web"]
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines() if " yes (" in line] == ["web"]
    assert "yes (named)" in done.stdout


def test_list_shows_every_domain_and_disk_and_why_it_is_not_backed_up(answers: dict[str, Done]) -> None:
    done = answers["list"]
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["plain", "running", "auto", "(FREEZE)", "no:", "no", "RBD", "image", "to", "back", "up"],
        ["web", "running", "auto", "(FREEZE)", "vda", "vms/web-root", "yes", "(INCLUDE_DOMAINS)"],
        ["sda", "no:", "a", "cdrom", "without", "a", "medium"],
    ]


def test_list_as_json(answers: dict[str, Done]) -> None:
    plain, web = json.loads(answers["list --json"].stdout)
    assert (plain["selected"], plain["reason"]) == (False, "no RBD image to back up")
    assert (web["name"], web["uuid"], web["selected"]) == ("web", UUID, True)
    assert [disk["image"] for disk in web["disks"]] == ["vms/web-root", None]


def test_check_continues_after_a_problem_and_counts_the_problems(node: Node) -> None:
    node.repository.password_file.chmod(0o644)
    done = node.run("check")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "ok",  # the interpreter
        "ok",  # RUNTIME_DIR
        "ok",  # STATE_DIR
        "ok",  # REPORT_FILE
        "ok",  # drill --instant
        "PROBLEM",  # the password file
        "ok",  # libvirt
        "ok",  # the domain
        "PROBLEM",  # its cluster
        "2",
    ]
    assert [line.strip().split(":")[0] for line in lines if line.startswith(" ")] == ["hint", "hint"]


def test_cleanup_fails_for_selected_domains_only(node: Node) -> None:
    assert node.run("cleanup").returncode == 3
    done = node.run("cleanup", EXCLUDE_DOMAINS=["web"])
    assert done.returncode == 0
    assert done.stderr.startswith("warning: web: not selected (in EXCLUDE_DOMAINS): there is no ")


def test_a_run_that_can_do_nothing_sends_its_notifications(node: Node) -> None:
    files = HookFiles(node.directory)
    files.add("before-run.d/10-mount", "echo no such host; exit 32")
    notify = files.add("notify", f"cat >{node.directory}/reported")
    failure = "hook before-run.d/10-mount failed with exit code 32: no such host"
    with web_server() as web:
        done = node.run(
            HOOKS=str(files.directory), NOTIFY_COMMAND=[str(notify)], PING_URL=f"{web.url}/hunter2"
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["hook before-run.d/10-mount: no such host", f"error: {failure}"]
    reported = json.loads((node.directory / "reported").read_text())
    assert (reported["exit_code"], reported["errors"], reported["domains"]) == (1, [failure], [])
    assert [(path, body.split(": ")[-1]) for _, path, body in web.asked] == [
        ("/hunter2/fail", "nothing could be done")
    ]


def test_notifications_on_change_report_a_failure_once(node: Node) -> None:
    files = HookFiles(node.directory)
    notify = files.add("notify")
    heard = []
    for _ in range(2):
        node.run("backup", NOTIFY_COMMAND=[str(notify)], NOTIFY_ON="change")
        heard.append(len(files.ran))
    assert heard == [1, 1]


def test_check_checks_hooks_and_notifications_and_runs_none(node: Node) -> None:
    files = HookFiles(node.directory)
    files.add("before-run.d/10-mount")
    files.add("before-run.d/20-x", mode=0o777)
    done = node.run("check", HOOKS=str(files.directory), NOTIFY_COMMAND=["/nowhere/mail", "root"])
    assert "PROBLEM  NOTIFY_COMMAND /nowhere/mail: program not found\n" in done.stdout
    assert "ok       hook before-run.d/10-mount\n" in done.stdout
    assert "PROBLEM  hook before-run.d/20-x: " in done.stdout
    assert files.ran == []


def test_an_interpreter_without_ceph_s_modules_gets_a_hint_to_the_right_one(node: Node) -> None:
    node.configure()
    without_packages = (PYTHON, "-S", str(MAIN))
    done = node.start(("list",), command=without_packages)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"error: this interpreter ({PYTHON}) has no module libvirt, rados, rbd, xxhash"
    assert "/usr/bin/python3 main.py" in hint
    assert "apt-get install python3-libvirt python3-rados python3-rbd python3-xxhash" in hint


@pytest.mark.parametrize("command", ["check", "backup"])
def test_a_module_for_one_output_is_required_only_with_that_output(node: Node, command: str) -> None:
    (node.directory / "sitecustomize.py").write_text("import sys; sys.modules['pyfuse3'] = None")
    without_fuse = ("env", f"PYTHONPATH={node.directory}", PYTHON, str(MAIN))
    node.configure(OUTPUT="restic_incremental")
    done = node.start((command,), command=without_fuse)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error == f"error: this interpreter ({PYTHON}) has no module pyfuse3"
    assert hint.endswith("; apt-get install python3-pyfuse3")
    reading = node.start(("restore-points",), command=without_fuse)
    assert "pyfuse3" not in reading.stderr, "to read back takes no file system"
    node.configure()
    assert "no module" not in node.start((command,), command=without_fuse).stderr


@pytest.mark.parametrize("command", ["check", "backup", "verify", "drill"])
def test_the_module_for_metrics_is_required_only_with_metrics(node: Node, command: str) -> None:
    (node.directory / "sitecustomize.py").write_text("import sys; sys.modules['prometheus_client'] = None")
    without_client = ("env", f"PYTHONPATH={node.directory}", PYTHON, str(MAIN))
    node.configure(METRICS_FILE=str(node.directory / "backup.prom"))
    done = node.start((command,), command=without_client)
    assert (done.returncode, "; apt-get install python3-prometheus-client" in done.stderr) == (1, True)
    assert "no module" not in node.start(("list",), command=without_client).stderr
    node.configure()
    assert "no module" not in node.start((command,), command=without_client).stderr


@pytest.mark.parametrize("command", ["backup", "verify", "drill"])
def test_metrics_are_written_after_failures_too(node: Node, command: str) -> None:
    path = node.directory / "backup.prom"
    constants = {"METRICS_FILE": str(path), "STATE_DIR": str(node.directory / "state"), "DRILL_POOL": "x"}
    assert node.run(command, RESTIC_BINARY="/nowhere/restic", **constants).returncode == 1
    assert "virt_rbd_backup_build_info" in path.read_text()
    assert ("virt_rbd_backup_run_exit_code 1.0" in path.read_text()) == (command == "backup")


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="takes root's leave to be process 1"
)
def test_check_works_as_process_1_of_a_container(node: Node) -> None:
    node.configure()
    done = node.start(("check",), command=("unshare", "--pid", "--fork", PYTHON, str(MAIN)))
    assert "ok       output restic" in done.stdout
    assert done.stderr == ""
