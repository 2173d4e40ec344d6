"""What a repository holds, as restic alone says: restore points, and the bytes of their images."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from tests.lab import LabError
from tests.lab.programs import ENVIRONMENT

PIECE = 1 << 20
LOCK = re.compile("[0-9a-f]{64}")  # the name of a lock's file; one that is being written has a longer one
LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


@dataclass
class Point:
    """The restic snapshots of one run's attempt at a domain; complete with a manifest.

    `taken` is the time of its snapshots, of outputs that prune.
    """

    domain: str
    run: str
    uuid: str
    manifest: str = ""
    consistency: str = ""
    node: str = ""
    attempt: int = 1
    taken: datetime = LONG_AGO
    images: dict[str, tuple[str, str, int, bool]] = field(default_factory=dict)
    """By target: restic's snapshot, the image, its size, and whether it is in segments."""

    def __str__(self) -> str:
        return f"{self.domain} of run {self.run} ({self.manifest[:8] or 'no manifest'})"


class Holder(Protocol):
    """What an output saves to, seen without the program."""

    @property
    def place(self) -> Path: ...

    @property
    def keeps(self) -> int:
        """How many of a domain's restore points are never removed; 0: all."""

    def points(self) -> Sequence[Point]:
        """List all restore points, complete or not."""

    def image(self, point: Point, target: str) -> AbstractContextManager[Path]:
        """Read an image back into a file, as the manual does by hand. Raises LabError."""

    def require_manifest(self, point: Point) -> None:
        """Raises LabError if it can't be read."""

    def check(self) -> str:
        """Give what is wrong with what it holds, "" for nothing."""

    def left(self) -> Iterator[str]:
        """Find what is to be gone by now, beside incomplete restore points."""


@dataclass(frozen=True)
class Repository:
    """A repository of restic, and a directory to work in. Satisfies Holder."""

    place: Path
    directory: Path
    keeps: int = 0  # of a domain's restore points; 0: all

    def points(self) -> Sequence[Point]:
        """List all restore points, complete or not."""
        found: dict[tuple[str, str, int], Point] = {}
        for one in self.snapshots():
            values = _values(one)
            if "virt-rbd-backup" in (one.get("tags") or ()):
                key = (values.get("run", ""), values.get("uuid", ""), int(values.get("attempt", "1")))
                _add(found.setdefault(key, Point(one["hostname"], *key[:2], attempt=key[2])), one, values)
        return list(found.values())

    def snapshots(self) -> Sequence[Mapping[str, Any]]:
        return json.loads(self.restic("snapshots", "--json", "--no-lock")) or ()

    @contextmanager
    def image(self, point: Point, target: str) -> Iterator[Path]:
        """Read an image back into a file, as the manual does by hand."""
        snapshot, _, _, segmented = point.images[target]
        scratch = self.directory / "read-back"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        path = scratch / "image"
        try:
            if segmented:
                self.restic("restore", snapshot, "--target", str(scratch / "files"), "--no-lock")
                _join(sorted((scratch / "files" / target).glob("*/*")), path)
            else:
                self._dump(snapshot, f"{target}.img", path)
            yield path
        finally:
            shutil.rmtree(scratch)

    def require_manifest(self, point: Point) -> None:
        """Read the manifest, which is in a snapshot of its own or in that of the segments."""
        with_segments = point.manifest in {snapshot for snapshot, *_ in point.images.values()}
        name = "/~definition.tar" if with_segments else "definition.tar"
        if not self.restic("dump", "--no-lock", point.manifest, name):
            raise LabError(f"{name} is empty")

    def _dump(self, snapshot: str, name: str, path: Path) -> None:
        with path.open("wb") as file:
            self._run(["restic", "dump", "--no-lock", snapshot, name], stdout=file)

    def check(self) -> str:
        """Give what `restic check` finds wrong, "" for nothing."""
        try:
            self.restic("check", "--no-lock")
        except LabError as error:
            return str(error)
        return ""

    def left(self) -> Iterator[str]:
        """Find what is to be gone by now, beside incomplete restore points."""
        yield from (f"{self.place.name}: restic's lock {name[:8]}" for name in self.locks())

    def locks(self) -> Sequence[str]:
        """Give the names of the locks; not of files that a restic was writing when it was cut off."""
        return sorted(path.name for path in (self.place / "locks").iterdir() if LOCK.fullmatch(path.name))

    def restic(self, *words: str) -> bytes:
        return self._run(["restic", *words], stdout=subprocess.PIPE)

    def _run(self, command: Sequence[str], stdout: Any) -> bytes:
        environment = {
            **ENVIRONMENT,
            "RESTIC_REPOSITORY": str(self.place),
            "RESTIC_PASSWORD_FILE": str(self.directory / "password"),
            "RESTIC_CACHE_DIR": str(self.directory / "checker-cache"),
        }
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=120)
        if done.returncode:
            raise LabError(f"{' '.join(command[:2])}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return done.stdout or b""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _join(segments: Sequence[Path], path: Path) -> None:
    with path.open("wb") as whole:
        for segment in segments:
            with segment.open("rb") as file:
                shutil.copyfileobj(file, whole, PIECE)


def _add(point: Point, snapshot: Mapping[str, Any], values: Mapping[str, str]) -> None:
    if "definition" in snapshot["tags"]:
        point.manifest, point.consistency = snapshot["id"], values.get("consistency", "")
        point.node = values.get("node", "")
    if "disk" in values:
        point.images[values["disk"]] = (snapshot["id"], values.get("image", ""), int(values["size"]), False)
    for name, value in values.items():
        if found := re.fullmatch(r"segments\.(.+)", name):
            size, _, image = value.partition(" ")
            point.images[found[1]] = (snapshot["id"], image, int(size), True)


def _values(snapshot: Mapping[str, Any]) -> Mapping[str, str]:
    pairs = (tag.split("=", 1) for tag in snapshot.get("tags") or () if "=" in tag)
    return {name: unquote(value) for name, value in pairs}
