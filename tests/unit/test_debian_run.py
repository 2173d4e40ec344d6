"""tests/debian/run names the releases that it knows, and does nothing for others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "debian" / "run"


def ran(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the first argument has to be a release of Debian"),
        (["--demo"], "the first argument has to be a release of Debian"),
        (["--directory", "/srv", "13"], "the first argument has to be a release of Debian"),
        (["tests/unit"], '"tests/unit" is no release that this knows'),
        (["14", "--demo"], '"14" is no release that this knows'),
        (["sid", "--directory"], '"" is no directory for --directory'),
    ],
)
def test_a_release_or_directory_that_cannot_be_used_is_an_error_of_usage(
    arguments: list[str], error: str
) -> None:
    code, printed, complaint = ran(*arguments)
    assert (code, printed) == (2, "")
    first, second = complaint.splitlines()
    assert first == f"error: {error}"
    assert second.startswith("hint: name ")


@pytest.mark.parametrize("arguments", [["--help"], ["13", "--help"], ["sid", "-h"]])
def test_the_help_names_the_releases(arguments: list[str]) -> None:
    code, printed, complaint = ran(*arguments)
    assert (code, complaint) == (0, "")
    assert "RELEASE is 13 (trixie), or sid" in printed
