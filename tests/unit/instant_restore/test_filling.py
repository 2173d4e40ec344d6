"""backup/instant_restore/filling.py: a complete image has its name, and what it replaces is there still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backup.ceph.image_writer import ImageWriter
from backup.ceph.new_image import NewImage
from backup.instant.record import RecordedDisk
from backup.instant_restore import filling
from backup.instant_restore.filling import FilledImage, fill
from backup.instant_restore.given import Given
from backup.instant_restore.journal import Journal
from backup.model import Level
from backup.restore_point import manifest
from backup.system.stop_request import StopRequest
from backup.transfer.compare import Mismatch

from ..raising import raises
from ..recorder import Recorder
from ..samples import UUID, settings
from ..stored_points import CONTENT, HeldPoints


class Recorded:
    """Records what happens to it. Satisfies what is used of NewImage and Journal."""

    id = "12ab"

    def __init__(self) -> None:
        self.happened: list[str] = []

    @contextmanager
    def opened(self, _: object) -> Iterator[ImageWriter]:
        yield cast(ImageWriter, SimpleNamespace(start_write=lambda *_: lambda: None))
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


def given_damage(damaged: bool, recorder: Recorder) -> Given:
    """Return what an instant restore is about whose repository gives other bytes than were saved."""
    output = HeldPoints({UUID: "web"}, {"web": b"S" + CONTENT[1:]})
    saved = manifest.unpack(output.manifest(output.restore_points()[0]))
    given = SimpleNamespace(
        saved=saved,
        output=output,
        settings=settings(),
        reporter=recorder,
        stop=StopRequest(),
        damaged=damaged,
    )
    return cast(Given, given)


def journal_of(found: Recorded) -> Journal:
    found.record = SimpleNamespace(disks=[RecordedDisk("vda", "vms/web", "vda")])  # type: ignore[attr-defined]
    return cast(Journal, found)


def test_a_damaged_image_gets_no_name_and_the_hint_names_the_ways_on(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    found = Recorded()
    monkeypatch.setattr(filling, "new_image", lambda *_: found)
    text = "web: vda (vms/web) differs from what was saved: 4096 bytes at offset 0 (object 0)"
    with raises(text, Mismatch) as caught:
        fill(given_damage(False, recorder), journal_of(found))
    assert all(option in caught.value.hint for option in ("--damaged", "--abort", "--at"))
    assert found.happened == ["require_free", "discard"]


def test_a_damaged_image_is_complete_where_that_was_ordered(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    found = Recorded()
    monkeypatch.setattr(filling, "new_image", lambda *_: found)
    (restored,) = fill(given_damage(True, recorder), journal_of(found))
    assert restored.damaged
    assert "commit" in found.happened
    (warning,) = recorder.told(Level.WARNING)
    assert warning.startswith("vda (vms/web) differs from what was saved: 4096 bytes at offset 0 (object 0);")
