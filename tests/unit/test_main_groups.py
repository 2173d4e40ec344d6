"""main.py with groups of domains, as an admin runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.watch.node_lock import only_run

from .program_node import Done, Node
from .samples import domain


class Groups(Node):
    """A node with the groups a and b beside its settings without a group."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.configure()
        for group in "ab":
            self.configure_group(group)

    def configure_group(self, group: str, **constants: Any) -> None:
        """Write a group's settings; STATE_DIR and REPORT_FILE are the node's own."""
        merged = {**self.constants, **constants}
        path = self.settings.with_name(f"{group}.py")
        kept = {name: value for name, value in merged.items() if name not in ("STATE_DIR", "REPORT_FILE")}
        kept["STATE_DIR"] = f"{self.directory}/state-{group}"
        path.write_text("".join(f"{name} = {value!r}\n" for name, value in kept.items()))
        path.chmod(0o600)

    def ask(self, *arguments: str) -> Done:
        return self.start(arguments)


@pytest.fixture
def node(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


@pytest.fixture(scope="module")
def after_runs(tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """Give a node where each group has had a run."""
    node = Groups(tmp_path_factory.mktemp("node"))
    for group in "ab":
        node.configure_group(group, METRICS_FILE=f"{node.directory}/{group}.prom")
        done = node.ask("--group", group, "backup")
        assert (done.returncode, "1 failed" in done.stdout) == (3, True), done.stderr
    return node


def test_a_group_has_the_settings_of_its_own_file(node: Groups) -> None:
    node.configure_group("a", INCLUDE_DOMAINS=["nothing"])
    assert "not in INCLUDE_DOMAINS" in node.ask("list", "--group", "a").stdout
    assert "not in INCLUDE_DOMAINS" in node.ask("--group", "a", "list").stdout
    assert "not in INCLUDE_DOMAINS" not in node.ask("--group=b", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ("--group c list", "there is no group c: {}/c.py is missing", "groups: a, b"),
        ("--group settings list", "invalid group name 'settings'", "a group's name has letters"),
        ("--group ../a list", "argument --group: invalid group name '../a'", "see"),
        ("--group a --config x.py list", "argument --group: not allowed with argument --config", "see"),
        ("list --config x.py --group a", "argument --group: not allowed with argument --config", "see"),
    ],
)
def test_a_wrong_group_is_an_error_with_a_hint(node: Groups, arguments: str, error: str, hint: str) -> None:
    done = node.ask(*arguments.split())
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.startswith(f"error: {error.format(node.directory)}")
    assert second.startswith(f"hint: {hint}")


def test_the_environment_names_a_group_too_and_the_command_line_has_priority(
    node: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.configure_group("a", INCLUDE_DOMAINS=["nothing"])
    monkeypatch.setenv("VIRT_RBD_BACKUP_GROUP", "a")
    assert "not in INCLUDE_DOMAINS" in node.ask("list").stdout
    assert "not in INCLUDE_DOMAINS" not in node.ask("list", "--group", "b").stdout
    assert "not in INCLUDE_DOMAINS" not in node.ask("list", "--config", str(node.settings)).stdout
    monkeypatch.setenv("VIRT_RBD_BACKUP_GROUP", "../a")
    assert "error: invalid group name '../a'" in node.ask("list").stderr


def test_hints_name_the_group(node: Groups) -> None:
    hint = node.ask("--group", "a", "report").stderr
    assert "`main.py --group a backup` stores one" in hint
    assert "`main.py backup` stores one" in node.ask("report", "--config", str(node.settings)).stderr


def test_each_group_has_its_lock_and_the_reports_of_all_are_shown(after_runs: Groups) -> None:
    for group in "ab":
        assert (after_runs.runtime_dir / "groups" / group / "run.lock").exists()
    done = after_runs.ask("report")
    assert (done.returncode, done.stderr) == (0, "")
    runs = [line.split()[2:5] for line in done.stdout.splitlines() if line.startswith("run ")]
    assert runs == [["of", "group", "a"], ["of", "group", "b"]]
    only = after_runs.ask("report", "--group", "a").stdout
    assert "of group a on" in only
    assert "of group b on" not in only


def test_the_metrics_of_each_group_have_its_label(after_runs: Groups) -> None:
    for group in "ab":
        text = (after_runs.directory / f"{group}.prom").read_text()
        samples = [line for line in text.splitlines() if not line.startswith("#")]
        assert samples
        assert [line for line in samples if f'group="{group}"' not in line] == []


def test_the_newest_report_and_that_of_any_run_is_printed_as_json(after_runs: Groups) -> None:
    newest = json.loads(after_runs.ask("report", "--json").stdout)
    assert newest["group"] == "b"
    other = json.loads(after_runs.ask("report", "--json", "--group", "a").stdout)
    assert other["group"] == "a"
    assert json.loads(after_runs.ask("report", "--run", other["run"], "--json").stdout) == other
    assert after_runs.ask("report", "--run", "no-such").returncode == 2


def test_the_page_has_all_groups(after_runs: Groups) -> None:
    page = after_runs.ask("report", "--html", "-").stdout
    assert 'id="group-a"' in page
    assert 'id="group-b"' in page
    assert 'id="group-b"' not in after_runs.ask("report", "--html", "-", "--group", "b").stdout


def test_the_status_has_all_groups(node: Groups) -> None:
    node.save_restore_point()
    done = node.ask("status", "--json")
    assert done.returncode == 0, done.stderr
    domains = json.loads(done.stdout)["domains"]
    assert [(one["name"], one.get("group")) for one in domains] == [("web", None), ("web", "a"), ("web", "b")]
    node.configure_group("b", RESTIC_REPOSITORY="/nowhere")
    node.configure_group("a", INCLUDE_DOMAINS=["web"])
    lost = node.ask("status")
    assert (lost.returncode, "group b: " in lost.stderr) == (3, True)
    judged = node.ask("status", "--max-age", "26h")
    assert (judged.returncode, judged.stdout.split(";")[0]) == (3, "UNKNOWN: no answer for b")
    assert node.ask("status", "--group", "a").stdout.splitlines()[1].split()[:2] == ["a", "web"]


def test_settings_without_a_repository_are_not_shown_beside_groups(node: Groups) -> None:
    node.configure(RESTIC_REPOSITORY="")
    node.save_restore_point()
    domains = json.loads(node.ask("status", "--json").stdout)["domains"]
    assert {one["group"] for one in domains} == {"a", "b"}
    checked = node.ask("check").stdout
    assert "RESTIC_REPOSITORY is not set" not in checked
    assert "group a: 1 domains to back up (`main.py --group a check` checks it)" in checked


def test_a_broken_group_is_reported_and_hides_no_other(after_runs: Groups) -> None:
    broken = after_runs.settings.with_name("c.py")
    broken.write_text("WORKERS = 0\n")
    broken.chmod(0o600)
    try:
        done = after_runs.ask("report")
        assert (done.returncode, "of group b on" in done.stdout) == (3, True)
        assert "group c: WORKERS = 0" in done.stderr
        judged = after_runs.ask("status", "--max-age", "26h")
        assert judged.returncode == 2, "there is no restore point"
        assert "PROBLEM  group c: WORKERS = 0" in after_runs.ask("check").stdout
    finally:
        broken.unlink()


def test_check_warns_of_a_domain_in_two_groups(node: Groups) -> None:
    warned = "WARNING  domain web is selected by the settings without a group and group a and group b"
    assert warned in node.ask("check").stdout
    assert "is selected by" not in node.ask("check", "--group", "a").stdout


def test_the_settings_without_a_group_may_be_missing(node: Groups) -> None:
    node.settings.unlink()
    assert node.ask("backup", "--group", "a", "--dry-run").returncode == 0
    assert "group b: 1 domains" in node.ask("check").stdout
    done = node.ask("backup")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {node.settings} is missing",
        "hint: --group names one of the groups: a, b",
    ]


@pytest.mark.parametrize("without_group", ["sound", "broken", "missing"])
def test_the_thaw_alone_thaws_guests_of_all_groups_whatever_is_wrong_elsewhere(
    node: Groups, without_group: str
) -> None:
    """As virt-rbd-backup-thaw.service does it, which is one for all groups."""
    directory = node.runtime_dir / "groups/a"
    directory.mkdir(parents=True)
    notes = FreezeNotes(str(directory))
    notes.write(domain(uri=node.uri), Method.PAUSE)
    node.configure_group("b", WORKERS=0)
    if without_group == "broken":
        node.settings.write_text("NOT_A_CONSTANT = 1\n")
    elif without_group == "missing":
        node.settings.unlink()
    done = node.ask("cleanup", "--thaw")
    assert (done.returncode, notes.all()) == (0, []), done.stderr
    assert "resumed: an interrupted backup had left the guest paused" in done.stderr
    assert ("NOT_A_CONSTANT" in done.stderr) is (without_group == "broken")


def test_a_run_of_one_group_keeps_only_that_group_from_another_run(node: Groups) -> None:
    node.runtime_dir.mkdir(mode=0o700)
    (node.runtime_dir / "groups").mkdir(mode=0o700)
    with only_run(str(node.runtime_dir / "groups/a")):
        refused = node.ask("backup", "--group", "a")
        assert refused.returncode == 11
        assert "error: another run of group a is active on this node" in refused.stderr
        assert "systemctl status virt-rbd-backup@a`" in refused.stderr
        assert node.ask("backup", "--group", "b").returncode == 3, "its cluster cannot be reached"
        assert node.ask("backup").returncode == 3


def test_a_run_begins_with_what_a_killed_run_of_another_group_left(node: Groups) -> None:
    node.runtime_dir.mkdir(mode=0o700)
    directory = node.runtime_dir / "groups/a"
    directory.mkdir(parents=True)
    notes = FreezeNotes(str(directory))
    notes.write(domain(uri=node.uri), Method.PAUSE)
    node.ask("backup", "--group", "b")
    assert notes.all() == []
    assert list((node.runtime_dir / "groups/b/held").glob("*")) == []
