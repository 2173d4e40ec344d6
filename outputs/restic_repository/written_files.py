"""What restic and rclone write on this node besides the repository: a cache, a configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from backup.errors import BackupError

from .program import INHERITED, Program

SERVICE = "virt-rbd-backup"
UNITS = tuple(f"{place}/systemd/system" for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"))
# What virt-rbd-backup.service may write without further ReadWritePaths=.
SERVICE_WRITES = tuple(f"{place}/{SERVICE}" for place in ("/run", "/var/lib", "/var/cache"))


def file_problems(program: Program, units: tuple[str, ...] = UNITS) -> Iterator[BackupError]:
    """Yield what cannot be written, by this process or by the service whose unit is in one of `units`."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment.update(program.environment)
    yield from _cache_problems(program, environment)
    repository = environment.get("RESTIC_REPOSITORY", program.repository)
    if repository.startswith("rclone:") and not any("--config" in option for option in program.options):
        yield from _rclone_problems(environment, units)


def _cache_problems(program: Program, environment: Mapping[str, str]) -> Iterator[BackupError]:
    if "--no-cache" in program.options:
        return
    hint = 'set RESTIC_ENVIRONMENT = {"RESTIC_CACHE_DIR": "..."} to a directory that can be written'
    if not (directory := _cache(program, environment)):
        yield BackupError("restic has no cache, as neither HOME nor RESTIC_CACHE_DIR is set", hint)
    elif not _writable(directory):
        yield BackupError(f"restic cannot write its cache {directory}: each call then is slower", hint)


def _cache(program: Program, environment: Mapping[str, str]) -> Path | None:
    """Return restic's directory for its cache (restic's manual, "Caching")."""
    given = [option.partition("=")[2] for option in program.options if option.startswith("--cache-dir=")]
    if chosen := [*given, environment.get("RESTIC_CACHE_DIR", "")][0]:
        return Path(chosen)
    if parent := environment.get("XDG_CACHE_HOME", ""):
        return Path(parent, "restic")
    home = environment.get("HOME", "")
    return Path(home, ".cache", "restic") if home else None


def _rclone_problems(environment: Mapping[str, str], units: tuple[str, ...]) -> Iterator[BackupError]:
    """Yield a problem if rclone's configuration has tokens, which rclone renews, and cannot be written.

    Without tokens rclone only reads it.
    """
    path = _rclone_configuration(environment)
    if path is None:
        return
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return  # rclone itself reports it
    if not re.search(r"^token\s*=|^RCLONE_ENCRYPT_V", text, re.MULTILINE):
        return
    # it writes a file beside it, and renames that
    here = _writable(path) and _writable(path.parent)
    if here and _service_writes(path, units):
        return
    who = "rclone" if not here else f"in {SERVICE}.service, rclone"
    moved = f"/var/lib/{SERVICE}/rclone.conf"
    yield BackupError(
        f"{who} cannot write its configuration {path}, and would lose the tokens that it renews there",
        f'move it: RESTIC_ENVIRONMENT = {{"RCLONE_CONFIG": "{moved}"}};'
        f" or systemctl edit {SERVICE}, [Service], ReadWritePaths=-{path.parent}",
    )


def _rclone_configuration(environment: Mapping[str, str]) -> Path | None:
    """Return rclone's configuration file (rclone's manual, "--config")."""
    if given := environment.get("RCLONE_CONFIG", ""):
        return Path(given)
    home = environment.get("HOME", "")
    parent = environment.get("XDG_CONFIG_HOME", "") or (f"{home}/.config" if home else "")
    places = [Path(parent, "rclone/rclone.conf")] if parent else []
    places += [Path(home, ".rclone.conf")] if home else []
    return next((place for place in places if os.path.exists(place)), None)  # Path.exists raises EACCES


def _service_writes(path: Path, units: tuple[str, ...]) -> bool:
    """Return whether the service may write beside the path; True if no service is installed."""
    files = [file for place in units for file in Path(place).glob(f"{SERVICE}.service")]
    files += [file for place in units for file in Path(place).glob(f"{SERVICE}.service.d/*.conf")]
    text = ""
    for file in files:
        with suppress(OSError):
            text += file.read_text() + "\n"
    if "ProtectSystem=strict" not in text:
        return True
    listed = " ".join(re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE)).split()
    allowed = [*SERVICE_WRITES, *(one.lstrip("-+") for one in listed)]
    return any(Path(one) in (path.parent, *path.parent.parents) for one in allowed)


def _writable(path: Path) -> bool:
    """Return whether it can be written, or made; root cannot write to a read-only file system either."""
    existing = next(one for one in (path, *path.absolute().parents) if os.path.exists(one))
    return os.access(existing, os.W_OK)
