"""Every error message that the package raises on purpose, collected from its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("src/higgs_trainer", "packages/label-guard/src/label_guard")
# Errors whose messages users read. ValueError and its like are about calls from Python.
ERRORS = {
    "AudioError",
    "CheckpointError",
    "LabelLeakError",
    "LossError",
    "RecipeError",
    "SaveError",
    "UserError",
}


def write_messages(root: Path) -> str:
    """Return a heading for each part of the package, with the templates of its messages below it."""
    parts = []
    for source in SOURCES:
        for folder in sorted({file.parent for file in (root / source).rglob("*.py")}):
            messages = sorted({text for file in sorted(folder.glob("*.py")) for text in _find_messages(file)})
            if messages:
                name = folder.relative_to((root / source).parent).as_posix().replace("/", ".")
                listed = "\n".join(f"- `{message}`" for message in messages)
                parts.append(f"### `{name}`\n\n{listed}\n")
    return "\n".join(parts)


def _find_messages(file: Path) -> Iterator[str]:
    """Yield the message template of each `raise` of one of `ERRORS`; a variable part is `{…}` with its expression."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        if ast.unparse(node.exc.func).rpartition(".")[2] in ERRORS:
            texts = [_read_template(argument) for argument in node.exc.args]
            message = "; ".join(text for text in texts if text)
            if any(letter.isalpha() for letter in message):
                yield message


def _read_template(node: ast.expr) -> str:
    """Return the text of a string or an f-string with its variable parts named, or an empty string for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _tidy(node.value)
    if isinstance(node, ast.JoinedStr):
        return _tidy("".join(_read_piece(piece) for piece in node.values))
    return ""


def _read_piece(piece: ast.expr) -> str:
    if isinstance(piece, ast.Constant):
        return str(piece.value)
    assert isinstance(piece, ast.FormattedValue)
    names = [part.id for part in ast.walk(piece.value) if isinstance(part, ast.Name)]
    attributes = [part.attr for part in ast.walk(piece.value) if isinstance(part, ast.Attribute)]
    name = (attributes or [one for one in names if one not in ("self", "len", "sorted", "str")] or ["value"])[
        0
    ]
    return "{" + name.strip("_") + "}"


def _tidy(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
