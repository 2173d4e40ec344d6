"""Messages, hints, help and names in the code have the words of the design, and none that are retired."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.retired_words import retired_in

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "main.py",
    *sorted((ROOT / "backup").rglob("*.py")),
    *sorted((ROOT / "outputs").rglob("*.py")),
]

# Each of them was several things at once.
RETIRED_IN_NAMES = {
    *(
        "go",
        "heard",
        "held",
        "kept",
        "look",
        "looks",
        "mend",
        "passing",
        "patience",
        "patient",
        "stand",
        "stands",
    ),
    *("standstill", "tell", "tells", "told", "whom", "words"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_and_no_help_has_a_retired_word(path: Path) -> None:
    found = [
        f"{line}: {word}" for line, text in _texts(ast.parse(path.read_text())) for word in retired_in(text)
    ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_has_a_retired_word(path: Path) -> None:
    names = {
        name for name in _names(ast.parse(path.read_text())) if RETIRED_IN_NAMES & {*name.lower().split("_")}
    }
    assert names == set()


def _names(tree: ast.AST) -> Iterator[str]:
    """Yield the names of all that is defined or assigned to."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of all strings that a user may read: those with a blank, but for docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            text = str(node.value)
            yield from [(node.lineno, text)] if " " in text else []
