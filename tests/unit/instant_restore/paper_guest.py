"""A guest on paper that writes a tick to each disk at every step, at any of which it can be killed."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Optional, cast

import libvirt

from backup.errors import DomainGone
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.instant_xml import on_overlays
from backup.hypervisor.moving_domain import RunningDisk
from backup.instant.record import Record, RecordedDisk, Stage
from backup.instant_restore.given import Given
from backup.model import State
from backup.stored import PointId
from backup.system.stop_request import StopRequest

from ..recorder import Recorder
from ..samples import RUN, UUID

TARGETS = {"vda": "vms/a", "vdb": "ssd/b"}
SOURCE = "<disk type='network'><source protocol='rbd' name='{}'/><target dev='{}'/></disk>"
DISKS = "".join(SOURCE.format(name, target) for target, name in TARGETS.items())
XML = f"<domain><devices>{DISKS}</devices></domain>"
SAVED = 0  # the tick in the restore point


class Killed(BaseException):
    """The process was killed just now."""


@dataclass
class World:
    """The cluster: the record and the ticks in each image. And the guest, which it survives or not."""

    record: Record
    images: dict[str, list[int]]
    tick: int = SAVED
    steps: int = 0
    kill_at: int = -1
    domain: Optional[PaperDomain] = None
    starts: int = 0

    def step(self) -> None:
        """Let the guest write; kill the process if its time has come."""
        self.steps += 1
        if self.domain:
            self.domain.write()
        if self.steps == self.kill_at:
            raise Killed

    def write_record(self, record: Record) -> None:
        self.step()
        self.record = record
        self.step()


@dataclass
class PaperDomain:
    """The guest's domain. Satisfies what is used of MovingDomain, RestoredDomain and Hypervisor."""

    world: World
    uuid: str = UUID
    name: str = "web"
    defined: Optional[Mapping[str, str]] = None  # images by target
    live: Optional[dict[str, str]] = None
    paused: bool = False
    by_error: bool = False
    copies: dict[str, int] = field(default_factory=dict)  # ticks of the overlay that are copied, by target
    failing: list[str] = field(default_factory=list)  # operations that fail, each once
    autostarts: bool = False
    shut_down: bool = False  # by somebody: it has not ended by accident
    memory: Optional[dict[str, str]] = None  # saved by libvirt: the disks that the guest has in it

    def write(self) -> None:
        """Write one tick to all disks, if it runs."""
        if self.live is None or self.paused:
            return
        self.world.tick += 1
        for image in self.live.values():
            self.world.images[image].append(self.world.tick)

    def die(self) -> None:
        """Let its QEMU be killed."""
        self.live, self.paused, self.copies = None, False, {}

    def shut_off(self) -> None:
        """Let somebody shut it down."""
        self.die()
        self.shut_down = True

    def save(self) -> None:
        """Let somebody save its memory, as `virsh managedsave` does."""
        self.memory = self.live
        self.shut_off()

    def define(self, xml: str) -> None:
        self.world.step()
        self.defined = sources(xml)
        self.world.step()

    def define_for_now(self, xml: str, again: bool = False) -> None:
        assert self.defined is None or again
        self.define(xml)

    def start(self, _uuid: str, paused: bool = False) -> None:
        assert self.live is None, "the guest was started twice"
        assert self.defined
        self.world.step()
        self.live, self.paused = self.memory or dict(self.defined), paused
        self.memory, self.shut_down = None, False
        self.world.starts += 1
        self.world.step()

    def destroy(self, _uuid: str) -> None:
        self.die()

    def state(self) -> Optional[State]:
        if self.defined is None:
            return None
        if self.live is None:
            return State.SAVED if self.memory else State.SHUT_OFF
        return State.PAUSED if self.paused else State.RUNNING

    def paused_by_error(self) -> bool:
        return self.by_error

    def ended_by_accident(self) -> bool:
        return self.live is None and not self.shut_down

    def disks(self) -> Mapping[str, RunningDisk]:
        self.world.step()
        self._require_working("disks")
        if self.defined is None:
            raise DomainGone("the domain is no longer defined")
        now = self.live if self.live is not None else self.defined
        ready = {target: self._ready(target) for target in self.copies}
        return {
            one: RunningDisk(image, one in self.copies, ready.get(one, False)) for one, image in now.items()
        }

    def start_copy(self, target: str, destination: str) -> None:
        self._require_active("start_copy")
        assert self.live
        image = ElementTree.fromstring(destination).findall("source")[0].get("name", "")
        assert image == TARGETS[target]
        assert self.live[target] != image, "an image is copied into itself"
        assert self.world.images[image][:1] == [SAVED], "the image is not restored yet"
        self.copies[target] = 0

    def copied_bytes(self, target: str) -> tuple[int, int]:
        if target in self.copies:  # the copy makes progress, in the background
            self.copies[target] = len(self._overlay(target))
            self._copy(target)
        return 1, 1

    def cancel_copy(self, target: str) -> None:
        self._require_active("cancel_copy")
        self.copies.pop(target, None)

    def pivot(self, target: str) -> None:
        self._require_active("pivot")
        assert self.live
        assert target in self.copies
        self._copy(target)
        self.live[target] = TARGETS[target]
        del self.copies[target]
        self.world.step()  # libvirt may be killed before it has stored the definition
        self.defined = {**(self.defined or {}), target: TARGETS[target]}

    def pause(self) -> None:
        self._require_active("pause")
        self.paused = True
        self.world.step()

    def resume(self) -> None:
        self._require_active("resume")
        self.paused = self.by_error = False

    def set_autostart(self) -> None:
        self.autostarts = True

    def _overlay(self, target: str) -> list[int]:
        return self.world.images[f"{TARGETS[target]}.virt-rbd-backup.overlay"]

    def _copy(self, target: str) -> None:
        self.world.images[TARGETS[target]] = [SAVED, *self._overlay(target)]

    def _ready(self, target: str) -> bool:
        return self.copies[target] > 0

    def _require_active(self, operation: str) -> None:
        self.world.step()
        self._require_working(operation)
        if self.live is None:
            raise HypervisorError("the domain is not running", code=libvirt.VIR_ERR_OPERATION_INVALID)

    def _require_working(self, operation: str) -> None:
        if operation in self.failing:
            self.failing.remove(operation)
            raise HypervisorError(f"{operation} failed", code=libvirt.VIR_ERR_RPC)


