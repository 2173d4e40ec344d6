"""Completions as an admin meets them: a key is pressed in a real bash and a real zsh, and the line is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from backup.terminal.completion import KINDS
from tests.integration.terminal import on_terminal

from .program_node import MAIN, PYTHON, Node
from .samples import RUN

ROOT = Path(__file__).parents[2]
NEWER = "20240204T040506Z-abcd"
# What follows the first letters of each is typed by the shell, which has to quote it.
NAMES = {
    "pl": "plain01",
    "we": "web server 1",
    "it": "it's",
    "sa": 'say "hi"',
    "do": "do$(touch injected)$HOME",
    "ba": "ba`touch injected`",
    "se": "se;touch injected;#",
    "am": "am&touch injected|cat>injected",
    "st": "sta*[r]?{a,b}",
    "ex": "ex~/x!y",
    "Bü": "Büro",
    "fo": "folder",  # which is the name of a directory here too
}
HIDDEN = ("new\nline", "esc\x1b[2Jape", "back\\slash", "--help", "\udcff")
# Leave the words that it is run with to the test.
COMMAND = f"""#!/bin/sh
[ "$1" = __complete ] && exec {PYTHON} {MAIN} "$@"
printf '%s\\0' "$@" >words.new && mv words.new words
"""
SHELLS = {
    "bash": ("bash --noprofile --norc -i", ". functions/_virt-rbd-backup"),
    "zsh": (
        "zsh -f -i",
        "unsetopt BEEP; fpath=($PWD/functions $fpath); autoload -Uz compinit && compinit -u -D",
    ),
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.configure(LIBVIRT_URI="test:///default")
    (tmp_path / "state").mkdir()
    know(node, {name: [NEWER, RUN] for name in (*NAMES.values(), *HIDDEN)})
    (tmp_path / "folder").mkdir()
    return node


def know(node: Node, runs: Mapping[str, Sequence[str]]) -> None:
    (node.directory / "state/known-points.json").write_text(json.dumps(runs))


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, node: Node) -> str:
    directory = node.directory
    assert shutil.which(request.param), "see tests/packages.txt"
    script = subprocess.run(
        [ROOT / "res/completions/generate", request.param], stdout=subprocess.PIPE, check=True
    )
    (directory / "functions").mkdir()
    (directory / "functions/_virt-rbd-backup").write_bytes(script.stdout)
    (directory / "bin").mkdir()
    (directory / "bin/virt-rbd-backup").write_text(COMMAND)
    (directory / "bin/virt-rbd-backup").chmod(0o755)
    return str(request.param)


def words_of(shell: str, node: Node, *lines: str) -> list[list[str]]:
    """Type the lines, each with its keys, and Enter; give the words that the command was run with."""
    command, first = SHELLS[shell]
    environment = {
        **os.environ,
        "PATH": f"{node.directory}/bin:{os.environ['PATH']}",
        "VIRT_RBD_BACKUP_CONFIG": str(node.settings),
        "LC_ALL": "C.UTF-8",
        "PS1": "ready> ",
    }
    found = []
    words = node.directory / "words"
    within = ["sh", "-c", f'cd "$1" && exec {command}', "sh", str(node.directory)]
    with on_terminal(within, environment) as terminal:
        terminal.wait_for("ready> ")
        terminal.type(f"{first}; echo co''mplete\r".encode())
        terminal.wait_for("complete\r\n.*ready> ")
        for line in lines:
            before = len(terminal.written)
            terminal.type(f"virt-rbd-backup {line}\r".encode())
            terminal.wait_for("ready> ", after=before)
            found.append(words.read_bytes().decode().split("\0")[:-1] if words.exists() else [])
            words.unlink(missing_ok=True)
        terminal.type(b"exit\r")
        terminal.read_to_end()
    return found


def test_a_name_is_typed_by_the_shell_whatever_it_consists_of(shell: str, node: Node) -> None:
    typed = words_of(shell, node, *(f"restore {letters}\t" for letters in NAMES))
    assert typed == [["restore", name] for name in NAMES.values()]
    assert not (node.directory / "injected").exists()


def test_runs_are_those_of_the_domain_and_of_reports(shell: str, node: Node) -> None:
    know(node, {"web": [NEWER], "db": [RUN]})
    (node.directory / "state/reports").mkdir()
    (node.directory / f"state/reports/{NEWER}.json.gz").touch()
    lines = {
        "restore web --at 20\t": f"restore web --at {NEWER}",
        "files db --at 20\t": f"files db --at {RUN}",
        "verify w\t --at 20\t": f"verify web --at {NEWER}",
        "mount web --at l\t": "mount web --at latest",
        "report --run 2\t": f"report --run {NEWER}",
        "status d\t": "status db",
        "backup d\t": "backup d",  # this node does not have it
        "restore-points w\t": "restore-points web",
        "restore we\t --for\t": "restore web --force",
    }
    assert [" ".join(words) for words in words_of(shell, node, *lines)] == [*lines.values()]


def test_each_kind_has_its_function_in_bash_and_is_of_some_argument() -> None:
    script = (ROOT / "res/completions/values.bash").read_text()
    assert re.findall(
        r"^_virt_rbd_backup_(\w+)\(\) \{ _virt_rbd_backup_values \1 ", script, re.MULTILINE
    ) == [*KINDS]
    generated = subprocess.run(
        [ROOT / "res/completions/generate", "bash"], stdout=subprocess.PIPE, text=True
    ).stdout
    assert {*re.findall(r"_COMPGEN=_virt_rbd_backup_(\w+)", generated)} == {*KINDS}


def asked(node: Node, *arguments: str) -> Sequence[str]:
    done = node.start(("__complete", *arguments))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_what_no_shell_could_type_is_left_out(node: Node) -> None:
    assert asked(node, "saved") == sorted(NAMES.values())
    assert asked(node, "saved", "web s") == ["web server 1"]


def test_this_node_s_domains_are_those_of_its_last_run_of_all(node: Node) -> None:
    run = node.run()
    assert run.returncode == 3, run.stderr
    assert asked(node, "defined") == ["plain", "web"]
    assert node.run("backup", "web").returncode == 3
    assert asked(node, "defined", "p") == ["plain"], "not those of the last run of some"
    know(node, {"plain01": [RUN]})
    assert asked(node, "domains", "pl") == ["plain", "plain01"]


def test_a_listing_of_restore_points_is_remembered(node: Node) -> None:
    node.save_restore_point()
    for command in ("restore-points", "status"):
        know(node, {"old": [RUN]})
        assert node.run(command).returncode == 0
        assert (asked(node, "saved"), asked(node, "points", "2", "web")) == (["web"], [RUN]), command


@pytest.mark.parametrize("content", ["RESTIC_REPOSITORY = ", "raise SystemExit('no')", "WORKERS = 0"])
def test_settings_with_an_error_complete_nothing_and_print_nothing(node: Node, content: str) -> None:
    node.settings.write_text(content)
    assert asked(node, "saved") == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"web": 1}'])
def test_a_damaged_file_completes_nothing_and_prints_nothing(node: Node, content: str) -> None:
    (node.directory / "state/known-points.json").write_text(content)
    assert asked(node, "points", "x") == []
    assert asked(node, "no such kind") == []
    assert asked(node) == []


def test_a_key_is_answered_at_once_without_repository_and_libvirt(node: Node) -> None:
    know(node, {f"domain{number}": [NEWER] * 60 for number in range(2000)})
    node.configure(
        RESTIC_BINARY="/no/restic", LIBVIRT_URI="qemu+ssh://192.0.2.1/system", RESTIC_REPOSITORY=""
    )
    before = os.times()
    assert len(asked(node, "domains", "domain1")) == 1111
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.6, "seconds of processor, half of which Python needs to compile the program"
