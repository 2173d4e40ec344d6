"""An image that changes at random, and its snapshots held against `rbd export`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rbd

from backup import stream
from backup.cluster import Cluster
from backup.model import Image, Layout
from backup.pipe_sink import PipeSink
from backup.protocols import SnapshotReader
from tests.lab import Lab

MIB = 1 << 20
CHANGES = 12  # in a round
LENGTHS = (1, 511, 4096, 65536, MIB, 5 * MIB)
COMPARED = "compared"


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

    def change(self, largest: int, resize: bool = True) -> None:
        """Write, overwrite, discard and zero at random places; shrink and grow up to `largest` bytes."""
        kinds = ["write", "write", "write", "discard", "zero"] + ["resize"] * resize
        with rbd.Image(self._pool, self.name) as image:
            for _ in range(CHANGES):
                size = image.size()
                offset = self._random.randrange(size)
                length = min(self._random.choice(LENGTHS), size - offset)
                kind = self._random.choice(kinds)
                if kind == "write":
                    image.write(self._random.randbytes(length), offset)
                elif kind == "discard":
                    image.discard(offset, length)
                elif kind == "zero":
                    image.write_zeroes(offset, length)
                else:
                    image.resize(self._random.randrange(1, largest))

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
        assert layout == self._layout()
        assert len(streamed) == len(exported)
        if streamed != exported:
            first = next(
                place for place, (ours, theirs) in enumerate(zip(streamed, exported)) if ours != theirs
            )
            raise AssertionError(f"{self.spec}: what was streamed differs from byte {first} on")

    def _layout(self) -> Layout:
        """Give what rbd says of it; that it is somebody's parent is no matter of layout."""
        told = json.loads(self._lab.rbd("info", "--format", "json", self.spec))
        return Layout(
            told["object_size"],
            tuple(name for name in told["features"] if name != "operations"),
            told.get("stripe_unit", told["object_size"]),
            told.get("stripe_count", 1),
            told.get("data_pool", ""),
        )


def received(reader: SnapshotReader) -> bytes:
    """Stream a snapshot through a pipe, as into restic, and give what comes out."""
    out, into = os.pipe()
    with ThreadPoolExecutor(1) as thread:
        content = thread.submit(lambda: Path(f"/dev/fd/{out}").read_bytes())
        try:
            with PipeSink(into, lambda: None) as sink:
                stream.copy(reader, sink)
        finally:
            os.close(into)
        try:
            return content.result()
        finally:
            os.close(out)
