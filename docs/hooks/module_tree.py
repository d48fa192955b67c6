"""The layout of the source tree with one line a module, taken from the modules' docstrings."""

import ast
import tomllib
from pathlib import Path

PACKAGES = ("src/higgs_trainer", "packages/label-guard/src/label_guard")


def write_tree(root: Path) -> str:
    """Return a Markdown list for every package: folders are nested, and each module has its summary line."""
    parts = []
    for package in PACKAGES:
        parts.append(f"### `{Path(package).name}`\n\n{read_summary(root / package / '__init__.py')}\n")
        parts.append("\n".join(_list_folder(root / package, depth=0)))
    return "\n".join(parts)


def write_layers(root: Path) -> str:
    """Return the order in which packages may import each other, from the contract of import-linter."""
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    lines, line = [], ""
    for layer in layers:
        text = layer.strip("()") if not line and not lines else f" > {layer.strip('()')}"
        if len(line) + len(text) > 100:
            lines.append(line)
            line = f"    {text.lstrip()}"
        else:
            line += text
    return "```text\n" + "\n".join([*lines, line]) + "\n```"


def read_summary(file: Path) -> str:
    """Return the first paragraph of a module's docstring on one line, or an empty string."""
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("<", "&lt;")


def _list_folder(folder: Path, depth: int) -> list[str]:
    lines = []
    indent = "    " * depth
    for child in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        if child.is_dir() and (child / "__init__.py").is_file():
            lines.append(f"{indent}- **`{child.name}/`** {read_summary(child / '__init__.py')}")
            lines += _list_folder(child, depth + 1)
        elif child.suffix == ".py" and not child.name.startswith("__"):
            lines.append(f"{indent}- `{child.name}` {read_summary(child)}")
    return lines
