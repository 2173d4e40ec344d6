"""README.md and res/docs: links and commands are valid, and everything with a name is explained."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import config
from backup.terminal import command_line
from main import COMMANDS
from tests.constants_table import PAGE, page
from tests.retired_words import retired_in

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TROUBLESHOOTING = ROOT / "res/docs/troubleshooting.md"
MANUAL = sorted((ROOT / "res/docs").glob("*.md"))
PAGES = [README, *MANUAL, ROOT / "tests/README.md", ROOT / "CHANGELOG.md"]
# What else an admin reads.
SUFFIXES = ("", ".py", ".conf", ".service", ".timer", ".yml", ".json")
TEXTS = [
    ROOT / "config.py",
    ROOT / "debian/control",
    *sorted(path for path in (ROOT / "res").rglob("*") if path.is_file() and path.suffix in SUFFIXES),
]
VARIES = re.compile(r"\.\.\.|: |\b(?:NAME|SIGKILL|leftover|pyfuse3|restic)\b")
OF_OTHERS = {  # Ceph's and restic's messages
    "",
    "cannot send after transport endpoint shutdown",
    "connection timed out",
    "disk quota exceeded",
    "no space left on device",
    "no such file or directory",
    "operation not permitted",
    "read-only file system",
    "unable to open config file",
    "wrong password",
}
COMMAND = re.compile(r"\s*(?:/usr/bin/python3 /opt/virt-rbd-backup/)?(?:main\.py|virt-rbd-backup)(?: |$)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(paths: Sequence[Path]) -> str:
    return "\n".join(path.read_text() for path in paths)


def anchors(path: Path) -> set[str]:
    """Give what a page's headings are called in links, as GitHub does it."""
    return {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in path.read_text().splitlines()
        if line.startswith("#")
    }


def blocks(path: Path, language: str) -> Iterator[str]:
    for indent, block in re.findall(
        rf"^( *)```{language}\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE
    ):
        yield textwrap.dedent(block) if indent else block


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        leads_to = (path.parent / place).resolve() if place else path
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


def test_the_readme_leads_to_every_page() -> None:
    links = re.findall(r"\]\((res/docs/[^)#]+)\)", README.read_text())
    assert {named(path) for path in MANUAL} == set(links)


def test_the_help_names_the_manual() -> None:
    assert command_line.parser().format_help().rstrip().endswith(f"Manual: {ROOT / 'res/docs'}")


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.read_text().splitlines()) <= 170


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_blocks_of_shell_parse(path: Path) -> None:
    for block in blocks(path, "sh"):
        done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_blocks_of_python_parse(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, named(path), "exec")


@pytest.mark.parametrize("path", [README, *MANUAL], ids=named)
def test_commands_have_these_options(path: Path) -> None:
    lines = "\n".join(blocks(path, "sh")).splitlines()
    for line in filter(COMMAND.match, lines):
        words = shlex.split(line, comments=True)
        command_line.parsed(words[2:] if words[0].endswith("python3") else words[1:])


@pytest.mark.parametrize("path", MANUAL, ids=named)
def test_a_page_begins_with_a_command(path: Path) -> None:
    assert re.match(r"# .+\n\n```sh\n", path.read_text())


def test_a_directory_that_is_missing_keeps_no_service_from_starting() -> None:
    """Without "-" systemd does not start the program, which then notifies nobody."""
    texts = [path.read_text() for path in (*MANUAL, *(ROOT / "res").glob("virt-rbd-backup*.service"))]
    listed = [line for text in texts for line in re.findall(r"ReadWritePaths=([^`\n]+)", text)]
    assert len(listed) > 10
    assert [path for line in listed for path in line.split() if not path.startswith("-")] == []


def test_no_page_has_a_command_follow_the_cleanup_of_the_service() -> None:
    """That is the unit's last one. After one that fails, systemd leaves out the others."""
    blocks_of_units = [block for path in MANUAL for block in blocks(path, "ini")]
    assert [block for block in blocks_of_units if "ExecStopPost=" in block] == []


def test_without_root_each_service_of_the_plain_settings_gets_the_drop_in_or_is_named() -> None:
    """They share directories, which systemd gives to the user of the one that started last."""
    section = (ROOT / "res/docs/install.md").read_text().split("\n## Without root\n")[1]
    for kind in ("", "-thaw", "-copy"):
        assert f"/virt-rbd-backup{kind}.service.d /opt" in section
    assert "`virt-rbd-backup-drill.timer`" in section


def test_the_table_of_constants_is_that_of_config_py() -> None:
    assert PAGE.read_text() == page(PAGE.read_text()), "run: python3 -m tests.constants_table"


def test_every_constant_is_explained() -> None:
    manual = text_of([README, *MANUAL])
    known = [name for name in vars(config) if name.isupper()]
    assert [name for name in known if f"| `{name}` | `" not in manual] == []


def test_every_command_is_explained() -> None:
    readme = README.read_text()
    assert [
        name
        for name in COMMANDS
        if not re.search(rf"^\| .*`virt-rbd-backup {name}[` ]", readme, re.MULTILINE)
    ] == []


@pytest.mark.parametrize("path", [README, TROUBLESHOOTING], ids=named)
def test_every_exit_code_is_explained(path: Path) -> None:
    codes = command_line.parser().format_help().split("Exit codes:")[1].split("\n\n")[0]
    known = re.findall(r"\d+", " ".join(re.findall(r"^ +(\d[\d, ]*?)  ", codes, re.MULTILINE)))
    rows = re.findall(r"\d+", " ".join(re.findall(r"^\| (\d[\d, ]*) \|", path.read_text(), re.MULTILINE)))
    assert "11" in known
    assert rows == known


@pytest.mark.parametrize("path", [*PAGES, *TEXTS], ids=named)
def test_no_retired_word_is_used(path: Path) -> None:
    assert list(retired_in(path.read_text())) == []


def test_the_messages_that_are_explained_are_those_of_the_program() -> None:
    """What varies in a message is written as `...`; NAME, SIGKILL, leftover and programs vary too."""
    texts = "\n".join(source_texts())
    rows = [line for line in TROUBLESHOOTING.read_text().splitlines() if line.startswith("| `")]
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    parts = {part.strip(" :;,()") for quote in quoted for part in VARIES.split(quote)}
    assert sorted(part for part in parts - OF_OTHERS if part not in texts) == []
    assert len(quoted) > 50


def source_texts() -> Iterator[str]:
    """Yield the program's texts, what is filled in left out."""
    for path in [ROOT / "main.py", *(ROOT / "backup").rglob("*.py"), *(ROOT / "outputs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values
                )
