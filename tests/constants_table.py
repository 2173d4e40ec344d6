"""Makes the manual's table of constants from config.py: python3 -m tests.constants_table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "res/docs/configuration.md"
BEGIN = "<!-- made from config.py by `python3 -m tests.constants_table` -->\n"
END = "<!-- end of what is made from config.py -->\n"


class Constant(NamedTuple):
    """A constant as config.py declares it: its default as Python, its comment in one line."""

    section: str
    name: str
    default: str
    meaning: str


def constants(source: str) -> Iterator[Constant]:
    """Yield the constants in order. One without a comment of its own shares that of the line before it."""
    section, comment, ended = "", [""], True
    for line in source.splitlines():
        if heading := re.match(r"# --- (.*?) -+$", line):
            section = heading[1]
        elif line.startswith("# "):
            comment, ended = ([] if ended else comment) + [line[2:]], False
        elif assigned := re.match(r"([A-Z_]+) = (.*)$", line):
            ast.literal_eval(assigned[2])  # on one line
            yield Constant(section, assigned[1], assigned[2], " ".join(comment))
            ended = True


def table(known: Sequence[Constant]) -> str:
    """Give a Markdown table for each section of config.py."""
    names = "|".join(one.name for one in known)
    code = re.compile(rf'`[^`]*`|\[[^\]]*\]|"[^"]*"|\b(?:{names})\b')
    lines, section = [], ""
    for one in known:
        if one.section != section:
            section = one.section
            lines += ["", f"### {section}", "", "| constant | default | meaning |", "| --- | --- | --- |"]
        meaning = code.sub(lambda found: f"`{found[0].strip('`')}`", one.meaning).replace("|", "\\|")
        lines.append(f"| `{one.name}` | `{one.default}` | {meaning} |")
    return "\n".join([*lines, "", ""])


def page(text: str) -> str:
    """Give the page's text with the table of today's config.py in it."""
    head, rest = text.split(BEGIN)
    made = table(list(constants((ROOT / "config.py").read_text())))
    return f"{head}{BEGIN}{made}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
