"""Searches all images of pools for snapshots of ours, whatever domain they are of."""

from __future__ import annotations

import errno
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Union

from ..ceph.cluster import Cluster
from ..ceph.errors import ClusterError, ImageGone
from ..ceph.image_listing import ListedImage
from ..errors import BackupError
from ..job.leftovers import OwnName, own_name
from ..model import Image
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop, awaited
from .places import PoolPlace

TIMEOUTS = 16  # of single images, after which the rest of a search over this connection is given up


@dataclass(frozen=True)
class OwnSnapshot:
    """A snapshot that has a name of ours."""

    cluster: Cluster
    image: Image
    in_trash: bool
    name: str
    own: OwnName

    @property
    def where(self) -> str:
        return f"{self.image}, which is in the trash" if self.in_trash else str(self.image)

    @property
    def argument(self) -> str:
        """The snapshot as an argument of rbd."""
        return f"{self.image_argument}{' --snap ' if self.in_trash else '@'}{self.name}"

    @property
    def image_argument(self) -> str:
        """The image as an argument of rbd: one in the trash is found by its id only."""
        if not self.in_trash:
            return str(self.image)
        pool = f"--pool {self.image.pool}"
        place = f"{pool} --namespace {self.image.namespace}" if self.image.namespace else pool
        return f"{place} --image-id {self.image.id}"


@dataclass
class PoolSearch:
    """Searches the images of pools; one that cannot be opened costs a line, and nothing else.

    `failed` reports what could not be searched, `progress` gets the numbers of images searched and of all
    images every `interval` seconds (0: never). What is not searched after `limit` seconds is left to the next
    search, which has another order.
    """

    check_stop: CheckStop
    failed: Callable[[str], None]
    progress: Callable[[int, int], None]
    interval: float = 0
    limit: float = math.inf
    _timeouts: dict[str, int] = field(default_factory=dict)  # by cluster
    _began: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)
    _left: int = 0  # images for which no time was left

    def snapshots(self, places: Sequence[PoolPlace], calls: Calls) -> Iterator[OwnSnapshot]:
        """Yield our snapshots. Raises the reason to stop, immediately even if a call hangs."""
        listed = zip(places, calls.map(self._listed, places))
        found = [(place, one) for place, images in listed for one in images]
        if self.limit < math.inf:
            random.shuffle(found)
        searches = [calls.submit(partial(self._searched, place.cluster, one)) for place, one in found]
        errors: dict[tuple[str, str], list[str]] = {}
        for done, ((place, _), search) in enumerate(zip(found, searches)):
            self._report_progress(done, len(found))
            result = awaited(search, math.inf, self.check_stop)
            if isinstance(result, BackupError):
                errors.setdefault((place.cluster.fsid, place.pool), []).append(result.message)
            else:
                yield from result
        if self._left:
            self.progress(len(found) - self._left, len(found))
        for (_, pool), texts in errors.items():
            images = "1 image" if len(texts) == 1 else f"{len(texts)} images"
            self.failed(f"{images} of pool {pool} not searched for leftovers; the first error: {texts[0]}")

    def _listed(self, place: PoolPlace) -> Sequence[ListedImage]:
        """List the images of all namespaces of a pool, as far as the user may."""
        images: list[ListedImage] = []
        namespaces: Sequence[str] = place.namespaces
        try:
            namespaces = place.cluster.namespaces(place.pool)
        except ClusterError as error:
            if error.number == errno.ENOENT:
                return ()  # the pool was removed
        for namespace in dict.fromkeys((*namespaces, *place.namespaces)):
            self.check_stop()
            try:
                images += place.cluster.images_in(place.pool, namespace)
            except ClusterError as error:
                if place.origin and namespace in place.namespaces and error.number != errno.ENOENT:
                    self.failed(f"pool {place.pool} not searched for leftovers: {error}")
        return images

    def _searched(self, cluster: Cluster, listed: ListedImage) -> Union[Sequence[OwnSnapshot], BackupError]:
        self.check_stop()
        if self._timeouts.get(cluster.fsid, 0) >= TIMEOUTS:
            return BackupError("the cluster does not answer")
        if time.monotonic() > self._began + self.limit:
            self._left += 1
            return ()
        try:
            names = cluster.snapshot_names(listed.image)
            parsed = [(name, own) for name in names if (own := own_name(name))]
            if parsed and cluster.is_mirror(listed.image):
                return ()  # it gets and loses its snapshots as the primary image does
        except ImageGone:
            return ()
        except ClusterError as error:
            if error.number == errno.ETIMEDOUT:
                self._timeouts[cluster.fsid] = self._timeouts.get(cluster.fsid, 0) + 1
            return error
        return [OwnSnapshot(cluster, listed.image, listed.in_trash, name, own) for name, own in parsed]

    def _report_progress(self, done: int, number: int) -> None:
        now = time.monotonic()
        if self.interval and now >= self._reported + self.interval:
            self._reported = now
            self.progress(done, number)
