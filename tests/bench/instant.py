"""How soon a lost guest writes again, and is on its images alone: instantly, or restored first."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab import RbdDisk
from tests.lab.sample import make_image

from .bench import Bench, say
from .contestants import Contestant
from .subjects import GIB, POOL, spread
from .table import markdown

NAME = "bench-lost"
DISKS = {"vda": f"{POOL}/{NAME}-root", "vdb": f"{POOL}/{NAME}-data"}
ROOT = 256 << 20  # bytes
SIZES = ((GIB, GIB // 4), (16 * GIB, int(2.5 * GIB)))  # of the second disk, and of its data
WAYS = {"restore --define --start": ("--define", "--start"), "restore --instant": ("--instant",)}
POLL = 0.02


@dataclass(frozen=True)
class Course:
    """In seconds: until the guest has written, until the command has ended, its pause. Bytes in use."""

    writes: float
    whole: float
    paused: float
    used: int


def instant(bench: Bench) -> str:
    """A guest is lost, and writes again: for two sizes, both ways."""
    rows = []
    for size, data in SIZES:
        with _lost_guest(bench, size, data) as contestant:
            found: dict[str, list[Course]] = {name: [] for name in WAYS}
            for number in range(bench.rounds):
                for name, options in WAYS.items():
                    course = _course(bench, contestant, options)
                    found[name].append(course)
                    say(f"instant, {size >> 30} GiB, round {number + 1}: {name}: {course}")
        plain = statistics.median(one.whole for one in found["restore --define --start"])
        for name, courses in found.items():
            whole = statistics.median(one.whole for one in courses)
            rows.append(
                (
                    f"{size >> 30} GiB, {data / GIB:.2f} GiB of data",
                    name,
                    f"{statistics.median(one.writes for one in courses):.1f} s",
                    f"{whole:.1f} s",
                    f"{whole / plain:.2f}",
                    f"{max(one.paused for one in courses):.2f} s",
                    f"{max(one.used for one in courses) / GIB:.2f} GiB",
                )
            )
    head = ("disk", "way", "writes after", "whole", "to plain", "longest pause", "in use afterwards")
    return markdown(head, rows)


@contextmanager
def _lost_guest(bench: Bench, size: int, data: int) -> Iterator[Contestant]:
    """Have a guest that is saved, and lost."""
    lab = bench.lab
    lab.create_image(DISKS["vda"], ROOT)
    make_image(lab, DISKS["vdb"], size, spread(size, data))
    lab.define_domain(NAME, [RbdDisk(target, image) for target, image in DISKS.items()])
    lab.start_domain(NAME, wait_for_agent=True)
    lab.wait_for_ticks(NAME)
    contestant = bench.contestant(f"instant {size}")
    contestant.empty()
    images = bench.directory / f"sockets-{size}"
    images.mkdir(mode=0o711)
    contestant.node.constants["DRILL_DIR"] = str(images)
    contestant.run(contestant.node.command("backup", NAME))
    _lose(bench)
    yield contestant
    contestant.remove()


def _course(bench: Bench, contestant: Contestant, options: Sequence[str]) -> Course:
    """Restore the guest, and lose it again."""
    lab, began = bench.lab, time.monotonic()
    command = contestant.node.command("restore", NAME, *options)
    with subprocess.Popen(
        command, env=contestant.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        writes = whole = 0.0
        while not (writes and whole):
            if not whole and process.poll() is not None:
                whole = time.monotonic() - began
            if not writes and lab.ticks(NAME):
                writes = time.monotonic() - began
            if process.returncode:
                break
            time.sleep(POLL)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(options)}: {output}")
    paused = re.search(r"the guest was paused for ([\d.]+) s", output)
    used = sum(_used(bench, image) for image in DISKS.values())
    _lose(bench)
    return Course(writes, whole, float(paused[1]) if paused else 0.0, used)


def _used(bench: Bench, image: str) -> int:
    (found,) = json.loads(bench.lab.rbd("du", "--format", "json", image))["images"]
    return int(found["used_size"])


def _lose(bench: Bench) -> None:
    """Remove the guest with all that it has."""
    lab = bench.lab
    lab.destroy_domain(NAME)
    lab.undefine_domain(NAME)
    for image in DISKS.values():
        lab.delete_image(image)
    lab.console_log(NAME).unlink()
