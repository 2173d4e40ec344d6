"""main.py in surroundings that it did not choose: its own config.py, closed streams, another encoding."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .driver_node import domain_element, node_uri
from .program_node import MAIN, PYTHON, WEB, Node
from .samples import UUID

SECRET = "AQDsecretkey=="
# A locale whose encoding is not UTF-8 without the packages that legacy locales need.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            f"RESTIC_ENVIRONMENT = {{'AWS_SECRET_ACCESS_KEY': '{SECRET}}}",
            "line 1: invalid setting (SyntaxError)",
        ),
        (f"RESTIC_PASSWORD_FILE = {SECRET[:-2]}", "line 1: invalid setting (NameError)"),
        ("import sys; sys.exit(0)", "line 1: invalid setting (SystemExit)"),
    ],
)
def test_an_error_in_config_py_is_one_line_without_what_it_says(
    tmp_path: Path, line: str, shown: str
) -> None:
    program = tmp_path / "program"
    program.mkdir()
    shutil.copy(MAIN, program)
    for part in ("backup", "outputs"):
        (program / part).symlink_to(MAIN.parent / part)
    (program / "config.py").write_text(f"{line}\n")
    done = subprocess.run(
        [PYTHON, str(program / "main.py"), "list"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: {program}/config.py, {shown}",
        'hint: the file has to be Python: NAME = "value"',
    ]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_result(tmp_path: Path, closed: str) -> None:
    node = Node(tmp_path)
    node.configure()
    command = ("sh", "-c", f'exec "$@" {closed}', "sh", PYTHON, str(MAIN))
    assert node.start(("list",), command=command).returncode == 0
    assert node.start(("backup", "wbe"), command=command).returncode == 2


def test_names_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.constants["LIBVIRT_URI"] = node_uri(tmp_path / "other.xml", domain_element("web-ł", UUID), WEB[:0])
    node.configure()
    environment = {**os.environ, **ASCII, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}
    command = [PYTHON, str(MAIN), "backup", "--dry-run", "web-ł"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "web-ł" in done.stdout.decode()
