"""The README's walk-through: a lost domain comes back with restic and rbd alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import WEB

README = Path(__file__).parents[2] / "README.md"


def test_a_lost_domain_comes_back_by_hand(node: Node, lab: Lab, tmp_path: Path) -> None:
    before = lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert node.run("backup", WEB).returncode == 0
    lab.destroy_domain(WEB)
    lab.undefine_domain(WEB)
    lab.delete_image(f"vms/{WEB}-root")
    lab.delete_image(f"ssd/{WEB}-data")
    lab.console_log(WEB).unlink()

    for command in _walk_through():
        node.shell(command, tmp_path)
        if "rbd import" in command:  # "for each disk"
            node.shell(command.replace("vda", "vdb").replace("vms/web01-root", "ssd/web01-data"), tmp_path)

    assert lab.wait_for_ticks(WEB) > before, "the guest goes on counting where it was frozen"
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers")


def _walk_through() -> Sequence[str]:
    section = README.read_text().split("## Restoring by hand")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    return block[1].splitlines()
