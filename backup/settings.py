"""The settings: reads and checks the constants of config.py and of the file that overrides it."""

from __future__ import annotations

import difflib
import os
import runpy
import stat
from collections.abc import Container, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Callable, Optional, Union
from urllib.parse import urlsplit

from .errors import BackupError, ConfigError, reason
from .groups import directory_of, with_name

MAY_HOLD_PASSWORDS = (
    *("COPY_ENVIRONMENT", "COPY_REPOSITORY", "LIBVIRT_URI", "NOTIFY_COMMAND", "PING_URL"),
    *("RESTIC_ENVIRONMENT", "RESTIC_OPTIONS", "RESTIC_REPOSITORY"),
)

MOST_DAYS = 365000  # a thousand years: so long ago is still a date

# Returns what a value has to be, None if it is valid.
Check = Callable[[Any], Optional[str]]


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and "\0" not in value else "has to be a string"


def _required(value: Any) -> str | None:
    return None if _text(value) is None and value else "has to be a non-empty string"


def _texts(value: Any) -> str | None:
    good = isinstance(value, (list, tuple)) and all(_text(item) is None for item in value)
    return None if good else "has to be a list of strings"


def _uris(value: Any) -> str | None:
    texts = [value] if isinstance(value, str) else value
    if not texts or _texts(texts) or not all(texts):
        return "has to be a non-empty string, or a list of such strings"
    try:
        for text in texts:
            urlsplit(text)
    except ValueError as error:
        return f"has to be a URI ({error})"
    return None


def _environment(value: Any) -> str | None:
    good = isinstance(value, dict) and _texts([*value, *value.values()]) is None
    if good and any(not name or "=" in name for name in value):
        return "has an invalid variable name"
    return None if good else "has to be a dictionary of strings"


def _absolute(value: Any) -> str | None:
    return None if _text(value) is None and os.path.isabs(value) else "has to be an absolute path"


def _absolute_or_none(value: Any) -> str | None:
    return None if value == "" else _absolute(value)


def _metrics_file(value: Any) -> str | None:
    if wrong := _absolute_or_none(value):
        return wrong
    good = value == "" or value.endswith(".prom")
    return None if good else "has to end in .prom: node_exporter reads only such files"


def _url_or_none(value: Any) -> str | None:
    if value == "":
        return None
    try:
        good = _text(value) is None and value.isascii() and value.isprintable() and " " not in value
        if good and (parts := urlsplit(value)).scheme in ("http", "https") and parts.hostname:
            return None
    except ValueError:
        pass
    return "has to be a URL, http://... or https://..."


def _one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"has to be one of {', '.join(map(repr, choices))}"


def _whole(low: int, high: int | None = None) -> Check:
    def check(value: Any) -> str | None:
        good = type(value) is int and low <= value and (high is None or value <= high)
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        return None if good else f"has to be a whole number {span}"

    return check


def _yes_or_no(value: Any) -> str | None:
    return None if isinstance(value, bool) else "has to be True or False"


def _constant(check: Check, secret: bool = False) -> Any:
    return field(repr=not secret, metadata={"check": check})


