"""Selection: which domains and disks are backed up, by which setting, and why others are skipped."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .command import COMMAND
from .errors import BackupError, ConfigError, Skipped
from .model import Disk, Domain, Gap, State
from .settings import Settings

METADATA = "its metadata"
ON_OVERLAYS = f"an instant restore of it is under way, or was interrupted: see `{COMMAND} status`"


@dataclass(frozen=True)
class Choice:
    """A domain with its selected disks; `skipped` is the reason if it is not backed up.

    `selected_by` and `freeze_from` name the origin: a constant, the command line, or the domain's metadata.
    """

    domain: Domain
    skipped: str = ""
    selected_by: str = "INCLUDE_DOMAINS"
    freeze: str = "auto"
    freeze_from: str = "FREEZE"


def choose(domains: Sequence[Domain], settings: Settings, names: Sequence[str] = ()) -> tuple[Choice, ...]:
    """Decide for each domain. `names` (names, UUIDs or patterns) replace INCLUDE_DOMAINS.

    A domain that several libvirts define is selected where it runs. Raises ConfigError for names that match
    no domain.
    """
    unknown = [name for name in names if not any(_matches(domain, [name]) for domain in domains)]
    if unknown:
        known = ", ".join(domain.name for domain in domains) or "none"
        hint = f"this node's domains: {known}" if len(domains) <= 10 else f"see `{COMMAND} list`"
        raise ConfigError([BackupError(f"there is no domain {name!r}", hint) for name in unknown])
    best: dict[str, Domain] = {}
    for domain in sorted(domains, key=_rank):  # stable: otherwise the first of LIBVIRT_URI
        best.setdefault(domain.uuid, domain)
    return tuple(_choice(domain, best[domain.uuid], settings, names) for domain in domains)


def select_disks(domain: Domain, settings: Settings) -> Domain:
    """Return the domain; disks that the settings or its metadata exclude are marked as skipped."""
    return replace(domain, disks=tuple(_disk(disk, domain, settings) for disk in domain.disks))


def effective(domain: Domain, settings: Settings) -> Settings:
    """Return the settings for this domain."""
    return replace(settings, freeze=domain.override.freeze or settings.freeze)


def require_complete(domain: Domain) -> None:
    """Raise BackupError if the domain, as returned by `select_disks`, could not be restored completely.

    Raises Skipped while an instant restore of it is under way.
    """
    if _is_on_overlays(domain):
        raise Skipped(ON_OVERLAYS)
    if domain.problem:
        raise domain.problem
    for disk in domain.disks:
        if disk.gap is Gap.BROKEN:
            message = f"{disk} cannot be backed up: {disk.skipped}"
            hint = f'to exclude it: <backup exclude="{disk.target}"/> in the domain\'s metadata'
            raise BackupError(message, hint)


def _is_on_overlays(domain: Domain) -> bool:
    """Return whether an instant restore has not moved the domain to its images yet."""
    return any(disk.image and disk.image.is_overlay for disk in domain.disks)


def _rank(domain: Domain) -> tuple[int, bool]:
    """Rank one of several libvirts with this domain: it runs there, is defined there, or migrated away."""
    if domain.state is State.ELSEWHERE:
        return 2, False
    return 0 if domain.state.active else 1, domain.problem is not None


def _choice(domain: Domain, best: Domain, settings: Settings, names: Sequence[str]) -> Choice:
    origin = "named" if names else METADATA if domain.override.enabled else "INCLUDE_DOMAINS"
    return Choice(
        select_disks(domain, settings),
        skipped=_skip_reason(domain, best, settings, names),
        selected_by=origin,
        freeze=effective(domain, settings).freeze,
        freeze_from=METADATA if domain.override.freeze else "FREEZE",
    )


def _skip_reason(domain: Domain, best: Domain, settings: Settings, names: Sequence[str]) -> str:
    if names and not _matches(domain, names):
        return "not selected on the command line"
    if domain is not best:
        return f"{'runs' if best.state.active else 'also defined'} at {best.uri}"
    if domain.override.enabled is False:
        return f"disabled in {METADATA}"
    if domain.override.enabled is None:
        if not names and not _matches(domain, settings.include_domains):
            return "not in INCLUDE_DOMAINS"
        if _matches(domain, settings.exclude_domains):
            return "in EXCLUDE_DOMAINS"
    if domain.state is State.ELSEWHERE:
        return "migrated to another node"
    wanted = [disk for disk in select_disks(domain, settings).disks if disk.image or disk.gap is Gap.BROKEN]
    if not wanted and not domain.problem:
        return "no RBD image to back up"
    return ON_OVERLAYS if _is_on_overlays(domain) else ""  # the last: without it, it would be backed up


def _disk(disk: Disk, domain: Domain, settings: Settings) -> Disk:
    if domain.override.excludes(disk.target):
        return replace(disk, image=None, skipped=f"excluded in {METADATA}", gap=Gap.NONE)
    if disk.image and any(fnmatchcase(str(disk.image), pattern) for pattern in settings.exclude_images):
        return replace(disk, image=None, skipped="in EXCLUDE_IMAGES")
    if disk.gap is Gap.FOREIGN and settings.uncovered_disks == "fail":
        return replace(disk, skipped=f"{disk.skipped} (UNCOVERED_DISKS)", gap=Gap.BROKEN)
    return disk


def _matches(domain: Domain, patterns: Sequence[str]) -> bool:
    """A pattern equal to the name matches too, as names may contain glob characters."""
    return any(
        pattern == domain.name
        or fnmatchcase(domain.name, pattern)
        or fnmatchcase(domain.uuid, pattern.lower())
        for pattern in patterns
    )


def has_name(domain: str, uuid: str, name: str, exact: Container[str]) -> bool:
    """Return whether a name from the command line, a UUID or a pattern, means the domain.

    One of the `exact` names, which are those of all domains, is no pattern: it may contain glob characters.
    """
    return name in (domain, uuid) if name in exact else fnmatchcase(domain, name)
