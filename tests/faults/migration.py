"""Live migrations of a guest between the lab's two nodes, in steps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from tests.faults.provoke import freeze_status
from tests.integration.left_behind import left_behind
from tests.integration.node import Node, wait_until
from tests.lab import Lab, LabError, RbdDisk
from tests.lab.programs import ENDS_WITH_US, ENVIRONMENT
from tests.lab.sample import MIB
from tests.lab.second_node import ADDRESS, SecondNode

GUEST = "roamer"
SLOWEST = 1  # MiB/s: at this rate no migration ends before it may
FASTEST = 10_000  # MiB/s

Libvirt = Union[Lab, SecondNode]


class NodeWithin(Node):
    """main.py on the second node, with the first one's repository."""

    def __init__(self, lab: Lab, directory: Path, first: Node, within: Sequence[str]) -> None:
        directory.mkdir()
        super().__init__(lab, directory)
        self._within = within
        self.repository = first.repository
        self.constants["RESTIC_REPOSITORY"] = str(first.repository)

    def command(self, *words: str, **constants: Any) -> list[str]:
        return [*self._within, *super().command(*words, **constants)]


@dataclass
class Migration:
    """The guest's migration from one node to the other."""

    lab: Lab
    second: SecondNode
    first_node: Node
    second_node: NodeWithin

    @contextmanager
    def begun(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Have the guest migrate from the first node, slowly; what is yielded ends when it has."""
        command = ("virsh", "--quiet", "--connect", self.lab.libvirt_uri, "migrate", "--live", *options)
        where = (GUEST, self.second.uri, ADDRESS, "--bandwidth", str(SLOWEST))
        with subprocess.Popen(
            [*ENDS_WITH_US, *command, *where],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def under_way(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """The same, once its memory is on its way; it does not end before it is let."""
        with self.begun(*options) as process:
            self.await_memory(process)
            yield process

    def await_memory(self, process: subprocess.Popen[str]) -> None:
        """Wait until its memory is on its way, or it has ended."""
        wait_until(lambda: self._begun or process.poll() is not None, 120, "the migration has begun")

    @property
    def _begun(self) -> bool:
        return "Memory processed" in self.lab.virsh("domjobinfo", GUEST)

    def complete(self, process: subprocess.Popen[str]) -> None:
        """Let it end, and wait for that."""
        self.let_go()
        assert self.arrives(process), "it was cancelled"

    def let_go(self) -> None:
        """Let it end, unless it has been cancelled."""
        with suppress(LabError):
            self.lab.virsh("migrate-setspeed", GUEST, str(FASTEST))

    def arrives(self, process: subprocess.Popen[str]) -> bool:
        """Wait for its end; return whether the guest is on the other node, False if it was cancelled."""
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0 or "cancel" in output, output
        return process.returncode == 0

    def cancel(self, process: subprocess.Popen[str]) -> None:
        """Have an admin cancel it; the guest stays where it was."""
        self.lab.virsh("domjobabort", GUEST)
        process.communicate(timeout=60)
        assert process.returncode != 0

    def whereabouts(self) -> Sequence[Libvirt]:
        """Give the nodes on which the guest runs."""
        nodes: Sequence[Libvirt] = (self.lab, self.second)
        return [node for node in nodes if GUEST in node.virsh("list", "--name").split()]

    def require_untouched(self) -> None:
        """Have the guest run on one node alone, thawed and writing, and nothing of ours left on either."""
        (node,) = self.whereabouts()
        wait_until(lambda: node.hypervisor.agent_answers(GUEST), 60, "the agent answers")
        assert freeze_status(node, GUEST) == "thawed"
        self.lab.wait_for_ticks(GUEST, beyond=self.lab.ticks(GUEST))
        for one in (self.first_node, self.second_node):
            left = left_behind(self.lab, one)
            assert not left, left

    def consistencies(self) -> list[str]:
        """Give the consistency of each of the guest's complete restore points."""
        found = []
        for one in self.first_node.snapshots("virt-rbd-backup", "definition"):
            if one["hostname"] == GUEST:
                tags = dict(tag.split("=", 1) for tag in one["tags"] if "=" in tag)
                found.append(tags["consistency"])
        return found


@contextmanager
def roaming_guest(lab: Lab) -> Iterator[None]:
    """Have a running guest on the first node that both nodes' QEMUs append its console to one file."""
    lab.create_image(f"vms/{GUEST}", 64 * MIB)
    try:
        lab.define_domain(GUEST, [RbdDisk("vda", f"vms/{GUEST}")])
        xml = lab.virsh("dumpxml", "--inactive", GUEST)
        path = f"<source path='{lab.console_log(GUEST)}'"
        assert path in xml
        lab.virsh("define", "/dev/stdin", stdin=xml.replace(path, f"{path} append='on'").encode())
        lab.start_domain(GUEST, wait_for_agent=True)
        yield
    finally:
        end_guest(lab)
        lab.delete_image(f"vms/{GUEST}")


def end_guest(*nodes: Libvirt) -> None:
    """Remove the guest from the nodes, wherever it is."""
    for node in nodes:
        if GUEST in node.virsh("list", "--name").split():
            with suppress(LabError):  # that of a migration which has just failed
                node.virsh("destroy", GUEST)
        if GUEST in node.virsh("list", "--all", "--name").split():
            node.virsh("undefine", GUEST)


def domain_of(node: Node) -> dict[str, Any]:
    """Give what the last run reports of the guest."""
    found: dict[str, Any] = json.loads(node.report_file.read_text())
    return next(one for one in found["domains"] if one["name"] == GUEST)
