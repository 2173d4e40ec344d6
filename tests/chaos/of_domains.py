"""What admins and guests do meanwhile: agents, domains, disks and snapshots that come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.chaos.guests import BY_NAME
from tests.chaos.plan import Fault
from tests.chaos.world import Happening, World
from tests.lab import Lab, LabError

AGENT = "$(pidof qemu-ga)"
STARTS = f"command=$(tr '\\0' ' ' </proc/{AGENT}/cmdline)"


@contextmanager
def _agent_stopped(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    lines = f"kill -STOP {AGENT}; sleep {fault.seconds}; kill -CONT {AGENT}"
    _in_guest(world.lab, fault.target[0], lines)
    yield fault.target


@contextmanager
def _agent_killed(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    _in_guest(world.lab, fault.target[0], f"{STARTS}; kill -9 {AGENT}; sleep {fault.seconds}; $command")
    yield fault.target


def _in_guest(lab: Lab, name: str, lines: str) -> None:
    """Have the guest run lines of shell, in the background."""
    arguments = {"path": "/bin/sh", "arg": ["-c", lines]}
    call = json.dumps({"execute": "guest-exec", "arguments": arguments})
    lab.virsh("qemu-agent-command", name, "--timeout", "5", call)


@contextmanager
def _destroyed(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    """Destroy the domain; the end of the round starts it again (`at_home`)."""
    world.lab.destroy_domain(fault.target[0])
    yield fault.target
    world.over.wait()


@contextmanager
def _undefined(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    world.lab.undefine_domain(fault.target[0])
    yield ()
    world.over.wait()


@contextmanager
def _detached(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    """Detach the second disk in the domain's definition; a guest that runs has it nevertheless."""
    world.lab.virsh("detach-disk", fault.target[0], "vdb", "--config")
    yield ()
    world.over.wait()


@contextmanager
def _admins_snapshot(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    """Make one of each image; it stays, as snapshots of others have to."""
    name = f"admin-{time.time_ns()}"
    for image in BY_NAME[fault.target[0]].images.values():
        world.lab.rbd("snap", "create", "--no-progress", f"{image}@{name}")
        world.foreign_snapshots.append((image, name))
    yield ()


@contextmanager
def _snapshot_removed(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    """Remove what this program has made of the domain's images, base snapshots included."""
    for image in BY_NAME[fault.target[0]].images.values():
        for name in (one for one in snapshots(world.lab, image) if one.startswith("virt-rbd-backup.")):
            with suppress(LabError):  # it was just removed by who had made it
                world.lab.rbd("snap", "rm", "--no-progress", f"{image}@{name}")
    yield ()


def snapshots(lab: Lab, image: str) -> list[str]:
    """List an image's snapshots."""
    return [one["name"] for one in json.loads(lab.rbd("snap", "ls", "--format", "json", image))]


def at_home(world: World) -> None:
    """Have all domains defined as they were, those that run running, and none paused by an admin."""
    for name, xml in world.definitions.items():
        world.lab.virsh("define", "/dev/stdin", stdin=xml.encode())
        guest = BY_NAME[name]
        if guest.running and world.lab.virsh("domstate", name).strip() == "shut off":
            world.lab.start_domain(name, wait_for_agent=False)


HAPPENINGS: Mapping[str, Happening] = {
    "agent stopped": _agent_stopped,
    "agent killed": _agent_killed,
    "domain destroyed": _destroyed,
    "domain undefined": _undefined,
    "disk detached": _detached,
    "admin's snapshot": _admins_snapshot,
    "snapshot removed": _snapshot_removed,
}
