"""What the commands print stands without the repository, which those who install a wheel do not have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = [*ROOT.glob("src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
PAGE = re.compile(r"\bdocs/\w")


def list_messages(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings of a module that are not docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def test_no_message_names_a_page_of_the_repository() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in SOURCES
        for node in list_messages(ast.parse(path.read_text(encoding="utf-8")))
        if PAGE.search(node.value)
    ]
    assert len(SOURCES) > 200
    assert not found
