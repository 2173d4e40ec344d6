"""The verification of restore points: read back from the output, and held against their checksums."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Callable, Optional

from . import PROGRAM, manifest
from .checksums import Checksums
from .cluster import Cluster
from .cluster_errors import ClusterError
from .errors import BackupError, ConfigError
from .kept import snapshot_of
from .model import HeldPoint, Level, Phase, SavedDomain, SavedImage
from .proof import Proofs
from .protocols import Output, RunReporter
from .restore_order import restore_cluster
from .restore_points import as_held, chosen, of_domains
from .settings import Settings
from .stop import StopRequest
from .throttle import Throttle
from .units import size_text
from .verify import Mismatch, against_checksums, against_snapshot, pieces_of, require_checksums

STOP_POLL = 0.1  # seconds between two looks at whether to stop


Read = tuple[str, SavedImage, "Future[None]"]


@dataclass(frozen=True)
class Verified:
    """How many domains failed, and how many images, and bytes in them, are as they were saved."""

    failed: int
    images: int
    size: int


@dataclass(frozen=True)
class Verification:
    """Verifies one restore point of each domain, images up to WORKERS at a time.

    `sample` is the part of all bytes, 0 to 1, that is read at the least: whole images, drawn by chance.
    """

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    sample: float = 1.0

    def verify(self, names: Sequence[str], at: str) -> Verified:
        """Verify, and tell how it went. Raises ConfigError, BackupError."""
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        points = self.output.restore_points(self.stop.check)
        of = {point.id.uuid: point.domain for point in of_domains(points, names)}
        if not of:
            hint = f"is RESTIC_REPOSITORY the one that backups go to? see {PROGRAM} restore-points"
            raise BackupError("there is no restore point to verify", hint)
        failed: set[str] = set()
        images = size = 0
        saved = self._saved(points, of, at, failed)
        for uuid, image, future in self._compared(saved, failed):
            try:
                future.result()
            except BackupError as error:
                if isinstance(error, Mismatch) or not self.stop.requested:  # or it is the stop's doing
                    self._failed(failed, uuid, saved[uuid].name, error)
            else:
                images, size = images + 1, size + image.size
                text = f"{image.target} ({image.image}) verified: {size_text(image.size)}"
                self.reporter.message(Level.INFO, saved[uuid].name, text)
        if self.sample == 1:  # a part of it proves damage, but not that there is none
            for uuid in saved.keys() - failed:
                self._proofs.note_verified(uuid, saved[uuid].name)
        return Verified(len(failed), images, size)

    def _saved(
        self, points: Sequence[HeldPoint], of: Mapping[str, str], at: str, failed: set[str]
    ) -> Mapping[str, SavedDomain]:
        """Read the manifests of what can be verified."""
        saved = {}
        for uuid, name in of.items():
            try:
                point = chosen(points, uuid, at)
                one = as_held(manifest.unpack(self.output.manifest(point, self.stop.check)), point)
                require_checksums(one)
                saved[uuid] = one
            except BackupError as error:
                self.stop.check()
                self._failed(failed, uuid, name, error)
        return saved

    def _compared(self, saved: Mapping[str, SavedDomain], failed: Container[str]) -> Iterator[Read]:
        """Read images back, and yield each as soon as that has ended. Raises the reason to stop.

        `failed` then has those whose images are not as they were saved.
        """
        images = [(uuid, image) for uuid, one in saved.items() for image in one.images]
        drawn = _drawn(images, self.sample)
        left = Counter(uuid for uuid, _ in drawn)
        for uuid in left:
            size = sum(image.size for of, image in drawn if of == uuid)
            self.reporter.planned(uuid, saved[uuid].name, size)
        with (
            self._cluster([image for _, image in drawn]) as cluster,
            ThreadPoolExecutor(self.settings.workers, thread_name_prefix="verify") as threads,
        ):
            under_way = {
                threads.submit(self._image, saved[uuid], image, cluster): (uuid, image)
                for uuid, image in drawn
            }
            pending = set(under_way)
            while pending:
                done, pending = wait(pending, STOP_POLL, FIRST_COMPLETED)
                for future in done:
                    uuid, image = under_way[future]
                    yield uuid, image, future
                    left[uuid] -= 1
                    if not left[uuid]:
                        self.reporter.ended(uuid, failed=uuid in failed)
        self.stop.check()

    @contextmanager
    def _cluster(self, images: Sequence[SavedImage]) -> Iterator[Optional[Cluster]]:
        """Connect if images may have a snapshot still, that they were saved from; it may be out of reach."""
        with ExitStack() as stack:
            cluster = None
            if any(image.segment_size for image in images):
                try:
                    cluster = stack.enter_context(restore_cluster(self.settings, self.stop, self.reporter))
                except ClusterError as error:
                    text = f"kept snapshots can't be compared, but checksums: {error.message}"
                    self.reporter.message(Level.INFO, "", text)
            yield cluster

    def _image(self, saved: SavedDomain, image: SavedImage, cluster: Optional[Cluster]) -> None:
        self.stop.check()
        if not image.size:  # in the manifest alone
            return
        checksums = Checksums(bytearray(saved.checksums[image.target]))
        throttle = Throttle()
        self.reporter.phase(saved.name, Phase.VERIFY)

        def progress(done: int) -> None:
            if throttle.due(done, image.size):
                self.reporter.progress(saved.name, image.target, done, image.size)

        if self._is_as_its_snapshot(saved.name, image, cluster, progress):
            return
        with self.output.image(image, self.stop.check) as source:
            against_checksums(pieces_of(source, image.size), image, checksums, progress)

    def _is_as_its_snapshot(
        self, domain: str, image: SavedImage, cluster: Optional[Cluster], progress: Callable[[int], None]
    ) -> bool:
        """Compare with the snapshot, which shows too what a backup of changes alone has missed.

        False where there is none, or none any more: the next backup may remove it meanwhile, and what is read
        of it then is zeros. Raises Mismatch.
        """
        try:
            with snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    with self.output.image(image, self.stop.check) as source:
                        against_snapshot(pieces_of(source, image.size), image, snapshot, progress)
                return snapshot is not None
        except ClusterError as error:
            text = (
                f"{image.target} is compared with checksums, its snapshot could not be read: {error.message}"
            )
            self.reporter.message(Level.INFO, domain, text)
        except Mismatch:
            with suppress(ClusterError), snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    raise
        return False

    def _failed(self, failed: set[str], uuid: str, name: str, error: BackupError) -> None:
        """Tell it, and note the domain's first failure at once: a long verification may be interrupted."""
        self.reporter.message(Level.ERROR, name, str(error))
        if uuid not in failed and not isinstance(error, ConfigError):  # a --at that fits none proves nothing
            self._proofs.note(uuid, name, failure=error.message)
        failed.add(uuid)

    @property
    def _proofs(self) -> Proofs:
        return Proofs(self.settings.state_dir, self.reporter)


def proven(verified: Verified) -> str:
    """Give the line that tells of a whole verification."""
    read = f"(images: {verified.images}, {size_text(verified.size)})"
    if verified.failed:
        return f"domains that failed: {verified.failed}; what else was read is as it was saved {read}\n"
    return f"all that was read is as it was saved {read}\n"


def _drawn(images: Sequence[tuple[str, SavedImage]], sample: float) -> Sequence[tuple[str, SavedImage]]:
    """Draw images until they hold the part of all bytes that is wanted; at least one."""
    wanted = sample * sum(image.size for _, image in images)
    drawn: list[tuple[str, SavedImage]] = []
    for one in random.sample(images, len(images)):
        if drawn and sample < 1 and sum(image.size for _, image in drawn) >= wanted:
            break
        drawn.append(one)
    return drawn
