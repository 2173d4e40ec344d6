"""The verification of restore points: read back from the output, and held against their checksums."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from . import manifest
from .checksums import Checksums
from .errors import BackupError, ConfigError
from .model import Level, SavedDomain, SavedImage
from .proof import note_proof, note_verified
from .protocols import Output, Reporter
from .restore_points import as_held, chosen, of_domains
from .settings import Settings
from .stop import StopRequest
from .throttle import Throttle
from .units import size_text
from .verify import against_checksums, pieces_of

STOP_POLL = 0.1  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Verification:
    """Verifies one restore point of each domain, images up to WORKERS at a time.

    `sample` is the part of all bytes, 0 to 1, that is read at the least: whole images, drawn by chance.
    """

    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    sample: float = 1.0

    def verify(self, names: Sequence[str], at: str) -> int:
        """Verify, tell how it went, and give how many domains failed. Raises ConfigError, BackupError."""
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        points = self.output.restore_points()
        of = {point.id.uuid: point.domain for point in of_domains(points, names)}
        failures: dict[str, str] = {}
        saved = {}
        for uuid, name in of.items():
            try:
                point = chosen(points, uuid, at)
                saved[uuid] = as_held(manifest.unpack(self.output.manifest(point)), point)
                _require_checksums(saved[uuid])
            except BackupError as error:
                self._failed(failures, uuid, name, error)
        for uuid, image, future in self._read(saved, failures):
            try:
                future.result()
            except BackupError as error:
                self._failed(failures, uuid, saved[uuid].name, error)
            else:
                text = f"{image.target} ({image.image}) verified: {size_text(image.size)}"
                self.reporter.message(Level.INFO, saved[uuid].name, text)
        for uuid, name in of.items():
            self._note(uuid, name, saved.get(uuid), failures.get(uuid, ""))
        return len(failures)

    def _read(self, saved: dict[str, SavedDomain], failures: dict[str, str]) -> Drawn:
        images = [
            (uuid, image) for uuid, one in saved.items() for image in one.images if uuid not in failures
        ]
        drawn = _drawn(images, self.sample)
        finished: list[tuple[str, SavedImage, Future[None]]] = []
        with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="verify") as threads:
            under_way = {
                threads.submit(self._image, saved[uuid], image): (uuid, image) for uuid, image in drawn
            }
            pending = set(under_way)
            while pending:
                done, pending = wait(pending, STOP_POLL, FIRST_COMPLETED)
                finished += [(*under_way[future], future) for future in done]
        self.stop.check()
        return finished

    def _image(self, saved: SavedDomain, image: SavedImage) -> None:
        self.stop.check()
        if not image.size:  # in the manifest alone
            return
        checksums = Checksums(bytearray(saved.checksums[image.target]))
        throttle = Throttle()

        def progress(done: int) -> None:
            if throttle.due():
                self.reporter.progress(saved.name, image.target, done, image.size)

        with self.output.image(image, self.stop.check) as source:
            against_checksums(pieces_of(source, image.size), image, checksums, progress)

    def _failed(self, failures: dict[str, str], uuid: str, name: str, error: BackupError) -> None:
        failures.setdefault(uuid, error.message)
        self.reporter.message(Level.ERROR, name, str(error))

    def _note(self, uuid: str, name: str, saved: SavedDomain | None, failure: str) -> None:
        """Note it for the report; a sample proves damage, but not that there is none."""
        if self.sample < 1 and not failure:
            return
        try:
            if failure or not saved:
                note_proof(self.settings.state_dir, uuid, name=name, failure=failure)
            else:
                note_verified(self.settings.state_dir, uuid, name, saved.point.run)
        except BackupError as error:
            self.reporter.message(Level.WARNING, name, str(error))


Drawn = Sequence[tuple[str, SavedImage, "Future[None]"]]


def _require_checksums(saved: SavedDomain) -> None:
    if missing := [image.target for image in saved.images if image.target not in saved.checksums]:
        message = f"run {saved.point.run} saved no checksums of {', '.join(missing)}: an older version did it"
        raise BackupError(message, "what is saved from now on can be verified")


def _drawn(images: Sequence[tuple[str, SavedImage]], sample: float) -> Sequence[tuple[str, SavedImage]]:
    """Draw images until they hold the part of all bytes that is wanted; at least one."""
    wanted = sample * sum(image.size for _, image in images)
    drawn: list[tuple[str, SavedImage]] = []
    for one in random.sample(images, len(images)):
        if drawn and sample < 1 and sum(image.size for _, image in drawn) >= wanted:
            break
        drawn.append(one)
    return drawn
