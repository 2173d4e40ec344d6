"""A new image's bytes: writes that are under way while others are waited for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from .model import Image
from .protocols import WrittenBytes

if TYPE_CHECKING:
    from .cluster import Cluster


class ImageWriter:
    """An image that is open for writing. Satisfies protocols.ImageWriter."""

    def __init__(self, cluster: Cluster, image: Image, opened: Any, write_flags: int) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._write_flags = write_flags

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start to write; the returned call waits for it. The bytes must not change until then."""
        action = f"cannot write {len(data)} bytes at {offset} of"
        with self._cluster.errors(action, self._image):
            completion = self._opened.aio_write(data, offset, lambda _: None, self._write_flags)
        return partial(self._wait, completion, action, data)

    def _wait(self, completion: Any, action: str, _data: WrittenBytes) -> None:
        """Wait for a write; its bytes are held until then, as librbd does not copy them."""
        completion.wait_for_complete_and_cb()
        result = completion.get_return_value()
        if result < 0:
            raise self._cluster.failure(action, self._image, -result)
