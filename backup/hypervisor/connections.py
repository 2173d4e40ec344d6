"""Connections to all libvirts of LIBVIRT_URI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Union

from ..errors import BackupError, DomainGone
from ..model import Domain, State
from ..system.time_limit import STOP_POLL, CheckStop, never_stop
from .connection import Hypervisor


class Hypervisors:
    """Connections to all that can be reached, in order; `unreachable` holds the other errors. Close it."""

    def __init__(self, uris: Sequence[str], timeout: int = 60, check_stop: CheckStop = never_stop) -> None:
        """Connect to all in parallel. Raises BackupError if none can be reached.

        `timeout` limits each call, in seconds. `check_stop` raises the reason to stop, which ends connecting
        and listing domains.
        """
        self._check_stop = check_stop
        with ThreadPoolExecutor(len(uris)) as threads:
            attempts = [threads.submit(_connected, uri, timeout, check_stop) for uri in uris]
            # in steps: a signal that arrives just before an endless wait would be handled after it
            while wait(attempts, STOP_POLL).not_done:
                continue
            tried = [attempt.result() for attempt in attempts]
        self.unreachable = [one for one in tried if isinstance(one, BackupError)]
        self._reached = [one for one in tried if isinstance(one, Hypervisor)]
        self._stack = ExitStack()
        for hypervisor in self._reached:
            self._stack.enter_context(hypervisor)
        with ExitStack() as undo:  # an error leaves no connection behind
            undo.callback(self._stack.close)
            check_stop()
            self._require_any()
            undo.pop_all()

    def __enter__(self) -> Hypervisors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Hypervisor]:
        return iter(self._reached)

    def domains(self) -> Sequence[Domain]:
        """List the domains of all libvirts; a domain that several define appears several times.

        Raises BackupError if no libvirt answers any more.
        """
        found: list[Domain] = []
        for hypervisor in list(self._reached):
            try:
                found += hypervisor.domains(self._check_stop)
            except BackupError as error:
                self._check_stop()
                self._reached.remove(hypervisor)
                self.unreachable.append(error)
        self._require_any()
        return found

    def _require_any(self) -> None:
        if not self._reached:
            raise self.unreachable[0]


@contextmanager
def located(
    uuid: str, uris: Sequence[str], timeout: int, check_stop: CheckStop = never_stop
) -> Iterator[tuple[Hypervisor, Domain]]:
    """Find a domain: in the libvirt that listed it, the first of `uris`, or where it migrated to since.

    Raises DomainGone if no libvirt has it, another BackupError if one of them could not be asked, and the
    reason to stop.
    """
    errors: list[BackupError] = []
    for uri in uris:
        with ExitStack() as stack:
            found = _found(stack, uri, uuid, timeout, check_stop)
            if not isinstance(found, BackupError):
                yield found
                return
        if uri == uris[0] and not isinstance(found, DomainGone):
            raise found  # the domain may still run there: no other libvirt knows better
        errors.append(found)
    unknown = [error for error in errors if not isinstance(error, DomainGone)]
    raise (unknown or errors)[0]


@contextmanager
def running_at(uuid: str, uris: Sequence[str], timeout: int) -> Iterator[tuple[Hypervisor, Domain]]:
    """Find the libvirt among `uris` where a domain runs; where it runs nowhere, one that defines it.

    One that cannot be reached does not keep the others from being asked. Raises DomainGone if no libvirt has
    it, another BackupError if one of them could not be asked and it runs at no other.
    """
    with ExitStack() as stack:
        found = [_found(stack, uri, uuid, timeout, never_stop) for uri in uris]
        there = [one for one in found if not isinstance(one, BackupError)]
        running = [one for one in there if one[1].state.active]
        errors = [one for one in found if isinstance(one, BackupError)]
        unknown = [one for one in errors if not isinstance(one, DomainGone)]
        if not running and unknown:
            raise unknown[0]
        if not there:
            raise DomainGone("no other libvirt has the domain")
        yield (running or there)[0]


def _found(
    stack: ExitStack, uri: str, uuid: str, timeout: int, check_stop: CheckStop
) -> Union[tuple[Hypervisor, Domain], BackupError]:
    """Return the domain and its connection, which the stack closes, or why it could not be found there."""
    try:
        hypervisor = stack.enter_context(Hypervisor(uri, timeout, check_stop))
        domain = hypervisor.domain(uuid, check_stop)
    except BackupError as error:
        check_stop()
        return error
    if domain.state is State.ELSEWHERE:
        return DomainGone("the domain migrated to another node")
    return hypervisor, domain


def _connected(uri: str, timeout: int, check_stop: CheckStop) -> Union[Hypervisor, BackupError]:
    try:
        return Hypervisor(uri, timeout, check_stop)
    except BackupError as error:
        return error
