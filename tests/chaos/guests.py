"""The domains of the lab: guests that record what they write, and images whose content is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image

GUEST_SIZE = 40 * MIB
# On the guest's kernel command line: append each tick to a file, too, and wait half a second after each.
RECORDS = "lab.records lab.pause=0.5"


@dataclass(frozen=True)
class Guest:
    """A domain of ours: its images by their targets, in the order in which it writes to them."""

    name: str
    images: Mapping[str, str]
    running: bool = True
    agent: bool = True


TWIN = Guest("twin", {"vda": "vms/twin-a", "vdb": "ssd/twin-b"})
SOLO = Guest("solo", {"vda": "vms/solo"})
MUTE = Guest("mute", {"vda": "ssd/mute"}, agent=False)
COLD = Guest("cold", {"vda": "vms/cold-a", "vdb": "ssd/cold-b"}, running=False)
ICE = Guest("ice", {"vda": "vms/ice"}, running=False)
GUESTS = (TWIN, SOLO, MUTE, COLD, ICE)
BY_NAME = {guest.name: guest for guest in GUESTS}
RUNNING = [guest.name for guest in GUESTS if guest.running]
WITH_AGENT = [guest.name for guest in GUESTS if guest.running and guest.agent]
SHUT_OFF_CONTENT = {
    "vms/cold-a": (24 * MIB + 1023, {0: 3 * MIB, 17 * MIB: 4096}),
    "ssd/cold-b": (8 * MIB, {MIB: 6 * MIB}),
    "vms/ice": (20 * MIB, {0: 20 * MIB}),
}


def add_guests(lab: Lab, guests: Sequence[Guest] = GUESTS) -> None:
    """Define them, start those that run, and wait until they write."""
    for guest in guests:
        for image in guest.images.values():
            if guest.running:
                lab.create_image(image, GUEST_SIZE)
            else:
                make_image(lab, image, *SHUT_OFF_CONTENT[image])
        disks = [RbdDisk(target, image) for target, image in guest.images.items()]
        lab.define_domain(guest.name, disks, agent=guest.agent)
        _keep_records(lab, guest.name)
    running = [guest for guest in guests if guest.running]
    for guest in running:
        lab.start_domain(guest.name, wait_for_agent=False)
    for guest in running:
        lab.wait_for_ticks(guest.name)


def _keep_records(lab: Lab, name: str) -> None:
    xml = lab.virsh("dumpxml", "--inactive", name)
    lab.virsh("define", "/dev/stdin", stdin=xml.replace("</cmdline>", f" {RECORDS}</cmdline>").encode())


def known_content(lab: Lab, guests: Sequence[Guest] = GUESTS) -> Mapping[str, str]:
    """Give the SHA-256 of each image of a domain that is shut off."""
    images = [image for guest in guests if not guest.running for image in guest.images.values()]
    exported = {image: lab.rbd("export", "--no-progress", image, "-") for image in images}
    return {image: hashlib.sha256(content).hexdigest() for image, content in exported.items()}
