"""What a new process does for itself before the program takes its place.

It runs in an interpreter of its own, not between fork and exec of the process that starts it: there all locks
that other threads had are held, and nobody releases them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional

from .kernel_calls import join_mounts, lower_priority, signal_when_parent_dies

BLOCKED = {signal.SIGINT, signal.SIGTERM}  # in its first moments, by the process that starts it
CHANGED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # it ignores them


@dataclass(frozen=True)
class Setup:
    """How a program runs.

    `parent_death`: the signal that it gets when the thread that has started it ends. `group`: its process
    group, 0 for a new one, None for that of its parent. `low_priority`: others come first. `memory`: the
    limit of its address space in bytes, 0 for none. `parent_mounts`: it sees the mounts that its parent's
    first thread sees. It starts even if the group or the mounts that it would join are gone.
    """

    parent_death: Optional[int] = None
    group: Optional[int] = None
    low_priority: bool = False
    memory: int = 0
    parent_mounts: bool = False


def launch() -> None:
    """Prepare this process, and become the program.

    The arguments are the parent's pid, the descriptor for the number of an error, the fields of Setup as
    JSON, and those of the program.
    """
    parent, errors, fields, *program = sys.argv[1:]
    os.set_inheritable(int(errors), False)  # closed when the program has taken this process's place
    try:
        _prepare(Setup(**json.loads(fields)), int(parent))
        os.execvp(program[0], program)
    except OSError as error:
        os.write(int(errors), str(error.errno).encode())
        os._exit(1)


def _prepare(setup: Setup, parent: int) -> None:
    if setup.group is not None:
        with suppress(OSError):
            os.setpgid(0, setup.group)
    # What a terminal sent to the group of the parent by now is not for this one: to ignore it forgets it.
    for number in BLOCKED:
        signal.signal(number, signal.SIG_IGN)
    for number in (*BLOCKED, *CHANGED_BY_PYTHON):
        signal.signal(number, signal.SIG_DFL)
    if setup.parent_death is not None:
        signal_when_parent_dies(setup.parent_death, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    if setup.low_priority:
        lower_priority()
    if setup.memory:
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory, setup.memory))
    if setup.parent_mounts:
        with suppress(OSError):
            join_mounts(parent)
