"""Messages, hints and help use the words of the design, and none that are retired."""

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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_and_no_help_has_a_retired_word(path: Path) -> None:
    found = [
        f"{line}: {word}" for line, text in _texts(ast.parse(path.read_text())) for word in retired_in(text)
    ]
    assert found == []


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
