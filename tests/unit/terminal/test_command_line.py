"""backup/terminal/command_line.py: the examples of the help work, and usage errors come with a hint."""

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
    text, _, _ = text.partition("\n\n")
    return [line.strip() for line in text.splitlines()[::2]]


@pytest.mark.parametrize("name", ["", *commands()])
def test_each_help_has_examples_that_work(name: str) -> None:
    shown = examples((commands()[name] if name else parser()).format_help())
    assert shown
    for example in shown:
        program, *arguments = shlex.split(example)
        assert program == "main.py"
        assert parsed(arguments).command == (name or (arguments or ["backup"])[0])


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("bakup web01", "unknown command bakup", "did you mean `main.py backup`?"),
        ("'web 01'", "unknown command 'web 01'", "to back up a domain of that name: main.py backup 'web 01'"),
        (
            "backup --dryrun",
            "unknown option --dryrun for `main.py backup`",
            "did you mean `main.py backup --dry",
        ),
        (
            "--dry-run",
            "unknown option --dry-run for `main.py backup`",
            "did you mean `main.py backup --dry-run`?",
        ),
        (
            "restore web --nmae=x",
            "unknown option --nmae for `main.py restore`",
            "did you mean `main.py restore --na",
        ),
        ("list web01", "unexpected argument web01 for `main.py list`", "see `main.py list --help`"),
        ("restore", "the following arguments are required: DOMAIN", "see `main.py restore --help`"),
        ("--config", "argument --config: expected one argument", "see `main.py --help`"),
        (
            "verify --sample 0",
            "argument --sample: invalid percentage '0': expected more than 0",
            "see `main.py verify --help`",
        ),
    ],
)
def test_a_usage_error_comes_with_what_was_probably_meant(
    line: str, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(shlex.split(line))
    first, second = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert first.startswith(f"error: {error}")
    assert second.startswith(f"hint: {hint}")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("files web /etc --to ''", "the argument after --to"),
        ("files web /etc --to=", "the argument after --to"),
        ("files web ''", "an argument"),
        ("files web / --key '' --json", "the argument after --key"),
        ("mount web ''", "an argument"),
        ("backup ''", "an argument"),
        ("restore web --suffix ''", "the argument after --suffix"),
        ("--config '' check", "the argument after --config"),
    ],
)
def test_an_empty_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str], line: str, what: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(shlex.split(line))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {what} is empty\nhint: is a variable of the shell unset?\n"
