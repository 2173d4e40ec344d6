"""A restic of others that has a lock in the repository: it must be neither removed nor sent a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.chaos.processes import send
from tests.chaos.repository import LOCK, Repository
from tests.chaos.violation import Violation
from tests.chaos.world import World, wait_for
from tests.lab import LabError
from tests.lab.programs import ENVIRONMENT

# The host name of one of our nodes in another PID namespace, as of a container: its PIDs mean nothing here.
APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "sh", "-c")
# Its stdin has no end.
SHARED = 'hostname "$0"; exec restic backup --stdin --stdin-filename=foreign --host=foreign'
# Its check is stopped with its lock, unless it has ended before; $1 is made once that has succeeded.
EXCLUSIVE = """hostname "$0"
locked() { ls "$RESTIC_REPOSITORY"/locks | grep -qE '^[0-9a-f]{64}$'; }
until [ -e "$1" ]; do
    restic check &
    until locked || ! kill -0 $!; do :; done
    if kill -STOP $! && sleep 0.1 && locked; then : >"$1"; else kill -KILL $!; wait $!; fi
done
wait"""
EXCLUSIVE_SECONDS = 7.0  # less than LOCK_WAIT
BACK_LIMIT = 20  # seconds until a repository that is gone is back


class Foreign:
    """One that waits, and has a lock meanwhile."""

    def __init__(self, world: World, place: Path, kind: str, host: str) -> None:
        self._place = place
        self._repository = Repository(place, world.directory)
        self._missing = ""
        before = self._locks()
        holds = world.directory / f"holds-{place.name}"
        holds.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*APART, SHARED if kind == "shared" else EXCLUSIVE, host, str(holds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **ENVIRONMENT,
                "RESTIC_REPOSITORY": str(place),
                "RESTIC_PASSWORD_FILE": str(world.directory / "password"),
                "RESTIC_CACHE_DIR": str(world.directory / "foreign-cache"),
            },
        )
        if not wait_for(lambda: self._locks() - before and (kind == "shared" or holds.exists()), 20):
            self._kill()
            raise LabError("the foreign restic has not taken its lock")
        self._taken = self._locks() - before
        self._owners = {self._owner(name) for name in self._taken}
        self._release_once = threading.Lock()

    def release(self) -> None:
        """End it, after a look at whether it and its lock are still there; only the first time counts."""
        if not self._release_once.acquire(blocking=False):
            return
        wait_for(lambda: (self._place / "locks").exists(), BACK_LIMIT)
        missing = sorted(self._taken - self._locks())
        if missing and (renewed := {name for name in self._locks() if self._owner(name) in self._owners}):
            self._taken, missing = renewed, []  # after five minutes restic's lock has another name
        if self._process.poll() is not None:
            self._missing = f"its process has ended with {self._process.returncode}"
        elif missing:
            self._missing = f"its lock {missing[0][:8]} is gone"
        self._kill()

    def violations(self) -> Iterator[Violation]:
        """Tell what has become of it."""
        if self._missing:
            yield Violation("foreign restic", f"{self._place.name}: {self._missing}")

    def _locks(self) -> set[str]:
        try:
            return {path.name for path in (self._place / "locks").iterdir() if LOCK.fullmatch(path.name)}
        except FileNotFoundError:
            return set()

    def _owner(self, name: str) -> str:
        """Give the host and the PID that a lock names, and something else for each that cannot be read."""
        try:
            lock = json.loads(self._repository.restic("cat", "lock", name, "--no-lock"))
        except LabError:
            return name
        return f"{lock['hostname']} {lock['pid']}"

    def _kill(self) -> None:
        send(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        for name in getattr(self, "_taken", ()):
            wait_for(partial(_removed, self._place / "locks" / name), BACK_LIMIT)


def _removed(path: Path) -> bool:
    """Remove a file; it may be in a repository that is read-only for a while."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@contextmanager
def foreign_locks(world: World, kind: str, host: str) -> Iterator[list[Foreign]]:
    """Have them in all repositories during the block; an exclusive one goes by itself after a while."""
    with ExitStack() as stack:
        held = [Foreign(world, place, kind, host) for place in world.places] if kind else []
        for one in held:
            stack.callback(one.release)
            if kind == "exclusive":
                timer = threading.Timer(EXCLUSIVE_SECONDS, one.release)
                timer.start()
                stack.callback(timer.join)
                stack.callback(timer.cancel)
        yield held
