"""The main part's medians as a bar chart."""

from __future__ import annotations

from pathlib import Path

from .bench import FIRST, REPEATED, Costs
from .contestants import LIMIT, OURS

COLOURS = {FIRST: "#9ecae1", REPEATED: "#3182bd"}
HEIGHT = 0.38  # of a bar


def draw(costs: Costs, path: Path) -> None:
    """Write a PNG: a bar per contestant and kind of backup, and the limit as a line."""
    import matplotlib  # takes a second, and only this part needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({name for _, name in costs}, key=lambda name: -costs[REPEATED, name].seconds)
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for offset, kind in ((HEIGHT / 2, FIRST), (-HEIGHT / 2, REPEATED)):
        seconds = [costs[kind, name].seconds for name in names]
        places = [number + offset for number in range(len(names))]
        bars = axes.barh(places, seconds, HEIGHT, color=COLOURS[kind], label=kind)
        axes.bar_label(bars, [f"{one:.1f} s" for one in seconds], padding=3)
    axes.axvline(costs[REPEATED, LIMIT].seconds, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    axes.set_xlabel("seconds; dashed: what restic alone takes for the same bytes in a local file, repeated")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.legend(title="backup", frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
