"""A restore point, opened to show it as files: its disks, its definition, its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable

from ..errors import ConfigError
from ..protocols import OpenedPoint, Output
from ..restore_point import manifest
from ..restore_point.find import find_point, with_current_ids
from ..stored import SavedDomain, SavedImage, StoredPoint
from ..system.spool import Spool
from .block_image import BlockImage
from .blocks import Blocks, cached_blocks
from .data_map import DataMap
from .shown_file import File, Text


@dataclass(frozen=True)
class ShownPoint:
    """An open restore point with its files. `check` and `damage`: see OpenedPoint."""

    saved: SavedDomain
    disks: Mapping[str, File]
    texts: Sequence[File]
    check: Callable[[], None]
    damage: Callable[[], str]

    @property
    def time_ns(self) -> int:
        """Its time in nanoseconds since 1970."""
        return int(self.saved.taken.timestamp()) * 10**9


@contextmanager
def shown_point(
    output: Output, domain: str, at: str, limit: float, check_stop: Callable[[], None]
) -> Iterator[ShownPoint]:
    """Find a restore point and open it; a read may take `limit` seconds. Raises BackupError."""
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    point = find_point(output.restore_points(check_stop), domain, at)
    with opened_point(output, point, limit, check_stop) as shown:
        yield shown


@contextmanager
def opened_point(
    output: Output, point: StoredPoint, limit: float, check_stop: Callable[[], None]
) -> Iterator[ShownPoint]:
    """Open this restore point; a read may take `limit` seconds. Raises BackupError."""
    with output.opened(point, check_stop) as opened, cached_blocks() as blocks:
        packed = opened.manifest()
        saved = with_current_ids(manifest.unpack(packed), point)
        disk = partial(_disk, saved, opened, blocks, limit, check_stop)
        yield ShownPoint(
            saved,
            {one.target: disk(one) for one in saved.images},
            [File(name, Text(text), len(text)) for name, text in manifest.texts(packed).items()],
            opened.check,
            opened.damage,
        )


def _disk(
    saved: SavedDomain,
    opened: OpenedPoint,
    blocks: Blocks,
    limit: float,
    check_stop: Callable[[], None],
    image: SavedImage,
) -> File:
    name = f"{image.target.replace('/', '_')}.raw"
    if not image.size:  # it is in the manifest only
        return File(name, Text(b""), 0)
    data = DataMap.from_manifest(saved.checksums.get(image.target, Spool()), image.data_bytes)
    content = BlockImage(image, opened.image(image), data, blocks, limit, check_stop)
    return File(name, content, min(image.data_bytes, image.size))
