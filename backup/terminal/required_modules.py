"""Checks that the modules a command needs can be imported, and names the packages of those that cannot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from ..errors import BackupError
from ..model import Finding
from ..settings import Settings
from ..system.module_import import FailedImport, failed_imports

# Modules that only distributions package, and their package in Debian.
LIBVIRT_MODULES = {"libvirt": "python3-libvirt"}
CEPH_MODULES = {"rados": "python3-rados", "rbd": "python3-rbd"}
REPOSITORY_MODULES = {"xxhash": "python3-xxhash"}
MODULES = {**LIBVIRT_MODULES, **CEPH_MODULES, **REPOSITORY_MODULES}
OUTPUT_MODULES = {"restic_incremental": {"pyfuse3": "python3-pyfuse3"}}  # for backups
MOUNT_MODULES = {"pyfuse3": "python3-pyfuse3"}
PAGE_MODULES = {"jinja2": "python3-jinja2"}
METRICS_MODULES = {"prometheus_client": "python3-prometheus-client"}

# What else comes in the package of a module, and is needed with it.
WITH = {"libvirt": ("libvirt_qemu",)}

# Modules that some nodes do not need: their package, and what needs them.
OPTIONAL = {
    "pyfuse3": ("python3-pyfuse3", 'OUTPUT = "restic_incremental", mount, files'),
    "prometheus_client": ("python3-prometheus-client", "METRICS_FILE"),
    "jinja2": ("python3-jinja2", "report --html"),
    "rich": ("python3-rich", "progress on a terminal"),
    "setproctitle": ("python3-setproctitle", "process titles"),
}


def require_modules(arguments: argparse.Namespace, settings: Settings) -> None:
    """Raise BackupError unless all modules that the command needs can be imported."""
    modules = _modules(arguments, settings)
    failed = _failed(modules)
    missing = [name for name, one in failed.items() if not one.reason]
    broken = {name: one for name, one in failed.items() if one.reason}
    texts, hints = [], []
    if missing:
        packages = _packages(missing, modules)
        texts.append(f"has no module {', '.join(missing)}")
        hints.append(
            f"run it with the distribution's own: /usr/bin/python3 main.py; apt-get install {packages}"
        )
    if broken:
        texts += [str(one) for one in broken.values()]
        hints.append(_repair(list(broken), modules))
    if failed:
        raise BackupError(f"this interpreter ({sys.executable}) {', and '.join(texts)}", "; ".join(hints))


def broken_modules(modules: Mapping[str, str]) -> Iterator[BackupError]:
    """Yield an error for each of these modules, given with their packages, that is there but unusable."""
    for name, one in _failed(modules).items():
        if one.reason:
            yield BackupError(str(one), _repair([name], modules))


def missing_packages(modules: Mapping[str, str]) -> Sequence[str]:
    """List the packages of those of these modules that are not installed."""
    return [modules[name] for name, one in _failed(modules).items() if not one.reason]


def optional_modules() -> Iterator[Finding]:
    """Yield the modules that some nodes do not need, and that are there but cannot be imported."""
    for name, (package, use) in OPTIONAL.items():
        for error in broken_modules({name: package}):
            yield Finding(f"module {name}, for {use}", error)


def _modules(arguments: argparse.Namespace, settings: Settings) -> Mapping[str, str]:
    """Give the modules that the command needs, with their packages."""
    command = arguments.command
    modules: dict[str, str] = {}
    without = ("report", "restore-points", "verify", "key", "mount", "files", "prune")
    to_file = command == "restore" and arguments.to_file
    defines = command == "restore" and (arguments.define or arguments.instant) and not to_file
    if command not in (*without, "restore") or defines:
        modules.update(LIBVIRT_MODULES)
    in_rbd = settings.output == "rbd" and command not in ("report", "key")
    if in_rbd or (command not in without and not to_file):
        modules.update(CEPH_MODULES)
    if command not in ("report", "key"):
        modules.update(REPOSITORY_MODULES)
    if command in ("mount", "files"):
        modules.update(MOUNT_MODULES)
    if command in ("backup", "check"):
        modules.update(OUTPUT_MODULES.get(settings.output, {}))
    if settings.metrics_file and command in ("backup", "check", "copy", "verify", "drill"):
        modules.update(METRICS_MODULES)
    if command == "report" and arguments.html is not None:
        modules.update(PAGE_MODULES)
    return modules


def _failed(modules: Mapping[str, str]) -> Mapping[str, FailedImport]:
    """Import them with what comes in their packages; return the first failure of each by its name."""
    failures = {name: failed_imports([name]) or failed_imports(WITH.get(name, ())) for name in modules}
    return {name: failed[0] for name, failed in failures.items() if failed}


def _packages(names: Sequence[str], modules: Mapping[str, str]) -> str:
    return " ".join(dict.fromkeys(modules[name] for name in names))


def _repair(names: Sequence[str], modules: Mapping[str, str]) -> str:
    packages = _packages(names, modules)
    return (
        f"apt-get install --reinstall {packages}; remove what shadows it, such as a copy that pip installed"
    )