@dataclass(frozen=True)
class Settings:
    """The checked constants of config.py, with their names in lower case, and the group that they are of.

    A group ("" for none) has directories of its own in RUNTIME_DIR and STATE_DIR: `runtime_dir`, `state_dir`.
    """

    libvirt_uri: Union[str, Sequence[str]] = _constant(_uris)
    libvirt_timeout: int = _constant(_whole(1, 3600))
    ceph_conf: str = _constant(_absolute)
    ceph_user: str = _constant(_required)
    ceph_timeout: int = _constant(_whole(1, 3600))
    ceph_stall_timeout: int = _constant(_whole(0))
    include_domains: Sequence[str] = _constant(_texts)
    exclude_domains: Sequence[str] = _constant(_texts)
    exclude_images: Sequence[str] = _constant(_texts)
    uncovered_disks: str = _constant(_one_of("report", "fail"))
    min_age: int = _constant(_whole(0))
    max_file_size: int = _constant(_whole(0))
    workers: int = _constant(_whole(1, 64))
    streams: int = _constant(_whole(0, 64))
    freeze: str = _constant(_one_of("auto", "required", "never"))
    without_freeze: str = _constant(_one_of("pause", "crash"))
    freeze_timeout: int = _constant(_whole(2, 600))
    agent_boot_timeout: int = _constant(_whole(0, 86400))
    max_read_rate: int = _constant(_whole(0))
    replica_reads: str = _constant(_one_of("", "balance", "localize"))
    snapshot_deletes: int = _constant(_whole(1, 64))
    output: str = _constant(_one_of("restic", "restic_incremental", "rbd", "directory"))
    full_read_days: int = _constant(_whole(0, MOST_DAYS))
    fast_diff: bool = _constant(_yes_or_no)
    restic_binary: str = _constant(_required)
    restic_repository: str = _constant(_text)
    restic_password_file: str = _constant(_absolute_or_none)
    restic_environment: Mapping[str, str] = _constant(_environment, secret=True)
    restic_options: Sequence[str] = _constant(_texts)
    restic_read_concurrency: int = _constant(_whole(0, 16))
    copy_repository: str = _constant(_text)
    copy_password_file: str = _constant(_absolute_or_none)
    copy_environment: Mapping[str, str] = _constant(_environment, secret=True)
    rbd_output_conf: str = _constant(_absolute_or_none)
    rbd_output_user: str = _constant(_text)
    rbd_output_pool: str = _constant(_text)
    max_write_rate: int = _constant(_whole(0))
    directory_output: str = _constant(_absolute_or_none)
    directory_format: str = _constant(_one_of("qcow2", "raw"))
    directory_chain: int = _constant(_whole(0, 200))
    keep_last: int = _constant(_whole(0))
    keep_within_days: int = _constant(_whole(0, MOST_DAYS))
    output_stall_timeout: int = _constant(_whole(1))
    lock_wait: int = _constant(_whole(0))
    retry_for: int = _constant(_whole(0))
    runtime_dir: str = _constant(_absolute)
    lock_duration: int = _constant(_whole(3, 3600))
    cleanup_pools: Sequence[str] = _constant(_texts)
    cleanup_days: int = _constant(_whole(0, MOST_DAYS))
    drill_pool: str = _constant(_text)
    drill_boot_timeout: int = _constant(_whole(1))
    drill_dir: str = _constant(_absolute)
    state_dir: str = _constant(_absolute)
    report_days: int = _constant(_whole(1, MOST_DAYS))
    report_file: str = _constant(_absolute_or_none)
    metrics_file: str = _constant(_metrics_file)
    progress_interval: int = _constant(_whole(0))
    notify_command: Sequence[str] = _constant(_texts, secret=True)
    notify_on: str = _constant(_one_of("always", "failure", "change"))
    notify_timeout: int = _constant(_whole(1, 3600))
    ping_url: str = _constant(_url_or_none, secret=True)
    hooks: str = _constant(_absolute_or_none)
    hook_timeout: int = _constant(_whole(1, 86400))
    group: str = ""

    @property
    def node_dir(self) -> str:
        """RUNTIME_DIR, which all groups of a node share."""
        return str(Path(self.runtime_dir).parents[1]) if self.group else self.runtime_dir

    @property
    def stream_count(self) -> int:
        """How many images are read at the same time: STREAMS, or as many as WORKERS."""
        return self.streams or self.workers

    @property
    def libvirt_uris(self) -> tuple[str, ...]:
        """The URIs of LIBVIRT_URI, without duplicates."""
        given = self.libvirt_uri
        return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def constants() -> Mapping[str, Field[Any]]:
    """Return the declarations of all constants by their names."""
    return {entry.name.upper(): entry for entry in fields(Settings) if "check" in entry.metadata}


