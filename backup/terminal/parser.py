"""argparse with errors of one line and a hint, and the layout of the help."""

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
    """Reports a usage error in one line, and what was probably meant in another."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Formatter, **options})
        self._positionals.title, self._optionals.title = "Arguments", "Options"

    def error(self, message: str) -> NoReturn:
        self._end(message, f"see `{self.prog} --help`")

    def refuse(self, argument: str) -> NoReturn:
        """End with the error that the command does not know this argument."""
        name = argument.split("=")[0]
        is_option = name.startswith("-")
        near = get_close_matches(name, self._option_string_actions, 1) if is_option else ()
        hint = f"did you mean `{self.prog} {near[0]}`?" if near else f"see `{self.prog} --help`"
        kind = "unknown option" if is_option else "unexpected argument"
        self._end(f"{kind} {shlex.quote(name)} for `{self.prog}`", hint)

    def refuse_empty(self, option: str) -> NoReturn:
        """End with the error that an argument is empty, the one after this option if there is one."""
        what = f"the argument after {option}" if option else "an argument"
        self._end(f"{what} is empty", "is a variable of the shell unset?")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in (action.choices or ()):
            shown, near = shlex.quote(value), get_close_matches(value, _names(action.choices), 1)
            hint = f"to back up a domain of that name: {PROGRAM} backup {shown}; see `{PROGRAM} --help`"
            self._end(f"unknown command {shown}", f"did you mean `{PROGRAM} {near[0]}`?" if near else hint)
        super()._check_value(action, value)

    def _end(self, message: str, hint: str) -> NoReturn:
        self.exit(2, f"error: {message}\nhint: {hint}\n")


def examples_text(examples: Mapping[str, str]) -> str:
    """Give the part of a help that shows examples: commands, and what they do."""
    return "Examples:\n" + "\n".join(f"  {command}\n      {does}" for command, does in examples.items())


def _names(choices: Iterable[Any] | None) -> Sequence[str]:
    return [str(choice) for choice in choices or ()]
