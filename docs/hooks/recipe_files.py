"""A page with every recipe and launch file that is shipped."""

from pathlib import Path

INTRODUCTION = """# The shipped recipes

Copies of these files are in the installed package. `higgs-trainer recipes` lists and prints them, and
`higgs-trainer init` copies one with its paths filled in.
The fields are explained in the [recipe reference](recipe.md).
"""


def write_page(root: Path) -> str:
    """Return the page: a heading and a code block a file."""
    files = sorted((root / "recipes").rglob("*.yaml"), key=lambda path: (len(path.parts), path.name))
    parts = [INTRODUCTION]
    for file in files:
        name = file.relative_to(root).as_posix()
        parts.append(
            f"## `{name}` {{ #{anchor_of(name)} }}\n\n```yaml\n{file.read_text('utf-8').rstrip()}\n```\n"
        )
    return "\n".join(parts)


def anchor_of(path: str) -> str:
    """Return the anchor of a recipe's heading, for example `single_speaker`."""
    return Path(path).stem
