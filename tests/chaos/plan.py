"""What a round does, drawn from its seed alone: the commands, and the faults with their moments."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from tests.chaos.guests import GUESTS, RUNNING, WITH_AGENT

NODES = ("node-a", "node-b")
OUTPUTS = ("restic", "restic_incremental", "rbd", "directory")
INSTANT = "--instant"
OF_RESTIC = OUTPUTS[:2]
ROLES = ("main", "worker", "watchdog", "restic")  # more of them where they are, see `_roles`
REMOTE = 0.35  # of the rounds
WRAPPERS = ("", "", "", "sh", "timeout")
# When a fault comes: so many seconds after the commands were started, after a guest was recorded as about to
# be quiesced, or after a worker began to stream.
START, QUIESCED, STREAMING = "start", "quiesced", "streaming"
COMMANDS = ("backup", "restore", "verify", "drill", "cleanup")
COMMAND_WEIGHTS = (10, 3, 3, 2, 2)
SLOW = (0, 0, 8 << 20, 16 << 20)  # bytes/s, as MAX_READ_RATE


@dataclass(frozen=True)
class Order:
    """A command on a node, `after` so many seconds.

    `remote`: restic reaches its repository through a connection. `wrapper`: what starts restic, "" for us.
    """

    node: str
    words: tuple[str, ...]
    after: float
    constants: Mapping[str, Any] = field(default_factory=dict)
    remote: bool = False
    wrapper: str = ""

    @property
    def command(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        how = ", over sftp" * self.remote + (f", restic in {self.wrapper}" if self.wrapper else "")
        return f"{self.node}: {' '.join(self.words)} [{constants}{how}] after {self.after:.1f} s"


@dataclass(frozen=True)
class Fault:
    """A fault of a kind: its moment, how long it lasts, and what it hits."""

    kind: str
    moment: str
    delay: float
    seconds: float = 0
    target: tuple[str, ...] = ()
    gap: float = 0

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        target = f" of {', '.join(self.target)}" if self.target else ""
        gap = f", {1000 * self.gap:.0f} ms apart" if self.gap else ""
        return f"{self.kind}{target}{lasts}, {self.moment} + {self.delay:.2f} s{gap}"


@dataclass(frozen=True)
class Plan:
    """A round. `foreign`: the lock of another's restic that is in the repository meanwhile, "" for none.

    `further`: the runs that come when all is over.
    """

    orders: Sequence[Order]
    faults: Sequence[Fault]
    foreign: str
    further: Sequence[Order]

    def __str__(self) -> str:
        return "\n".join(
            [*map(str, self.orders), *map(str, self.faults), f"foreign lock: {self.foreign or '-'}"]
        )


def drawn(seed: int, number: int) -> Plan:
    """Draw a round: the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    remote = rng.random() < REMOTE
    orders = [_order(rng, index, number, remote) for index in range(rng.choice((1, 1, 2)))]
    if any(INSTANT in order.words for order in orders):
        orders = [*map(_of_named, orders)]
    faults = [_fault(rng, orders) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    return Plan(orders, faults, rng.choice(("", "", "shared", "exclusive")), _further(rng, orders))


def _further(rng: random.Random, orders: Sequence[Order]) -> Sequence[Order]:
    """Have each node save a part of all domains, with each output that the round's backups had."""
    names = [guest.name for guest in GUESTS]
    rng.shuffle(names)
    used = [one.constants["OUTPUT"] for one in orders if one.command == "backup"]
    parts = (names[:2], names[2:])
    return [
        Order(node, ("backup", *part), 0, {"OUTPUT": output, "WORKERS": 3}, orders[0].remote)
        for output in dict.fromkeys(used or [rng.choice(OUTPUTS)])
        for node, part in zip(NODES, parts)
    ]


def _order(rng: random.Random, index: int, number: int, remote: bool) -> Order:
    node = rng.choice(NODES)
    (command,) = rng.choices(COMMANDS, COMMAND_WEIGHTS) if index else ("backup",)
    if not index and rng.random() < 0.2:
        (command,) = rng.choices(COMMANDS, COMMAND_WEIGHTS)
    constants: dict[str, Any] = {
        "OUTPUT": rng.choice(OUTPUTS),
        "WORKERS": rng.randint(1, 3),
        "MAX_READ_RATE": rng.choice(SLOW),
    }
    words, after = (command, *_words(rng, command, number, constants["OUTPUT"])), rng.uniform(0, 3) * index
    return Order(node, words, after, constants, remote, rng.choice(WRAPPERS))


def _of_named(order: Order) -> Order:
    """Have a backup of all domains name them, so that it is none of a domain that is being restored."""
    named = order.command != "backup" or any(guest.name in order.words for guest in GUESTS)
    return order if named else replace(order, words=(*order.words, *(guest.name for guest in GUESTS)))


def _words(rng: random.Random, command: str, number: int, output: str) -> Sequence[str]:
    """Draw a command's arguments."""
    names = [guest.name for guest in GUESTS]
    if command == "backup":
        options = ["--verify"] if rng.random() < 0.1 else []
        return [*options, *([] if rng.random() < 0.5 else sorted(rng.sample(names, rng.randint(1, 3))))]
    if command == "restore":
        return _restored(rng, rng.choice(names), f"-back{number}", output)
    if command == "verify":
        return rng.choice(([], ["--sample", "30%"], [rng.choice(names)]))
    if command == "drill":
        name = rng.choice(names)
        return [name, INSTANT] if name in WITH_AGENT and rng.random() < 0.5 else [name]
    return []


def _restored(rng: random.Random, name: str, suffix: str, output: str) -> Sequence[str]:
    """Have a domain restored beside the one that was saved: its images, or all of it at once."""
    if name in RUNNING and rng.random() < 0.6:
        return [name, f"--suffix={suffix}", INSTANT, f"--name={name}{suffix}", "--new-uuid"]
    return [name, f"--suffix={suffix}", *(["--clone"] if output == "rbd" and rng.random() < 0.5 else [])]


def _fault(rng: random.Random, orders: Sequence[Order]) -> Fault:
    possible = [kind for kind in KINDS if orders[0].remote or kind != CONNECTION_CUT]
    (kind,) = rng.choices(possible, [KINDS[kind][0] for kind in possible])
    moments = {QUIESCED: 4, STREAMING: 3, START: 3}
    if not any(order.command == "backup" for order in orders):
        moments = {START: 1}
    (moment,) = rng.choices([*moments], [*moments.values()])
    # a guest is quiesced for 0.2 s where the monitors answer at once, for more than one where they do not
    delay = {QUIESCED: 1.2 * rng.random() ** 3, STREAMING: rng.uniform(0, 3), START: rng.uniform(0, 7)}[
        moment
    ]
    fault = KINDS[kind][1](rng, kind, moment, delay)
    return replace(fault, target=_roles(rng, orders)) if kind in SIGNALS else fault


def _roles(rng: random.Random, orders: Sequence[Order]) -> tuple[str, ...]:
    """Draw who gets a signal, in which order."""
    roles = [*ROLES]
    outputs = {order.constants["OUTPUT"] for order in orders}
    if "restic_incremental" in outputs:
        roles.append("keeper")
    if "directory" in outputs:
        roles.append("qemu-nbd")
    if any(order.wrapper for order in orders):
        roles.append("wrapper")
    if orders[0].remote:
        roles.append("sftp-server")
    return tuple(rng.sample(roles, rng.choice((1, 1, 1, 2, 2, 3, 4))))


def _of_processes(rng: random.Random, kind: str, moment: str, delay: float) -> Fault:
    seconds = rng.choice((2.0, 6.0, 14.0, 30.0)) if kind == "SIGSTOP" else 0.0
    gap = rng.choice((0, rng.uniform(0, 0.05), rng.uniform(0, 1)))
    return Fault(kind, moment, delay, seconds, gap=gap)


def _for_a_while(*lengths: float) -> Callable[[random.Random, str, str, float], Fault]:
    def draw(rng: random.Random, kind: str, moment: str, delay: float) -> Fault:
        return Fault(kind, moment, delay, rng.choice(lengths) * rng.uniform(0.7, 1.3))

    return draw


def _of_guest(names: Sequence[str], *lengths: float) -> Callable[[random.Random, str, str, float], Fault]:
    def draw(rng: random.Random, kind: str, moment: str, delay: float) -> Fault:
        return Fault(kind, moment, delay, rng.choice(lengths or (0.0,)), (rng.choice(names),))

    return draw


EVERY = [guest.name for guest in GUESTS]
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGTERM")
CONNECTION_CUT = "connection cut"  # only where there is a connection
# kind -> how often, and what draws the rest of it. Lengths of 0 last to the end of the round; a connection is
# then cut once.
KINDS: Mapping[str, tuple[int, Callable[[random.Random, str, str, float], Fault]]] = {
    "SIGKILL": (10, _of_processes),
    "SIGSTOP": (6, _of_processes),
    "SIGTERM": (5, _of_processes),
    "osd stopped": (3, _for_a_while(*3 * (1, 4, 9, 20), 46)),
    "monitor stopped": (3, _for_a_while(1, 4, 9, 20, 45)),
    "osd killed": (2, _for_a_while(0.3, 4)),
    "libvirtd restarted": (2, _for_a_while(0.2, 3)),
    "libvirtd stopped": (2, _for_a_while(*3 * (1, 5, 15), 46)),
    "agent stopped": (3, _of_guest(WITH_AGENT, 2.0, 6.0, 15.0)),
    "agent killed": (2, _of_guest(WITH_AGENT, 2.0, 6.0)),
    "repository full": (2, _for_a_while(2, 6, 15)),
    "repository read-only": (2, _for_a_while(2, 6, 15)),
    "repository gone": (2, _for_a_while(1, 5, 15)),
    CONNECTION_CUT: (16, _for_a_while(0, 0, 3, 8, 20)),
    "domain destroyed": (2, _of_guest(RUNNING)),
    "domain undefined": (2, _of_guest(EVERY)),
    "disk detached": (2, _of_guest(["twin", "cold"])),
    "admin's snapshot": (2, _of_guest(EVERY)),
    "snapshot removed": (2, _of_guest(EVERY)),
}
