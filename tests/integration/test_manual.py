"""res/docs/restore.md: its commands restore a domain, by the program and with restic and rbd alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import WEB

PAGE = Path(__file__).parents[2] / "res/docs/restore.md"
IMAGES = (f"vms/{WEB}-root", f"ssd/{WEB}-data")
COPY = f"{WEB}-copy"
PLACES = ("vms", "ssd", "ssd/scratch")


@pytest.fixture
def scratch(lab: Lab) -> Iterator[str]:
    """Have a namespace to restore into; remove what was restored."""
    lab.rbd("namespace", "create", "ssd/scratch")
    before = _images(lab)
    yield "ssd/scratch"
    if COPY in lab.virsh("list", "--all", "--name").split():
        if lab.virsh("domstate", COPY).strip() == "running":
            lab.destroy_domain(COPY)
        lab.undefine_domain(COPY)
    for image in sorted(_images(lab) - before):
        lab.delete_image(image)
    lab.rbd("namespace", "remove", "ssd/scratch")


def test_the_commands_of_the_program_restore(node: Node, lab: Lab, tmp_path: Path, scratch: str) -> None:
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert node.run("backup", WEB).returncode == 0
    frozen_at = lab.ticks(WEB)
    there = {
        "scratch": scratch,
        "2026-11-23": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "/srv": str(tmp_path),
    }
    lines = [line for line in _commands("## All ways", there) if "--clone" not in line]  # another output's
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    (lost,) = [words for words in commands if "--start" in words and "--suffix" not in words]
    for words in commands:
        if words != lost:
            done = node.run(*words)
            assert done.returncode == 0, (words, done.stderr)
    copies = {f"{image}-copy" for image in IMAGES}
    elsewhere = {f"{scratch}/{image.split('/')[1]}" for image in IMAGES}
    assert {*copies, *elsewhere, "vms/rescue"} <= _images(lab)
    assert (tmp_path / "vdb.qcow2").exists()
    wait_until(lambda: lab.hypervisor.agent_answers(COPY), 90, "the copy's agent answers")

    lab.wait_for_ticks(WEB, beyond=frozen_at + 3)
    _lose(lab)
    done = node.run(*lost)
    assert done.returncode == 0, done.stderr
    assert 0 < lab.began_at(WEB) <= frozen_at, "the guest continues where it was frozen"
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers")


def test_the_commands_by_hand_restore_a_lost_domain(node: Node, lab: Lab, tmp_path: Path) -> None:
    before = lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert node.run("backup", WEB).returncode == 0
    _lose(lab)

    for command in _commands("## Restoring by hand", {}):
        node.shell(command, tmp_path)
        if "rbd import" in command:  # "for each disk"
            node.shell(command.replace("vda", "vdb").replace(*IMAGES), tmp_path)

    assert lab.wait_for_ticks(WEB) > before, "the guest continues where it was frozen"
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers")


def _commands(heading: str, replaced: dict[str, str]) -> Sequence[str]:
    """Give the lines of the first block of commands below a heading of the page."""
    section = PAGE.read_text().split(f"{heading}\n")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    text = block[1]
    for word, place in replaced.items():
        assert word in text
        text = text.replace(word, place)
    return text.splitlines()


def _lose(lab: Lab) -> None:
    lab.destroy_domain(WEB)
    lab.undefine_domain(WEB)
    for image in IMAGES:
        lab.delete_image(image)
    lab.console_log(WEB).unlink()


def _images(lab: Lab) -> set[str]:
    return {f"{place}/{name}" for place in PLACES for name in lab.rbd("ls", place).decode().splitlines()}
