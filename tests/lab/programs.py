"""Runs other programs with an environment of our own, and waits for conditions."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import Callable, Union

from tests.lab.errors import LabError

Argument = Union[str, Path]

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
ENVIRONMENT = {**PROXIES, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def run_program(
    *command: Argument,
    stdin: bytes = b"",
    timeout: float = 600,
    directory: Path | None = None,
    accepted: Collection[int] = (0,),
) -> bytes:
    """Run a program to its end, or to ours, and return its standard output."""
    arguments = [str(argument) for argument in command]
    require_programs(arguments[0])
    hint = f"the command was: {shlex.join(arguments)}"
    try:
        result = subprocess.run(
            [*ENDS_WITH_US, *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=ENVIRONMENT,
            cwd=directory,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{arguments[0]} did not end within {timeout:g} s", hint) from error
    if result.returncode not in accepted:
        reason = _last_lines(result.stderr)
        raise LabError(f"{arguments[0]} failed with exit code {result.returncode}: {reason}", hint)
    return result.stdout


def require_programs(*names: str) -> None:
    for name in names:
        if shutil.which(name, path=SEARCH_PATH) is None:
            hint = "install the packages that tests/lab/packages.txt lists"
            raise LabError(f"{name} is not installed", hint)


def wait_until(condition: Callable[[], bool], timeout: float, awaited: str, log: Path | None = None) -> None:
    """Poll until it is true, less often the longer that takes: conditions start programs."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > timeout:
            raise LabError(f"waited {timeout:g} s in vain until {awaited}", end_of(log) if log else "")
        time.sleep(min(0.05 + waited / 20, 0.5))


def end_of(log: Path) -> str:
    """A hint with the last lines of a log, which does not outlive a lab that did not come up."""
    lines = _last_lines(log.read_bytes()) if log.exists() else ""
    return f"{log} ends with: {lines}" if lines else f"{log} is empty"


def _last_lines(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    return " / ".join([line for line in lines if line.strip()][-3:])
