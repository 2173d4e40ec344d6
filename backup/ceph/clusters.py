"""From a disk's address to its cluster, with the key that libvirt has for it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Callable, Union

from ..errors import BackupError
from ..model import ClusterAddress
from ..settings import Settings
from .cluster import Cluster
from .retry import CephRetry


class Clusters:
    """Connections as the domains themselves have them: made when asked for, one for each address.

    Threads may share it.
    """

    def __init__(
        self,
        secret_of: Callable[[ClusterAddress], str],
        settings: Settings,
        timeout: int,
        retry: CephRetry | None = None,
    ) -> None:
        """`secret_of` gives the cephx key for an address, "" for the keyring's; it raises BackupError.

        `timeout`, in seconds, bounds every operation of the connections; `retry` is what follows it.
        """
        self._secret_of = secret_of
        self._settings = settings
        self._timeout = timeout
        self._retry = retry
        self._known: dict[ClusterAddress, Union[Cluster, BackupError]] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Clusters:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def at(self, address: ClusterAddress) -> Cluster:
        """Give the connection. Raises BackupError, the same again for an address that has failed once."""
        with self._lock:
            if address not in self._known:
                self._known[address] = self._try(address)
        known = self._known[address]
        if isinstance(known, BackupError):
            raise known
        return known

    def _try(self, address: ClusterAddress) -> Union[Cluster, BackupError]:
        settings = self._settings
        try:
            cluster = Cluster(
                address,
                self._secret_of(address),
                settings.ceph_conf,
                self._timeout,
                settings.max_read_rate,
                settings.replica_reads,
                self._retry,
            )
        except BackupError as error:
            return error
        return self._stack.enter_context(cluster)
