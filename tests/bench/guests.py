"""What a backup costs guests: the time that their writes take, the time that they stand still."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import rados
import rbd

from tests.lab import RbdDisk

from .bench import Bench, say
from .contestants import EXPORT, OURS, ours, rbd_export
from .subjects import GIB, POOL, spread, subject
from .table import markdown

WRITE = 4096  # bytes
PAUSE = 0.01  # seconds between two writes
IDLE = 10  # seconds of writes without a backup
RATE = 64 << 20  # bytes/s, as MAX_READ_RATE
FREEZES = 11  # of each guest: when a monitor answers varies by a second
MIB = 1 << 20


class Writer:
    """Writes as a guest's QEMU does, through librbd and without its cache, and notes how long each takes."""

    def __init__(self, image: rbd.Image) -> None:
        self._image = image
        self._random = random.Random(0)

    @contextmanager
    def noted(self) -> Iterator[list[float]]:
        """Write during the block; the seconds of each write are there after it."""
        seconds: list[float] = []
        ended = threading.Event()
        thread = threading.Thread(target=self._write, args=(seconds, ended))
        thread.start()
        try:
            yield seconds
        finally:
            ended.set()
            thread.join()

    def _write(self, seconds: list[float], ended: threading.Event) -> None:
        while not ended.wait(PAUSE):
            offset = self._random.randrange(self._image.size() // WRITE) * WRITE
            data = self._random.randbytes(WRITE)
            began = time.monotonic()
            self._image.write(data, offset)
            self._image.flush()
            seconds.append(time.monotonic() - began)


def write_latency(bench: Bench) -> str:
    """A client writes 4 KiB a hundred times a second, while an image with 2.5 GiB of data is saved."""
    with ExitStack() as stack:
        shape = (16 * GIB, spread(16 * GIB, int(2.5 * GIB)))
        made = stack.enter_context(subject(bench.lab, bench.directory, "guest", *shape))
        written = stack.enter_context(subject(bench.lab, bench.directory, "written", GIB, spread(GIB, GIB)))
        conf = {"rbd_cache": "false"}
        cluster = stack.enter_context(rados.Rados(conffile=str(bench.lab.ceph_conf), conf=conf))
        pool = stack.enter_context(cluster.open_ioctx(POOL))
        writer = Writer(stack.enter_context(rbd.Image(pool, written.name)))
        contestant = bench.contestant("guest")
        contestant.empty()
        with writer.noted() as seconds:
            time.sleep(IDLE)
        rows = [_told("no backup", seconds)]
        limited = f"{OURS}, MAX_READ_RATE {RATE >> 20} MiB/s"
        for name, rate in ((OURS, 0), (limited, RATE), (EXPORT, 0)):
            command = rbd_export(contestant, made) if name == EXPORT else ours(contestant, made, rate)
            with writer.noted() as seconds:
                contestant.run(command)
            rows.append(_told(name, seconds))
            say(f"write latency, {' '.join(rows[-1])}")
        contestant.remove()
    return markdown(("during", "writes", "median", "99 of 100 within", "longest"), rows)


def keeping(bench: Bench) -> str:
    """A client writes 4 KiB a hundred times a second into 1 GiB of data, without a snapshot and with one."""
    with ExitStack() as stack:
        written = stack.enter_context(subject(bench.lab, bench.directory, "kept", GIB, spread(GIB, GIB)))
        bench.lab.rbd("snap", "purge", "--no-progress", written.spec)
        conf = {"rbd_cache": "false"}
        cluster = stack.enter_context(rados.Rados(conffile=str(bench.lab.ceph_conf), conf=conf))
        pool = stack.enter_context(cluster.open_ioctx(POOL))
        image = stack.enter_context(rbd.Image(pool, written.name))
        writer = Writer(image)
        rows: list[Sequence[str]] = []
        for name in ("no snapshot", "a snapshot that is kept"):
            if rows:
                image.create_snap("kept")
            before = _allocated(bench)
            with writer.noted() as seconds:
                time.sleep(IDLE)
            grown = (_allocated(bench) - before) / MIB
            rows.append((*_told(name, seconds), f"{grown:.1f} MiB"))
            say(f"keeping, {' '.join(rows[-1])}")
    return markdown(("with", "writes", "median", "99 of 100 within", "longest", "space that it took"), rows)


def _allocated(bench: Bench) -> int:
    """Give the bytes that the lab's OSD has allocated."""
    socket = next((bench.lab.directory / "ceph").rglob("*osd.0*.asok"))
    command = ["ceph", "--admin-daemon", str(socket), "perf", "dump", "bluestore"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return int(json.loads(printed)["bluestore"]["bluestore_allocated"])


def _told(name: str, seconds: Sequence[float]) -> Sequence[str]:
    within = sorted(seconds)[int(0.99 * len(seconds))]
    times = (statistics.median(seconds), within, max(seconds))
    return (name, str(len(seconds)), *(f"{1000 * one:.1f} ms" for one in times))


def freeze(bench: Bench) -> str:
    """Guests with an agent, one with a disk, one with eight: how long each stands still."""
    counts = (1, 8)
    with ExitStack() as stack:
        for count in counts:
            stack.enter_context(running_guest(bench, count))
        contestant = bench.contestant("freeze")
        contestant.empty()
        frozen: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(max(FREEZES, bench.rounds)):
            for count in counts:
                name = f"bench-guest-{count}"
                contestant.run(contestant.node.command("backup", name, FREEZE="required"))
                frozen[count].append(contestant.node.report()["domains"][name]["frozen_seconds"])
                say(f"{count} disks: frozen for {frozen[count][-1]:.2f} s")
        contestant.remove()
    medians = {count: statistics.median(found) for count, found in frozen.items()}
    rows = [
        (str(count), f"{one:.2f} s", f"{max(frozen[count]):.2f} s", f"{one / medians[1]:.2f}")
        for count, one in medians.items()
    ]
    return markdown(("disks", "frozen", "longest", "to one disk"), rows)


@contextmanager
def running_guest(bench: Bench, count: int) -> Iterator[str]:
    """Have a guest with an agent and so many disks run during the block, and give its name."""
    lab, name = bench.lab, f"bench-guest-{count}"
    specs = [f"{POOL}/{name}-{number}" for number in range(count)]
    with ExitStack() as stack:
        for spec in specs:
            lab.create_image(spec, 64 * MIB)
            stack.callback(lab.delete_image, spec)
        lab.define_domain(
            name, [RbdDisk(f"vd{'abcdefgh'[number]}", spec) for number, spec in enumerate(specs)]
        )
        stack.callback(lab.undefine_domain, name)
        lab.start_domain(name, wait_for_agent=True)
        stack.callback(lab.destroy_domain, name)
        lab.wait_for_ticks(name)
        yield name
