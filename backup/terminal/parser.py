"""How the command line is read: what helps one who has mistyped, and how help is laid out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from .. import PROGRAM


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Begins sections as help2man knows them."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, "Usage: " if prefix is None else prefix)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and in another what was probably meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Formatter, **options})
        self._positionals.title, self._optionals.title = "Arguments", "Options"

    def error(self, message: str) -> NoReturn:
        self._end(message, f"see `{self.prog} --help`")

    def refuse(self, word: str) -> NoReturn:
        """Say that this word has no meaning for the command."""
        name = word.split("=")[0]
        near = get_close_matches(name, self._option_string_actions, 1) if name.startswith("-") else ()
        hint = f"did you mean `{self.prog} {near[0]}`?" if near else f"see `{self.prog} --help`"
        self._end(f"`{self.prog}` has no use for {shlex.quote(name)}", hint)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in (action.choices or ()):
            shown, near = shlex.quote(value), get_close_matches(value, _names(action.choices), 1)
            hint = f"to back up a domain of that name: {PROGRAM} backup {shown}; see `{PROGRAM} --help`"
            self._end(f"{shown} is no command", f"did you mean `{PROGRAM} {near[0]}`?" if near else hint)
        super()._check_value(action, value)

    def _end(self, message: str, hint: str) -> NoReturn:
        self.exit(2, f"error: {message}\nhint: {hint}\n")


def examples_text(examples: Mapping[str, str]) -> str:
    """Give the part of a help that shows examples: words, and what they do."""
    return "Examples:\n" + "\n".join(f"  {words}\n      {does}" for words, does in examples.items())


def _names(choices: Iterable[Any] | None) -> Sequence[str]:
    return [str(choice) for choice in choices or ()]
