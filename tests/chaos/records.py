"""What a guest recorded on its disks, read from their images without the kernel: is it unbroken?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.lab import LabError
from tests.lab.guest_filesystem import CHECK_EXIT_CODES, needs_recovery
from tests.lab.programs import run_program


def problems(disks: Mapping[str, Path], consistency: str, at_least: int, at_most: int) -> Iterator[str]:
    """Tell what is wrong with a guest's disks that were saved as of one moment.

    `disks` are in the order in which it writes to them; the files are changed. Between `at_least` and
    `at_most` lies what the guest had written at that moment.
    """
    newest: dict[str, int] = {}
    for target, image in disks.items():
        if consistency == "filesystem" and needs_recovery(image):
            yield f"{target} was frozen, but its journal has to be replayed"
        try:
            run_program("e2fsck", "-f", "-p", image, accepted=CHECK_EXIT_CODES)
            lines = run_program("debugfs", "-R", "cat records", image).decode(errors="replace").split("\n")
        except LabError as error:
            yield f"{target} is no sound file system: {error.message}"
            continue
        if broken := gap(lines):
            yield f"{target}: {broken}"
        else:
            newest[target] = int(lines[-2].lstrip("b"))
    if len(newest) == len(disks):
        yield from _apart(newest, consistency, at_least, at_most)


def _apart(newest: Mapping[str, int], consistency: str, at_least: int, at_most: int) -> Iterator[str]:
    ticks = list(newest.values())
    if consistency in ("filesystem", "paused", "offline") and ticks[0] - ticks[-1] not in (0, 1):
        yield f"not of one moment: {dict(newest)}"
    if not at_least <= ticks[0] <= at_most + 1:
        yield f"not of the moment of the snapshots, which had ticks {at_least} to {at_most}: {dict(newest)}"


def gap(lines: Sequence[str]) -> str:
    """Tell where in a guest's records a line is missing or damaged, "" for nowhere.

    The newest line before a boot may be missing: the guest was destroyed before it had written it.
    """
    if len(lines) < 2 or lines[-1]:
        return f"the records end with {lines[-1:]}"
    before = -1
    for line in lines[:-1]:
        number = line.lstrip("b")
        if len(line) != 7 or not number.isdigit():
            return f"after {before}: {line!r}"
        tick = int(number)
        if line.startswith("b"):
            if before >= 0 and tick not in (before, before + 1):
                return f"after {before} a boot at {tick}"
        elif tick != before + 1:
            return f"after {before}: {tick}"
        before = tick
    return ""