def load(defaults: Mapping[str, Any], override: Path | None, group: str = "") -> Settings:
    """Check the constants of config.py and of the override file, that of a group, which take precedence.

    Raises ConfigError with all errors at once.
    """
    known = constants()
    given = _constants(_run(override), known) if override is not None else {}
    values = {**_constants(defaults, known), **given}
    errors = [_unknown(name, known) for name in values if name not in known]
    errors += [
        BackupError(f"{name} is missing", "copy it from the config.py of this version")
        for name in known
        if name not in values
    ]
    errors += [
        BackupError(f"{name} = {_shown(name, values[name])}: {wrong}", "config.py explains each constant")
        for name, entry in known.items()
        if name in values and (wrong := entry.metadata["check"](values[name]))
    ]
    if errors:
        raise ConfigError(errors)
    settings = Settings(**{name.lower(): values[name] for name in known})
    return _of_group(settings, group, given) if group else settings


def _of_group(settings: Settings, group: str, given: Container[str]) -> Settings:
    """Return the settings with paths of the group's own, but for those `given` in its file.

    RUNTIME_DIR is derived in any case: what keeps groups from quiescing the same domain at once lies in it.
    """
    changes: dict[str, Any] = {"group": group, "runtime_dir": directory_of(settings.runtime_dir, group)}
    if "STATE_DIR" not in given:
        changes["state_dir"] = directory_of(settings.state_dir, group)
    for name in ("report_file", "metrics_file"):
        path = getattr(settings, name)
        if path and name.upper() not in given:
            changes[name] = with_name(path, group)
    return replace(settings, **changes)


def load_valid(defaults: Mapping[str, Any], override: Path | None, group: str = "") -> Settings:
    """Return the settings with the default in place of each constant that is invalid, to report that it is.

    Raises ConfigError if the override file cannot be executed, or others can write it; if a default is
    invalid.
    """
    checks = {name: entry.metadata["check"] for name, entry in constants().items()}
    chosen = _constants(_run(override), checks) if override else {}
    valid = {name: value for name, value in chosen.items() if name in checks and not checks[name](value)}
    settings = load({**defaults, **valid}, None)
    return _of_group(settings, group, valid) if group else settings


def _constants(module: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Return the names in upper case, and constants written in lower case by mistake."""
    return {
        name: value
        for name, value in module.items()
        if (name.isupper() or name.upper() in known) and not name.startswith("_")
    }


def _run(path: Path) -> dict[str, Any]:
    """Execute a settings file, unless other users can write it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(
                [BackupError(f"{path} is not a file", "--config takes a Python file with constants")]
            )
        if wrong := written_by_others(path):
            raise ConfigError([wrong])
        return runpy.run_path(str(path))
    except OSError as error:
        raise ConfigError([BackupError(f"cannot read {path}: {reason(error)}", "see --config")]) from error
    except (Exception, SystemExit) as error:  # an error in the admin's Python, whatever it is
        if isinstance(error, ConfigError):
            raise
        raise invalid_python(path, error) from error


def invalid_python(path: Path, error: BaseException) -> ConfigError:
    """Return the error for a settings file that cannot be executed."""
    line = getattr(error, "lineno", None) or _line_in(path, error)
    where = f"{path}, line {line}" if line else str(path)
    # not the error's own message, which may quote a password that lacks its quotes
    message = f"{where}: invalid setting ({type(error).__name__})"
    return ConfigError([BackupError(message, 'the file has to be Python: NAME = "value"')])


def written_by_others(path: Path) -> BackupError | None:
    """Return an error if other users can write a file that is executed. Raises OSError."""
    status = path.stat()
    if not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and status.st_uid in (0, os.geteuid()):
        return None
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
    hint = f"it would be executed: chown root {path}; chmod go-w {path}"
    return BackupError(f"{path} can be written by others ({mode})", hint)


def _line_in(path: Path, error: BaseException) -> int | None:
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _unknown(name: str, known: Mapping[str, Field[Any]]) -> BackupError:
    near = difflib.get_close_matches(name.upper(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else "config.py lists all constants"
    return BackupError(f"{name} is not a known constant", hint)


def _shown(name: str, value: Any) -> str:
    """Return the value for a message, "..." if it may contain a password."""
    return "..." if name in MAY_HOLD_PASSWORDS else repr(value)
