"""backup/restore/images.py: what a restore writes is compared with what was saved, before it is committed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

import main
import outputs
from backup.exit_codes import FAILED, SUCCESS
from backup.model import Level
from backup.protocols import Source
from backup.restore.images import ImageRestore
from backup.restore.new_file import NewFile
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import Packed, SavedImage, StoredPoint
from backup.system.stop_request import StopRequest
from backup.terminal import command_line
from backup.terminal.console import console_on_standard_error
from backup.transfer.compare import Mismatch
from tests.integration.scratch_image import source_of

from ..jobs_on_paper import NoOutput
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, UUID, settings
from ..stored_points import CONTENT, HeldPoints

DAMAGED = b"S" + CONTENT[1:]
TEXT = "vda (vms/web) differs from what was saved: 4096 bytes at offset 0 (object 0)"


def held(content: bytes = DAMAGED) -> HeldPoints:
    return HeldPoints({UUID: "web"}, {"web": content})


def restorer(path: Path, recorder: Recorder, output: HeldPoints, damaged: bool = False) -> Restorer:
    order = RestoreOrder("web", to_file=str(path), force=True, damaged=damaged)
    return Restorer(order, settings(), output, recorder, StopRequest())


@pytest.mark.parametrize(
    ("at", "text"),
    [(0, TEXT), (9000, TEXT), (MIB - 1, TEXT)],  # in the data, in the hole after it, in the last byte
)
def test_a_byte_that_differs_ends_the_restore_before_anything_is_replaced(
    tmp_path: Path, recorder: Recorder, at: int, text: str
) -> None:
    path, content = tmp_path / "vda.raw", bytearray(CONTENT)
    content[at] ^= 1
    path.write_text("precious")
    with raises(f"web: {text}", Mismatch) as caught:
        restorer(path, recorder, held(bytes(content))).restore()
    assert all(word in caught.value.hint for word in ("restore-points", "verify", "--at", "--damaged"))
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("vda.raw", "precious")]


def test_damage_is_restored_with_a_warning_where_that_is_ordered(tmp_path: Path, recorder: Recorder) -> None:
    path = tmp_path / "vda.raw"
    (restored,) = restorer(path, recorder, held(), damaged=True).restore()
    assert restored.damaged
    assert path.read_bytes() == DAMAGED
    assert recorder.told(Level.WARNING) == [f"{TEXT}; it is restored all the same (--damaged)"]


def test_what_was_saved_is_restored_without_a_warning(tmp_path: Path, recorder: Recorder) -> None:
    for damaged in (False, True):
        (restored,) = restorer(tmp_path / "vda.raw", recorder, held(CONTENT), damaged).restore()
        assert not restored.damaged
    assert recorder.told(Level.WARNING) == []


class Older(HeldPoints):
    """Holds a restore point of a version that saved no checksums."""

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest, "ALGORITHM", "none")
            return super().manifest(point, check_stop)


def test_a_restore_point_without_checksums_is_restored_as_before(tmp_path: Path, recorder: Recorder) -> None:
    path = tmp_path / "vda.raw"
    (restored,) = restorer(path, recorder, Older({UUID: "web"}, {"web": DAMAGED})).restore()
    assert not restored.damaged
    assert path.read_bytes() == DAMAGED
    assert recorder.told(Level.WARNING) == []


class Zeros(NoOutput):
    """An output whose images have only zeros."""

    @contextmanager
    def image(self, image: SavedImage, _check_stop: Callable[[], None]) -> Iterator[Source]:
        with source_of(bytes(image.size)) as source:
            yield source


def test_of_several_disks_none_is_restored_if_one_is_damaged(tmp_path: Path, recorder: Recorder) -> None:
    of_data, holes = Checksums(), Checksums()
    of_data.add(0, b"lost")
    disks = [SavedImage(one, f"vms/{one}", MIB, 4, 0, 0.0, one, LAYOUT) for one in ("vda", "vdb")]
    wanted = [(one, NewFile(str(tmp_path / one.target), one, False)) for one in disks]
    restore = ImageRestore(
        *("web", Zeros(), 1, recorder, StopRequest()),
        checksums={"vda": holes.packed, "vdb": of_data.packed},
    )
    with raises("web: vdb (vms/vdb) differs from what was saved: 4 bytes at offset 0 (object 0)", Mismatch):
        restore.restore(wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "code"), [(CONTENT, SUCCESS), (DAMAGED, FAILED)])
def test_a_restore_of_damage_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, code: int
) -> None:
    monkeypatch.setattr(outputs, "readable", lambda _: held(content))
    words = ["restore", "web", "--to-file", str(tmp_path / "vda.raw"), "--damaged"]
    console = console_on_standard_error(Level.INFO)
    assert main.restore(command_line.parsed(words), settings(), console) == code
