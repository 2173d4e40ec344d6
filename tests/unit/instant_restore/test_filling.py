"""backup/instant_restore/filling.py: a complete image has its name, and what it replaces is there still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from backup.ceph.image_writer import ImageWriter
from backup.ceph.new_image import NewImage
from backup.instant_restore.filling import FilledImage
from backup.instant_restore.journal import Journal


class Recorded:
    """Records what happens to it. Satisfies what is used of NewImage and Journal."""

    id = "12ab"

    def __init__(self) -> None:
        self.happened: list[str] = []

    @contextmanager
    def opened(self, _: object) -> Iterator[ImageWriter]:
        yield cast(ImageWriter, None)
        self.happened.append("written")

    def set_filled(self, target: str, number: str) -> None:
        self.happened.append(f"{target} recorded as {number}")

    def __getattr__(self, name: str) -> Any:
        return lambda: self.happened.append(name)


def test_a_complete_image_stays_whatever_becomes_of_others_and_so_does_what_it_replaced() -> None:
    found = Recorded()
    image = FilledImage(cast(NewImage, found), "vda", cast(Journal, found), lambda: None)
    with image.opened(lambda: None):
        pass
    assert found.happened == ["written", "vda recorded as 12ab", "commit", "keep"]
