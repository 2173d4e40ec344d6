"""What is backed up, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .errors import BackupError, ConfigError
from .model import Disk, Domain, State
from .settings import Settings


@dataclass(frozen=True)
class Choice:
    """A domain with what EXCLUDE_IMAGES leaves of its disks; `skipped` says why it is not backed up."""

    domain: Domain
    skipped: str = ""


def choose(domains: Sequence[Domain], settings: Settings, names: Sequence[str] = ()) -> tuple[Choice, ...]:
    """Decide about each domain. `names` (names, UUIDs or patterns) take the place of INCLUDE_DOMAINS.

    Raises ConfigError for names that no domain has.
    """
    unknown = [name for name in names if not any(_matches(domain, [name]) for domain in domains)]
    if unknown:
        known = ", ".join(domain.name for domain in domains) or "none"
        hint = f"this node's domains: {known}" if len(domains) <= 10 else "see `main.py list`"
        raise ConfigError([BackupError(f"there is no domain {name!r}", hint) for name in unknown])
    return tuple(_choice(domain, settings, names) for domain in domains)


def covered(domain: Domain, settings: Settings) -> Domain:
    """Give the domain with the disks that EXCLUDE_IMAGES leaves out marked as not covered."""
    return replace(domain, disks=tuple(_disk(disk, settings) for disk in domain.disks))


def _choice(domain: Domain, settings: Settings, names: Sequence[str]) -> Choice:
    seen = covered(domain, settings)
    if names and not _matches(domain, names):
        return Choice(seen, "not named")
    if not names and not _matches(domain, settings.include_domains):
        return Choice(seen, "not in INCLUDE_DOMAINS")
    if _matches(domain, settings.exclude_domains):
        return Choice(seen, "in EXCLUDE_DOMAINS")
    if domain.state is State.ELSEWHERE:
        return Choice(seen, "migrated to another node")
    if not any(disk.image for disk in seen.disks):
        return Choice(seen, "no RBD image to back up")
    return Choice(seen)


def _disk(disk: Disk, settings: Settings) -> Disk:
    if disk.image and any(fnmatchcase(str(disk.image), pattern) for pattern in settings.exclude_images):
        return replace(disk, image=None, not_covered="in EXCLUDE_IMAGES")
    return disk


def _matches(domain: Domain, patterns: Sequence[str]) -> bool:
    """A pattern that is the very name matches too, as names may hold glob characters."""
    return any(
        pattern == domain.name
        or fnmatchcase(domain.name, pattern)
        or fnmatchcase(domain.uuid, pattern.lower())
        for pattern in patterns
    )
