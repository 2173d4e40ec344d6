"""What a restore has brought back, beside the domain that was saved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tests.chaos.guests import BY_NAME
from tests.chaos.plan import Order
from tests.chaos.violation import Violation
from tests.chaos.world import World
from tests.lab import LabError

COMES_BACK = "a restore brings back what was saved"


def violations(world: World, order: Order) -> Iterator[Violation]:
    """Hold the images of a restore that has ended well against what is known, and remove them."""
    _, domain, suffix = order.words
    for image in BY_NAME[domain].images.values():
        restored = f"{image}{suffix.partition('=')[2]}"
        try:
            content = world.lab.rbd("export", "--no-progress", restored, "-")
        except LabError as error:
            yield Violation(COMES_BACK, f"{restored}: {error.message}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        if world.content.get(image, digest) != digest:
            yield Violation(COMES_BACK, f"{restored} differs from {image}")
        world.lab.rbd("rm", "--no-progress", restored)
