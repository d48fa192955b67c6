"""The pages name files, and quote messages, that exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = (ROOT / "src", ROOT / "packages")
# Folders that a path on a page may start from.
BASES = (
    ROOT,
    ROOT / "src",
    ROOT / "src/higgs_trainer",
    ROOT / "packages/label-guard/src/label_guard",
    ROOT / "packages/higgs-trainer-demo/src/higgs_trainer_demo",
)
# The changelog is left out: it names files that have gone.
PAGES = [
    *sorted(ROOT.glob("docs/**/*.md")),
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "tests/golden/README.md")
    ),
]
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml|jinja))`")
# Messages of Python, torch or a log line with its variable part; the rest must be in our source.
OTHERS_MESSAGES = {
    "forward() got an unexpected keyword argument 'labels'",
    "CUDA out of memory",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    named = NAMED_FILE.findall(page.read_text("utf-8"))
    missing = [name for name in named if not any((base / name).exists() for base in (*BASES, page.parent))]
    assert not missing


def test_headings_of_troubleshooting_are_messages_of_the_source():
    texts = [text for source in SOURCES for file in source.rglob("*.py") for text in strings_of(file)]
    headings = re.findall(
        r"^## (.*`.*)$", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.MULTILINE
    )
    quoted = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    assert len(quoted) > 8
    for message in set(quoted) - OTHERS_MESSAGES:
        for part in (part.strip(" ,;.?'\"") for part in re.split(r"\.\.\.|\. ", message)):
            assert any(part in text for text in texts), f"no message holds {part!r}"


def test_no_message_or_help_names_a_page_by_its_file():
    """Users of the package do not have docs/. Docstrings may name it, unless they are the help of a command."""
    named = []
    for file in (ROOT / "src").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        named += [
            f"{file.name}: {node.value}"
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "docs/" in node.value
            if file.parent.name == "cli" or id(node) not in docstrings
        ]
    assert named == []


def strings_of(file):
    """Return the text of every string of a file; what varies in an f-string is left out."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value for part in node.values if isinstance(part, ast.Constant))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_that_a_page_imports_exist(page):
    imported = re.findall(
        r"^from (higgs_trainer[\w.]*|label_guard[\w.]*) import ([\w, ]+)",
        page.read_text("utf-8"),
        re.MULTILINE,
    )
    for module, names in imported:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module} has no {name.strip()}"