def sources(xml: str) -> dict[str, str]:
    """Give the images in a definition by target."""
    disks = ElementTree.fromstring(xml).iterfind("devices/disk")
    return {
        one.findall("target")[0].get("dev", ""): one.findall("source")[0].get("name", "") for one in disks
    }


def new_world() -> World:
    """Give a cluster with restored images and empty overlays; the guest has not been started."""
    disks = tuple(RecordedDisk(one, name, one, filled=f"id of {name}") for one, name in TARGETS.items())
    record = Record(
        "web", "web", UUID, PointId(RUN, UUID), "2024-02-03", "token", "node1", disks, Stage.RUNNING
    )
    images: dict[str, list[int]] = {name: [SAVED] for name in TARGETS.values()}
    images.update({f"{name}.virt-rbd-backup.overlay": [] for name in TARGETS.values()})
    world = World(record, images)
    world.domain = PaperDomain(world)
    return world


def given(world: World) -> Given:
    """Give what a process that begins now works with."""
    domain, recorder, stop = world.domain, Recorder(), StopRequest()
    assert domain

    def xml_now(record: Record) -> str:
        return on_overlays(XML, {disk.attached: disk.target for disk in record.on_overlays}, "/socket")

    values: Any = SimpleNamespace(
        domain=SimpleNamespace(
            uuid=domain.uuid,
            name=domain.name,
            hypervisor=domain,
            define_for_now=domain.define_for_now,
            set_autostart=domain.set_autostart,
        ),
        moving=domain,
        xml=XML,
        xml_now=xml_now,
        report=lambda level, text: recorder.message(level, "web", text),
        reporter=recorder,
        stop=stop,
        saved=SimpleNamespace(name="web"),
        cluster=world,
        must_end=threading.Event(),
    )
    return cast(Given, values)


def elsewhere(world: World) -> None:
    """Let the node be lost: another one has neither its domain nor its definition."""
    world.domain = PaperDomain(world)
