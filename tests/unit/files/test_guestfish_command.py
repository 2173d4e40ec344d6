"""backup/files/guestfish_command.py: what a guest has chosen is one argument, whatever it is."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.files.guestfish import Guestfish
from backup.files.guestfish_command import LINE_LIMIT, Command, is_device, quoted
from backup.files.session import session

from ..raising import raises

FAKE = (sys.executable, str(Path(__file__).with_name("fake_guestfish.py")))
PROGRAMS = [FAKE, ("guestfish", "--ro", "--keys-from-stdin")]
HOSTILE = [
    b"x |id >executed",
    b"| id >executed",
    b"!id >executed",
    b"<!echo !id >executed",
    b"a\n!id >executed\n",
    b"a\r\n-!id >executed",
    b'" |id >executed "',
    b"' |id >executed '",
    b"\\",
    b'\\" |id >executed',
    b"\\x22 |id >executed",
    b"~root",
    b"$(id >executed)`id >executed`",
    b"win:c:\\x",
    b"#",
    b"",
    b" ",
    b"-",
    b"a:b",
    b"\x85\xe2\x80\xa8 |id >executed",
    *(random.Random(seed).randbytes(300).replace(b"\0", b"|") for seed in range(20)),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=["fake", "guestfish"])
def test_an_argument_is_what_it_was_whatever_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Sequence[str]
) -> None:
    if not shutil.which(program[0]):
        pytest.skip("guestfish is not installed")
    monkeypatch.chdir(tmp_path)
    with session(Guestfish, program, lambda: None) as running:
        for argument in HOSTILE:
            assert (
                running.ask(Command("echo", b"before", argument, b"after")) == b"before %s after\n" % argument
            )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=["fake", "guestfish"])
def test_the_longest_line_is_one_command_and_a_longer_one_is_not_sent(program: Sequence[str]) -> None:
    if not shutil.which(program[0]):
        pytest.skip("guestfish is not installed")
    longest = b"a" * (LINE_LIMIT - len('echo ""'))
    with session(Guestfish, program, lambda: None) as running:
        assert running.ask(Command("echo", longest)) == longest + b"\n"
        assert running.ask(Command("echo", b"next")) == b"next\n"
    with raises("a path is too long for guestfish"):
        Command("echo", longest + b"a")


def test_paths_are_quoted_byte_by_byte() -> None:
    assert quoted(b"/a/b-c_d.e") == '"/a/b-c_d.e"'
    assert quoted('/ä "\\\n'.encode()) == '"/\\xc3\\xa4\\x20\\x22\\x5c\\x0a"'
    with raises("a path has a NUL in it, which no file system allows"):
        quoted(b"a\0b")


@pytest.mark.parametrize("name", ["", "!id", "-!id", "<!id", "vfs-type x", "echo\n!id", "|id"])
def test_a_name_is_no_command_of_the_shell(name: str) -> None:
    with pytest.raises(BackupError):
        Command(name)


@pytest.mark.parametrize("key", ["a\nb", "\n", "a\0"])
def test_a_key_is_one_line(key: str) -> None:
    with pytest.raises(BackupError):
        Command("luks-open-ro", b"/dev/sda", b"opened", key=key)


def test_a_line_of_text_is_no_command() -> None:
    with session(Guestfish, FAKE, lambda: None) as running, pytest.raises(AttributeError):
        running.ask("echo x")  # type: ignore[arg-type]


def test_names_of_devices() -> None:
    for good in (
        "/dev/sda",
        "/dev/sda12",
        "/dev/md127",
        "/dev/md/web:0",
        "/dev/mapper/a--b-c",
        "/dev/vg/l+v.1",
    ):
        assert is_device(good)
    for bad in ("", "/dev/", "/dev/vg/x |id", "/dev/vg/x\n", "/dev/vg/ä", "/dev/vg/x\ty", '/dev/vg/"', "sda"):
        assert not is_device(bad)
