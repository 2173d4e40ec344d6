"""What it costs to show how far a backup is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from .bench import Bench, say
from .measure import Cost
from .subjects import GIB, spread, subject
from .table import HEAD, cells, markdown, median


def progress(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data, saved again: without progress, with lines, with the live view."""
    with subject(bench.lab, bench.directory, "progress", 16 * GIB, spread(16 * GIB, int(2.5 * GIB))) as made:
        contestant = bench.contestant("progress")
        contestant.empty()
        backup = contestant.node.command(
            "backup", made.name, RESTIC_BINARY=str(contestant.restic.path), PROGRESS_INTERVAL=1
        )
        contestant.run(backup)
        lines = [*backup, "--progress", "always"]
        ways: Mapping[str, Sequence[str]] = {
            "none": [*backup, "--progress", "never"],
            "a line each second": lines,
            "live view": ["env", "TERM=xterm-256color", *_on_terminal(lines)],
        }
        costs: dict[str, list[Cost]] = {way: [] for way in ways}
        for _ in range(bench.rounds):
            for way, command in ways.items():
                costs[way].append(contestant.run(command))
                say(f"progress, {way}: {costs[way][-1]}")
        contestant.remove()
    return markdown(("progress", *HEAD), [(way, *cells(median(found))) for way, found in costs.items()])


def _on_terminal(command: Sequence[str]) -> Sequence[str]:
    return ["script", "--quiet", "--return", "--command", shlex.join(command), "/dev/null"]
