"""backup/system/started_program.py: commands are logged so that they can be pasted, without secrets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backup.hooks.program import AdminProgram
from backup.restore.new_file import NewFile
from backup.stored import SavedImage
from backup.system.started_program import Command, commands_logged, without_secrets
from tests.quick_repository import PASSWORD

from ..hook_files import HookFiles
from ..program_node import Node
from ..repository import Repository
from ..samples import LAYOUT, MIB

pytestmark = pytest.mark.usefixtures("nothing_left")

TOKEN = "a-token-of-the-admin"
SAVED = SavedImage("vda", "vms/web", MIB, 0, 0, 1.0, "", LAYOUT)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The commands that were logged."""
    lines: list[str] = []
    with commands_logged(lines.append):
        yield lines


def pasted(line: str) -> str:
    """Run a logged command in a shell, as an admin would; return what it printed."""
    command = line.partition("starting ")[2]
    done = subprocess.run(["sh", "-c", command], cwd="/tmp", stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_a_command_of_restic_is_logged_and_runs_when_it_is_pasted(
    repository: Repository, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "TZ"):
        monkeypatch.delenv(name, raising=False)
    program = repository.program()
    printed = program.call("cat", "config", "--no-lock", limit=60)
    assert (
        logged
        == [
            f"starting env --chdir=/ LANG=C.UTF-8 TZ=UTC RESTIC_REPOSITORY={repository.path} "
            f"RESTIC_PASSWORD_FILE={repository.password_file} restic --no-cache cat config --no-lock"
        ]
        or "LANG" in os.environ
    )
    assert pasted(logged[0]) == printed


def test_no_secret_of_restic_is_in_the_log(repository: Repository, logged: list[str]) -> None:
    environment = {"RESTIC_PASSWORD": PASSWORD, "AWS_ACCESS_KEY_ID": "short", "RESTIC_CACHE_DIR": "/cache"}
    program = replace(
        repository.program(
            "true", repository=f"rest:https://backup:{TOKEN}@host/web", environment=environment
        ),
        options=(f"--password-command=echo {PASSWORD}", "--limit-upload=50000"),
    )
    program.call("snapshots", limit=60)
    (line,) = logged
    assert [secret for secret in (PASSWORD, "short", TOKEN) if secret in line] == []
    assert "RESTIC_REPOSITORY=rest:https://backup:***@host/web" in line
    assert "'RESTIC_PASSWORD=***' 'AWS_ACCESS_KEY_ID=***' RESTIC_CACHE_DIR=/cache" in line
    assert line.endswith("true '***' --limit-upload=50000 snapshots")


def test_a_command_of_qemu_img_is_logged_and_runs_when_it_is_pasted(
    tmp_path: Path, logged: list[str]
) -> None:
    target = NewFile(str(tmp_path / "a disk.qcow2"), SAVED, force=False)
    with target.opened(lambda: None):
        pass
    (line,) = logged
    converted = tmp_path / "a disk.qcow2.restoring.qcow2"
    converted.write_bytes(b"")
    pasted(line)
    assert converted.stat().st_size > 0
    target.discard()


def test_qemu_img_gets_nothing_of_our_environment_but_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/qemu-img"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nenv >{tmp_path}/environment\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("RESTIC_PASSWORD", PASSWORD)
    target = NewFile(str(tmp_path / "vda.qcow2"), SAVED, force=False)
    with target.opened(lambda: None):
        pass
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names <= {"PATH", "TMPDIR", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    target.discard()


def test_a_hook_is_logged_and_runs_when_it_is_pasted(tmp_path: Path, logged: list[str]) -> None:
    hook = HookFiles(tmp_path).add("before-run.d/10-show", 'echo "$VIRT_RBD_BACKUP_RUN in $PWD"')
    printed: list[str] = []
    AdminProgram("hook", [str(hook)], {"VIRT_RBD_BACKUP_RUN": "it's one"}, 20).run(
        printed.append, lambda: None
    )
    (line,) = logged
    assert pasted(line).splitlines() == printed == ["it's one in /"]


def test_no_argument_of_an_admin_s_program_is_in_the_log(logged: list[str]) -> None:
    AdminProgram("notify", ["/bin/true", "--token", TOKEN], {}, 20).run(lambda _: None, lambda: None)
    (line,) = logged
    assert TOKEN not in line
    assert line.endswith(" timeout --kill-after=10 20 /bin/true '***' '***'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rest:https://backup:pass/word@host/web", "rest:https://backup:***@host/web"),
        ("rest:https://backup:p@ss@host/web", "rest:https://backup:***@host/web"),
        ("rest:https://tok@en@host/web", "rest:https://***@host/web"),
        (f"https://{TOKEN}@host/web", "https://***@host/web"),
        (f'Get "https://host/web?sig={TOKEN}": EOF', 'Get "https://host/web?***": EOF'),
        ("sftp://backup@host//srv/web", "sftp://backup@host//srv/web"),
        ("sftp:backup@host:/srv/web", "sftp:backup@host:/srv/web"),
    ],
)
def test_passwords_and_tokens_in_urls_are_replaced(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_what_python_shows_of_a_command_has_no_secret() -> None:
    command = Command(["true", TOKEN], {"RESTIC_PASSWORD": PASSWORD}, ["RESTIC_PASSWORD"], [TOKEN])
    assert PASSWORD not in repr(command)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_commands_are_in_the_log_at_level_debug_alone(node: Node) -> None:
    lines = node.run_each("restore-points", "--log-level debug restore-points")
    assert lines["restore-points"].stderr == ""
    line = lines["--log-level debug restore-points"].stderr.splitlines()[-1]
    assert line.startswith("starting env --chdir=/ ")
    assert pasted(line) == "[]\n"


def test_commands_of_a_worker_are_in_the_log_with_their_domain(node: Node) -> None:
    hook = HookFiles(node.directory).add("after-job.d/10-unmount")
    done = node.run("--log-level", "debug", "backup", "web", HOOKS=str(hook.parent.parent))
    lines = [line for line in done.stderr.splitlines() if line.endswith(f" {hook}")]
    assert [line.partition(" env ")[0] for line in lines] == ["web: starting"]
