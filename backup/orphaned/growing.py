"""Reports snapshots of ours that no backup replaces any more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

from ..command import COMMAND
from ..model import Finding
from ..settings import Settings
from ..stored import StoredPoint
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop, awaited
from .claims import Claim, Claims
from .places import NodeDomains, pool_places
from .removal import AT_A_TIME, GRACE
from .search import OwnSnapshot, PoolSearch


def growing(
    nodes: Sequence[NodeDomains],
    complete: bool,
    points: Sequence[StoredPoint],
    settings: Settings,
    check_stop: CheckStop,
    close: Callable[[], None],
) -> Iterator[Finding]:
    """Yield warnings; arguments as of `OrphanRemoval.remove`. Raises the reason to stop."""
    texts: list[str] = []
    with Calls(AT_A_TIME, check_stop, close, GRACE) as calls:
        places, missing = awaited(
            calls.submit(partial(pool_places, nodes, points, settings)), math.inf, check_stop
        )
        texts += [f"pool {pool} (CLEANUP_POOLS) not searched: CEPH_USER cannot connect" for pool in missing]
        found = list(PoolSearch(check_stop, texts.append, lambda *_: None).snapshots(places, calls))
        claims = Claims(nodes, complete, points, settings.cleanup_days)
        texts += filter(None, calls.map(partial(_warning, claims, settings), found))
    yield from [Finding(text, warning=True) for text in texts]


def _warning(claims: Claims, settings: Settings, snapshot: OwnSnapshot) -> str:
    """Return what an admin has to know of a snapshot, "" for one that a backup will replace."""
    kind, verdict = claims.kind_of(snapshot), claims.verdict(snapshot)
    what = f"image {snapshot.where}: {kind} {snapshot.name} of {claims.origin_of(snapshot)}"
    if verdict.claim is Claim.NOBODY:
        return f"{what} grows: {verdict.reason} ({COMMAND} cleanup removes it)"
    if verdict.hint:
        return f"{what} grows: {verdict.reason} ({verdict.hint})"
    if verdict.claim is Claim.DOMAIN and snapshot.own.is_base and claims.is_old(snapshot):
        age = f"older than {settings.cleanup_days} days"
        return f"{what} grows: it is {age} ({COMMAND} cleanup --all removes it)"
    return ""
