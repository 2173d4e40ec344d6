"""What a round happens in: the lab, the guests, the repositories, the nodes, and what is known of them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from tests.chaos.guests import GUESTS, Guest, add_guests, known_content
from tests.chaos.nodes import Node, Running
from tests.chaos.own_points import SavedDirectory, SavedPool
from tests.chaos.plan import NODES, OF_RESTIC, OUTPUTS, Fault, Order
from tests.chaos.pulse import Pulse
from tests.chaos.repository import Holder, Point, Repository
from tests.lab import Lab, LabError, running_lab
from tests.lab.programs import run_program
from tests.quick_repository import PASSWORD, make_repository

STORE_SIZE = "1536m"  # of all repositories
FIRST_LIMIT = 180  # seconds
SAVED_POOL = Path("ssd/saved")  # a pool and a namespace
ADMINS_SNAPSHOT = "admin-keeps-this"


@dataclass(frozen=True)
class Span:
    """A fault, from when to when, in time.monotonic(). `excuses`: the guests that may stop writing for it.

    `note`: why it did not come, or failed.
    """

    began: float
    ended: float
    fault: Fault
    excuses: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return f"{self.note}{self.fault}"


@dataclass
class World:
    """One lab with all that belongs to it; rebuilt when a violation or a fault has broken it."""

    lab: Lab
    directory: Path
    store: Path
    holder_of: Mapping[str, Holder]  # by output
    nodes: Mapping[str, Node]
    pulse: Pulse
    content: Mapping[str, str]  # SHA-256 by image
    definitions: Mapping[str, str]  # XML by domain
    uuids: Mapping[str, str]
    backups: list[Running] = field(default_factory=list)  # all that ever were
    over: threading.Event = field(default_factory=threading.Event)  # all commands of the round have ended
    foreign_snapshots: list[tuple[str, str]] = field(default_factory=list)  # (image, snapshot)
    spans: list[Span] = field(default_factory=list)
    watchdogs_hit: set[tuple[str, int]] = field(default_factory=set)  # (node, PID), killed or stopped
    checked: set[str] = field(default_factory=set)  # restore points, by the ids of their manifests
    held_in: dict[Path, dict[str, Point]] = field(default_factory=dict)  # those to be there still

    @property
    def places(self) -> list[Path]:
        """Give restic's repositories, each once."""
        return [*dict.fromkeys(self.holder_of[output].place for output in OF_RESTIC)]

    @property
    def saved_directory(self) -> Path:
        return self.holder_of["directory"].place

    @property
    def holders(self) -> Sequence[Holder]:
        """Give what all outputs save to, each once."""
        return [*{holder.place: holder for holder in self.holder_of.values()}.values()]

    def rados(self, *arguments: str) -> bytes:
        return run_program("rados", "--conf", self.lab.ceph_conf, *arguments)

    def happened(self, kind: str, name: str = "") -> bool:
        """Tell whether the round had a fault of this kind that hit the domain."""
        faults = [span.fault for span in self.spans if not span.note]
        return any(fault.kind == kind and (not name or name in fault.target) for fault in faults)


# Lets a fault happen for the time of a block, which gets the guests that may stop writing for it.
Happening = Callable[[World, Fault], AbstractContextManager[tuple[str, ...]]]


@contextmanager
def built(directory: Path, shared: bool, guests: Sequence[Guest] = GUESTS) -> Iterator[World]:
    """Have a world with these guests during the block. `shared`: both outputs have one repository."""
    directory.mkdir(parents=True)
    store = directory / "store"
    store.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={STORE_SIZE}", "chaos-store", str(store))
    try:
        password = directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o600)
        repositories = {output: store / ("both" if shared else output) for output in OF_RESTIC}
        for place in dict.fromkeys(repositories.values()):
            make_repository(place)
        repositories |= {"directory": store / "directory", "rbd": SAVED_POOL}
        (store / "directory").mkdir()
        with running_lab(directory / "lab") as lab:
            lab.rbd("namespace", "create", str(SAVED_POOL))
            add_guests(lab, guests)
            running = [guest.name for guest in guests if guest.running]
            with Pulse(lab, running).followed() as pulse:
                world = _world(lab, directory, repositories, pulse, guests)
                _first_backups(world)
                try:
                    yield world
                finally:
                    for node in world.nodes.values():
                        node.kill_all()
    finally:
        _run("umount", "--lazy", str(store))


def _world(
    lab: Lab, directory: Path, repositories: Mapping[str, Path], pulse: Pulse, guests: Sequence[Guest]
) -> World:
    images = [image for guest in guests for image in guest.images.values()]
    for image in images:
        lab.rbd("snap", "create", "--no-progress", f"{image}@{ADMINS_SNAPSHOT}")
    return World(
        lab=lab,
        directory=directory,
        store=directory / "store",
        holder_of={
            **{output: Repository(repositories[output], directory) for output in OF_RESTIC},
            "rbd": SavedPool(repositories["rbd"], directory, lab),
            "directory": SavedDirectory(repositories["directory"], directory),
        },
        nodes={name: Node(lab, name, directory / "nodes" / name, repositories) for name in NODES},
        pulse=pulse,
        content=known_content(lab, guests),
        definitions={guest.name: lab.virsh("dumpxml", "--inactive", guest.name) for guest in guests},
        uuids={guest.name: lab.virsh("domuuid", guest.name).strip() for guest in guests},
        foreign_snapshots=[(image, ADMINS_SNAPSHOT) for image in images],
    )


def _first_backups(world: World) -> None:
    """Save all domains with each output, so that there is something to restore, verify and build on."""
    node = next(iter(world.nodes.values()))
    for output in OUTPUTS:
        order = Order(node.name, ("backup",), 0, {"OUTPUT": output})
        first = node.start(order, world.directory / f"first-{output}")
        world.backups.append(first)
        if not first.wait(FIRST_LIMIT) or first.code != 0:
            raise LabError(f"the first backup with {output} failed: {first.words[-500:]}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def wait_for(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Poll until it is true; tell whether it was in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
