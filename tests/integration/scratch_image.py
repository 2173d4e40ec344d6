"""An image that changes at random, and its snapshots held against `rbd export`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import rbd

from backup.ceph.cluster import Cluster
from backup.ceph.new_image import NewImage
from backup.model import Image
from backup.protocols import SnapshotReader
from backup.stored import Layout, SavedImage
from backup.system.pipe_reader import PipeReader
from backup.system.pipe_writer import PipeWriter
from backup.terminal.console import Console
from backup.transfer import backup_stream
from backup.transfer.restore_stream import write_image
from tests.integration.random_changes import change
from tests.lab import Lab

MIB = 1 << 20
CHANGES = 12  # in a round
PAGE = 4096  # bytes; what a disk allocates at the least
COMPARED = "compared"
_NOBODY = Console(StringIO())


class ScratchImage:
    """An image in the pool vms, opened by name for each round of changes."""

    def __init__(self, lab: Lab, pool: Any, cluster: Cluster, name: str) -> None:
        self.name = name
        self.spec = f"vms/{name}"
        self._lab = lab
        self._pool = pool
        self._cluster = cluster
        self._random = random.Random(name)

    def create(self, size: int, options: Sequence[str] = ()) -> None:
        self._lab.create_image(self.spec, size, *options)

    def change(self, largest: int = 0) -> None:
        """Change it a little; `largest`: how many bytes it may have then, 0 for as many as before."""
        with rbd.Image(self._pool, self.name) as image:
            change(image, self._random, CHANGES, largest)

    def compare(self) -> None:
        """Take a snapshot as the program does, stream it, and hold it against `rbd export`."""
        image = self._cluster.identified(Image("vms", self.name))
        self._cluster.create_snapshot(image, COMPARED)
        try:
            with self._cluster.reader(image, COMPARED) as reader:
                streamed, layout = received(reader), reader.layout
            exported = self._lab.rbd("export", "--no-progress", f"{self.spec}@{COMPARED}", "-")
        finally:
            self._cluster.remove_snapshot(image, COMPARED)
        assert layout == self._layout(self.spec)
        assert len(streamed) == len(exported)
        _require_equal(streamed, exported, f"{self.spec}: what was streamed")
        self._come_back(streamed, layout)

    def _come_back(self, content: bytes, layout: Layout) -> None:
        """Restore an image from these bytes as the program does, and hold it against the first one."""
        back = Image("vms", f"{self.name} that came back")
        saved = SavedImage("vda", self.spec, len(content), 0, 0, 0.0, "", layout)
        target = NewImage(self._cluster, back, saved, False, _NOBODY)
        with source_of(content) as source:
            try:
                with target.opened(lambda: None) as writer:
                    write_image(source, len(content), writer)
                target.commit()
                target.remove_replaced()
            finally:
                target.discard()
        exported = self._lab.rbd("export", "--no-progress", str(back), "-")
        allocated, before = (self._allocated(spec) for spec in (str(back), self.spec))
        came_back = self._layout(str(back))
        self._lab.delete_image(str(back))
        _require_equal(exported, content, f"{self.spec}: what came back")
        assert came_back == layout
        if not self._is_clone():  # which comes back without a parent, as bytes of its own
            assert allocated <= before * 1.05, f"thin stays thin: {allocated} bytes of {before}"

    def _is_clone(self) -> bool:
        return "parent" in json.loads(self._lab.rbd("info", "--format", "json", self.spec))

    def _allocated(self, spec: str) -> int:
        """Give the bytes of all pages in which its data lie: per object, from its beginning to the last."""
        extents = json.loads(self._lab.rbd("diff", "--format", "json", spec))
        pages: set[int] = set()
        for one in extents:
            if one["exists"] == "true":
                pages.update(range(one["offset"] // PAGE, -(-(one["offset"] + one["length"]) // PAGE)))
        return len(pages) * PAGE

    def _layout(self, spec: str) -> Layout:
        """Give what rbd says of it; that it is somebody's parent is no matter of layout."""
        told = json.loads(self._lab.rbd("info", "--format", "json", spec))
        return Layout(
            told["object_size"],
            tuple(name for name in told["features"] if name != "operations"),
            told.get("stripe_unit", told["object_size"]),
            told.get("stripe_count", 1),
            told.get("data_pool", ""),
        )


def _require_equal(ours: bytes, theirs: bytes, what: str) -> None:
    assert len(ours) == len(theirs), what
    if ours != theirs:
        first = next(place for place, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
        raise AssertionError(f"{what} differs from byte {first} on")


@contextmanager
def source_of(content: bytes) -> Iterator[PipeReader]:
    """Give the bytes through a pipe, as restic does."""
    out, into = os.pipe()
    with os.fdopen(out, "rb"), ThreadPoolExecutor(1) as thread:
        written = thread.submit(_write, into, content)
        yield PipeReader(out, lambda: None)
        written.result()


def _write(into: int, content: bytes) -> None:
    with os.fdopen(into, "wb") as file:
        file.write(content)


def received(reader: SnapshotReader) -> bytes:
    """Stream a snapshot through a pipe, as into restic, and give what comes out."""
    out, into = os.pipe()
    with ThreadPoolExecutor(1) as thread:
        content = thread.submit(lambda: Path(f"/dev/fd/{out}").read_bytes())
        try:
            with PipeWriter(into, lambda: None) as sink:
                backup_stream.copy(reader, sink)
        finally:
            os.close(into)
        try:
            return content.result()
        finally:
            os.close(out)
