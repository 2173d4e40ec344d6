"""Instant restores that are under way, or were interrupted: `check` and `cleanup` report them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Callable

from ..hypervisor.connections import Hypervisors
from ..instant.under_way import UnderWay, under_way
from ..model import Domain
from ..orphaned.places import PoolPlace, domains_of_nodes, pool_places
from ..settings import Settings
from ..stored import StoredPoint
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop, awaited

AT_A_TIME = 16  # calls at the same time
GRACE = 4  # seconds for calls to end after a request to stop


def instant_restores(
    hypervisors: Hypervisors,
    domains: Sequence[Domain],
    points: Sequence[StoredPoint],
    settings: Settings,
    timeout: int,
    check_stop: CheckStop,
    failed: Callable[[str], None],
) -> Sequence[UnderWay]:
    """List them in the pools of the domains, of the restore points and of CLEANUP_POOLS.

    `timeout` limits each operation, in seconds; `failed` gets what could not be found out. Raises the reason
    to stop.
    """
    stack = ExitStack()
    nodes = domains_of_nodes(hypervisors, domains, settings, timeout, stack)
    with Calls(AT_A_TIME, check_stop, stack.close, GRACE) as calls:
        find_places = partial(pool_places, nodes, points, settings)
        places, _ = awaited(calls.submit(find_places), math.inf, check_stop)
        return [one for found in calls.map(partial(_in_place, failed=failed), places) for one in found]


def _in_place(place: PoolPlace, failed: Callable[[str], None]) -> Sequence[UnderWay]:
    return under_way(place.cluster, place.pool, place.namespaces, failed)
