"""What keeps a restic that reads our files from saving a part of them when this process is killed.

restic leaves out files that it cannot read, and saves the rest. A killed process cannot end it, and the
kernel's signal does not get past a wrapper. One such as `timeout` also moves restic to a process group of its
own; but in the mount namespace of the files it stays.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Callable

from backup.errors import reason
from backup.system.started_program import (
    NOTHING,
    Command,
    Setup,
    StartedProgram,
    ended_within,
    inherited,
    start_program,
)

from .messages import ResticError

COPY_POLL = 50  # milliseconds
PIPE_CHUNK = 1 << 16  # bytes
# Waits for a line, or for the end of the process that would write it. It ignores what interrupts the group of
# which it is a member; SIGKILL ends all members before any of them notices that the files are gone.
KEEPER = """trap '' HUP INT TERM
read -r line && exit
group=$1 namespace=$2
end() {
  for one in ${namespace:+/proc/[0-9]*}; do
    pid=${one#/proc/}
    [ "$(readlink "$one/ns/mnt")" != "$namespace" ] || [ "$pid" = $$ ] || kill -s "$1" "$pid"
  done
  kill -s "$1" -- "-$group"
}
end INT
sleep 1
end KILL
"""
KEEPER_LIMIT = 5  # seconds in which it ends after the line


@dataclass(frozen=True)
class ServedFiles:
    """Files that this process serves to restic, with FUSE.

    `give_up` must make pending reads fail. `connections`: this process's open files through which they are
    served. `namespace`: the mount namespace in which only restic, and what it is wrapped in, see them.
    """

    give_up: Callable[[], None]
    connections: Collection[int] = ()
    namespace: str = ""

    @contextmanager
    def outlet(self, into: IO[bytes]) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
        """Yield a pipe whose bytes are copied into the file, and a call that gives up.

        The call comes after restic was interrupted. It breaks the pipe first: otherwise a restic that the
        interrupt did not reach would save the rest.
        """
        with _breaking(into) as (pipe, break_pipe):

            def give_up() -> None:
                break_pipe()
                self.give_up()

            yield pipe, give_up

    @contextmanager
    def reads_waiting(self, group: int) -> Iterator[None]:
        """Have restic's process group, and its namespace, end if this process dies, before a read fails.

        A process of its own has the connections open too: reads wait as long as it runs, and it ends them
        first. Raises ResticError.
        """
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb", buffering=0) as line:
            with os.fdopen(reading, "rb", buffering=0) as waiting:
                keeper = self._keeper(group, waiting)
            try:
                yield
            finally:
                with suppress(BrokenPipeError):  # somebody killed it
                    line.write(b"\n")
                if not ended_within(keeper, KEEPER_LIMIT):
                    keeper.kill()
                    keeper.wait()

    def _keeper(self, group: int, waiting: IO[bytes]) -> StartedProgram:
        environment = {**inherited(["PATH"]), "LANG": "C.UTF-8"}
        command = Command(["sh", "-c", KEEPER, "sh", str(group), self.namespace], environment)
        # Who ends all of the group later ends the keeper too; in the files' namespace it would only see them.
        setup = Setup(group=group, parent_mounts=True)
        try:
            return start_program(command, waiting, NOTHING, NOTHING, setup, self.connections)
        except OSError as error:
            raise ResticError(f"cannot start sh: {reason(error)}") from error


@contextmanager
def _breaking(into: IO[bytes]) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """Yield a pipe whose bytes are copied into the file, and a call that breaks the pipe.

    It also breaks when this process dies: a program that writes then ends. A dying process closes its files
    in the reverse order of their numbers: the pipe breaks before anything else fails that this process does
    for the program.
    """
    reading, writing = os.pipe()
    last = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 1 + max(map(int, os.listdir("/proc/self/fd"))))
    os.close(reading)
    ended = threading.Event()
    copying = threading.Thread(target=_copy, args=(last, into, ended), name="messages", daemon=True)
    with ExitStack() as stack, os.fdopen(writing, "wb", buffering=0) as pipe:
        stack.callback(os.close, last)
        copying.start()
        stack.callback(copying.join)
        stack.callback(ended.set)
        yield pipe, stack.close


def _copy(pipe: int, into: IO[bytes], ended: threading.Event) -> None:
    """Copy until the pipe's end, or until it is empty after `ended`: a wrapper may leave it open."""
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    position = 0
    while True:
        last = ended.is_set()
        if ready.poll(0 if last else COPY_POLL):
            chunk = os.read(pipe, PIPE_CHUNK)
            if not chunk:
                return
            position += os.pwrite(into.fileno(), chunk, position)
        elif last:
            return
