"""How soon the first byte of an image is read."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from .bench import Bench, say
from .subjects import GIB, spread, subject
from .table import markdown

# Stands before restic: when the first byte of an image is there, notes the time.
NOTING = """#!/usr/bin/python3
import os, select, sys, time
if "--stdin" in sys.argv and any(word.startswith("--tag=disk=") for word in sys.argv):
    select.select([0], [], [])
    with open({notes!r}, "a") as notes:
        print(time.time(), file=notes)
os.execvp({restic!r}, [{restic!r}, *sys.argv[1:]])
"""


def starts(bench: Bench) -> str:
    """From the start of the program to the first byte."""
    with subject(bench.lab, bench.directory, "start", GIB, spread(GIB, GIB // 8)) as made:
        contestant = bench.contestant("start")
        contestant.empty()
        notes = bench.directory / "first-bytes"
        restic = _noting(bench, notes)
        first = []
        for _ in range(max(3, bench.rounds)):
            began = time.time()
            contestant.run(contestant.node.command("backup", made.name, RESTIC_BINARY=str(restic)))
            first.append(float(notes.read_text().split()[-1]) - began)
        say(f"first byte: {first}")
        contestant.remove()
    rows = [("first byte of an image", f"{statistics.median(first):.2f} s", f"{max(first):.2f} s")]
    return markdown(("from the start to", "median", "longest"), rows)


def _noting(bench: Bench, notes: Path) -> Path:
    path = bench.directory / "noting-restic"
    path.write_text(NOTING.format(notes=str(notes), restic=bench.restic))
    path.chmod(0o755)
    return path
