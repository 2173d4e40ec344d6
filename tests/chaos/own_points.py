"""What the outputs hold whose restore points are plain images and files, as rbd and qemu-img alone say."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Callable, Optional

from tests.chaos.repository import Point
from tests.lab import Lab, LabError
from tests.lab.programs import run_program

KEEP_LAST = 4  # restore points of a domain; there are more than that after some rounds
PREFIX = "virt-rbd-backup."
WRITING = "virt-rbd-backup.writing"
RUN = re.compile(r"(?P<run>[0-9]{8}T[0-9]{6}Z-[a-z]{4})(?:\.(?P<attempt>[0-9]+))?")
PARTIAL = re.compile(r"\.(?P<point>.+)\.partial")
SOUND = (0, 3)  # exit codes of `qemu-img check`; with 3 clusters are allocated and not used, as after a kill
DAMAGED = "damaged: "
KNOWN_FILES = re.compile(r"definition\.tar|point\.json|[a-z]+\.qcow2")


@dataclass(frozen=True)
class SavedDirectory:
    """The directory of OUTPUT = "directory", and a directory to work in."""

    place: Path
    directory: Path
    keeps: int = KEEP_LAST

    def points(self) -> Sequence[Point]:
        """List all restore points, complete or not; not what stays of one because others build on it."""
        return [point for path in sorted(self.place.glob("*-*/*")) if (point := self._point(path))]

    @contextmanager
    def image(self, point: Point, target: str) -> Iterator[Path]:
        """Read an image back into a file, as the manual does by hand."""
        identifier, _, size, _ = point.images[target]
        with _scratch(self.directory) as path:
            run_program("qemu-img", "convert", "-O", "raw", self.place / identifier, path)
            with path.open("r+b") as file:
                file.truncate(size)  # the file has whole clusters
            yield path

    def require_manifest(self, point: Point) -> None:
        _require_manifest(point)

    def check(self) -> str:
        """Give what `qemu-img check` finds wrong, "" for nothing."""
        for path in sorted(self.place.glob("*-*/*/*.qcow2")):
            try:
                run_program("qemu-img", "check", "-q", path, accepted=SOUND)
            except LabError as error:
                return str(error)
        return ""

    def left(self) -> Iterator[str]:
        for path in sorted(self.place.glob("*-*/*")):
            if RUN.fullmatch(path.name):
                yield from (str(one) for one in path.iterdir() if not KNOWN_FILES.fullmatch(one.name))
            elif path.name != ".lock":
                yield str(path)

    def _point(self, path: Path) -> Optional[Point]:
        partial = PARTIAL.fullmatch(path.name)
        name, uuid = partial["point"] if partial else path.name, path.parent.name
        manifest = path / "definition.tar"
        if not partial and manifest.exists():
            return _complete(
                uuid, name, manifest.read_bytes(), lambda target: f"{uuid}/{name}/{target}.qcow2"
            )
        there = partial or (path / "point.json").exists()
        return _point(uuid, name) if there and RUN.fullmatch(name) else None


@dataclass(frozen=True)
class SavedPool:
    """The namespace of OUTPUT = "rbd", and a directory to work in."""

    place: Path
    directory: Path
    lab: Lab
    keeps: int = KEEP_LAST
    _manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def points(self) -> Sequence[Point]:
        """List all restore points, complete or not."""
        found = []
        for uuid, images in self._images().items():
            complete = [one for one in images.get("definition", ()) if RUN.fullmatch(one)]
            for name in complete:
                found.append(_complete(uuid, name, self._manifest(uuid, name), self._identifier(uuid, name)))
            others = {one for snapshots in images.values() for one in snapshots}.difference(complete)
            found += [_point(uuid, name) for name in sorted(others) if RUN.fullmatch(name)]
        return found

    @contextmanager
    def image(self, point: Point, target: str) -> Iterator[Path]:
        """Read an image back into a file, as the manual does by hand."""
        identifier, *_ = point.images[target]
        with _scratch(self.directory) as path:
            self.lab.rbd("export", "--no-progress", f"{self.place}/{identifier}", str(path))
            yield path

    def require_manifest(self, point: Point) -> None:
        _require_manifest(point)

    def check(self) -> str:
        """What Ceph holds needs no check; that all snapshots are there is seen when images are read back."""
        return ""

    def left(self) -> Iterator[str]:
        for name in self._names():
            if WRITING.encode() in self.lab.rbd("image-meta", "ls", f"{self.place}/{name}"):
                yield f"{self.place}/{name} is noted as being written"

    def _identifier(self, uuid: str, name: str) -> Callable[[str], str]:
        return lambda target: f"{PREFIX}{uuid}.{target}@{name}"

    def _names(self) -> Sequence[str]:
        return [str(one) for one in json.loads(self.lab.rbd("ls", "--format", "json", str(self.place)))]

    def _images(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Give the snapshots of all images, by domain and target."""
        found: dict[str, dict[str, Sequence[str]]] = {}
        for name in self._names():
            uuid, _, target = name[len(PREFIX) :].partition(".")
            listed = json.loads(self.lab.rbd("snap", "ls", "--format", "json", f"{self.place}/{name}"))
            found.setdefault(uuid, {})[target] = [str(one["name"]) for one in listed]
        return found

    def _manifest(self, uuid: str, name: str) -> bytes:
        if (uuid, name) not in self._manifests:
            image = f"{self.place}/{PREFIX}{uuid}.definition@{name}"
            self._manifests[uuid, name] = self.lab.rbd("export", "--no-progress", image, "-")
        return self._manifests[uuid, name]


def _complete(uuid: str, name: str, packed: bytes, identifier: Callable[[str], str]) -> Point:
    """Give a restore point by its manifest; `identifier` gives the id of the disk with a target."""
    point = _point(uuid, name)
    point.manifest = f"{uuid}/{name}"
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            content = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
    except (tarfile.TarError, KeyError, ValueError) as error:
        point.consistency = f"{DAMAGED}{error}"
        return point
    point.domain, point.taken = content["domain"]["name"], datetime.fromisoformat(content["taken"])
    point.consistency, point.node = content["consistency"], content["host"]
    for image in content["images"]:
        target = image["target"]
        point.images[target] = (identifier(target), image["image"], image["size"], False)
    return point


def _require_manifest(point: Point) -> None:
    """It was read for the list. Raises LabError if it could not."""
    if point.consistency.startswith(DAMAGED):
        raise LabError(point.consistency)


def _point(uuid: str, name: str) -> Point:
    found = RUN.fullmatch(name)
    assert found
    return Point(uuid, found["run"], uuid, attempt=int(found["attempt"] or 1))


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    scratch = directory / "read-back"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch / "image"
    finally:
        shutil.rmtree(scratch)
