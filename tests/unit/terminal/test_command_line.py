"""terminal/command_line.py: what the help says is so, and wrong words are answered with the right ones."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

import pytest

from backup.terminal.command_line import parsed, parser


def commands() -> Mapping[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser()._actions if action.dest == "command"]
    return dict(found[0] or {})


def examples(help_text: str) -> list[str]:
    _, _, text = help_text.partition("Examples:\n")
    return [line.strip() for line in text.splitlines()[::2]]


@pytest.mark.parametrize("name", ["", *commands()])
def test_each_help_has_examples_and_they_can_be_used(name: str) -> None:
    shown = examples((commands()[name] if name else parser()).format_help())
    assert shown
    for example in shown:
        program, *words = shlex.split(example)
        assert program == "main.py"
        assert parsed(words).command == (name or (words or ["backup"])[0])


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("bakup web01", "bakup is no command", "did you mean `main.py backup`?"),
        ("'web 01'", "'web 01' is no command", "to back up a domain of that name: main.py backup 'web 01'"),
        ("backup --dryrun", "`main.py backup` has no use for --dryrun", "did you mean `main.py backup --dry"),
        (
            "--dry-run",
            "`main.py backup` has no use for --dry-run",
            "did you mean `main.py backup --dry-run`?",
        ),
        (
            "restore web --nmae=x",
            "`main.py restore` has no use for --nmae",
            "did you mean `main.py restore --na",
        ),
        ("list web01", "`main.py list` has no use for web01", "see `main.py list --help`"),
        ("restore", "the following arguments are required: DOMAIN", "see `main.py restore --help`"),
        ("--config", "argument --config: expected one argument", "see `main.py --help`"),
        ("verify --sample 0", "argument --sample: '0' is no percentage: more", "see `main.py verify --help`"),
    ],
)
def test_wrong_words_end_with_what_was_probably_meant(
    words: str, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(shlex.split(words))
    first, second = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert first.startswith(f"error: {error}")
    assert second.startswith(f"hint: {hint}")
