"""The page as a browser shows it: in a light and a dark window, and on a phone. Its pictures are in pytest's
temporary directory (--basetemp), for inspection."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.report.page import page
from backup.report.past_runs import past_runs

from ..browser import Browser, browser
from ..past_reports import NOW, keep, names, night

FORMS = {  # width, height, what is preferred
    "light": (1280, 900, "light"),
    "dark": (1280, 900, "dark"),
    "phone": (360, 740, "light"),
    "dark phone": (360, 740, "dark"),
}
GROUNDS = {"light": (0xF6, 0xF7, 0xF8), "dark": (0x12, 0x14, 0x17)}  # --page
LONG = "a_name_that_has_no_end_" * 10


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    nights = [night([*names(12), LONG], days_ago, 0.1) for days_ago in range(3)]
    for domain in nights[0]["domains"][:2]:
        domain.update(status="failed", reason=f"cannot read vms/{LONG}", hint=f"rbd status vms/{LONG}")
    path = directory / "report.html"
    path.write_bytes(page([past_runs(keep(directory, *nights), "", NOW.date())], NOW))
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as chromium:
        yield chromium


@pytest.mark.parametrize("form", FORMS)
def test_the_page_is_readable_at_every_size_and_in_both_colour_schemes(
    chromium: Browser, file: Path, form: str
) -> None:
    width, height, scheme = FORMS[form]
    chromium.look_like(width, height, scheme, phone=width < 600)
    chromium.open(file)
    assert chromium.value("document.scrollingElement.scrollWidth <= innerWidth"), "nothing beside the window"
    assert chromium.value("innerWidth") == width
    picture = file.with_name(f"{form}.png")
    chromium.screenshot(picture)
    assert corner(picture) == GROUNDS[scheme]
    # What is too wide scrolls in a frame of its own, whose newest day is in sight
    assert chromium.value(BESIDE_THEIR_FRAMES) == []
    assert chromium.value(NEWEST_DAY_IN_SIGHT)
    assert chromium.value(LABELS_BEYOND_BARS) == []


BESIDE_THEIR_FRAMES = """
    [...document.querySelectorAll("h1, h2, p, dl, li, .key, .scroll")]
        .filter(one => !one.parentElement.closest(".scroll"))
        .filter(one => one.getBoundingClientRect().right > innerWidth
            || (one.scrollWidth > one.clientWidth + 1 && !one.matches(".scroll")))
        .map(one => one.outerHTML.slice(0, 80))"""
NEWEST_DAY_IN_SIGHT = """
    document.querySelector(".calendar tbody tr").lastElementChild.getBoundingClientRect().right
        <= document.querySelector(".calendar").parentElement.getBoundingClientRect().right"""
LABELS_BEYOND_BARS = """
    [...document.querySelectorAll(".timeline g g text")]
        .filter(label => label.getBoundingClientRect().right
            > label.parentElement.querySelector(".edge").getBoundingClientRect().right)
        .map(label => label.textContent)"""


def corner(path: Path) -> tuple[int, ...]:
    """Give the colour of a PNG's first pixel, which no filter can have changed (RFC 2083, 6: left and above
    of it are zeros)."""
    content, at, pixels = path.read_bytes(), 8, b""
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        pixels += content[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return tuple(zlib.decompress(pixels)[1:4])
