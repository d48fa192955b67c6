"""The recipe reference, read from the source of the classes that define the recipe."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INTRODUCTION = """# Recipe reference

A recipe is a YAML file with the sections below. This page is generated from the classes that read it
(`higgs_trainer/recipe/schema.py`, `training_section.py`).

- Fields without a default are required.
- An unknown key is an error, and so is a value of the wrong type. All problems of a recipe are reported together.
- Paths are relative to the recipe.
- Every field can be set on the command line: `--training.learning_rate 5e-5`, or `--learning_rate 5e-5` where only one
  section has such a field.
- The output folder keeps `recipe.yaml`, the complete recipe that ran, defaults included.

`higgs-trainer recipe-schema` prints a JSON schema, with which an editor completes and checks a recipe.
"""
FACTORIES = {"dict": "{}", "list": "[]", "tuple": "[]"}
# The types of `values.py`, as a reader of YAML would say them.
TYPES = {
    "FilePath": "path",
    "FolderOrName": "path or hub name",
    "Text": "text",
    "Names": "list of text",
    "Numbers": "list of numbers",
    "Wholes": "list of integers",
    "Whole": "integer",
    "Count": "integer >= 1",
    "NotNegative": "number >= 0",
    "NotNegativeWhole": "integer >= 0",
    "Steps": "number",
    "NotNegativeSteps": "number >= 0",
    "Scheduler": "name of a schedule",
    "When": '"no" | "steps" | "epoch"',
    "WeightedFolder": "folder",
    "Path": "path",
    "None": "null",
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true | false",
}
WORDS = {"None": "null", "True": "true", "False": "false", "()": "[]", "...": "required"}


@dataclass(frozen=True)
class Field:
    """One field of a section: its name, its type and default as the source has them, and its description."""

    name: str
    type: str
    default: str
    description: str


def write_page(root: Path) -> str:
    """Return the page: the sections in the order of the class `Recipe`, each with a table of its fields."""
    classes = _read_classes(root / "src/higgs_trainer/recipe")
    parts = [INTRODUCTION]
    for section in _read_fields(classes["Recipe"], classes):
        section_class = next((name for name in re.findall(r"\w+", section.type) if name in classes), None)
        if section_class is None:
            continue
        parts.append(_write_section(section, classes[section_class], classes))
    return "\n".join([*parts, _write_refused()])


def _write_refused() -> str:
    """Return the table of training arguments that a recipe cannot change."""
    from higgs_trainer.recipe.training_fields import REFUSED

    lines = ["## Training arguments that are refused", ""]
    lines += [
        "Each of these would break a promise of this project. The value that a run has anyway is accepted.",
        "",
    ]
    lines += ["| field | why | what to do |", "|---|---|---|"]
    for name, refusal in REFUSED.items():
        lines.append(f"| `{name}` | {_escape(refusal.why)} | {_escape(refusal.what_to_do)} |")
    return "\n".join(lines) + "\n"


def _read_classes(folder: Path) -> dict[str, ast.ClassDef]:
    trees = [ast.parse(file.read_text("utf-8")) for file in sorted(folder.glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _read_fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[Field]:
    """Yield the fields of a class, those of its base classes first."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _read_fields(classes[base.id], classes)
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if statement.target.id.startswith("_") or "ClassVar" in ast.unparse(statement.annotation):
            continue
        default, description = _read_value(statement.value)
        annotation = _plain_type(statement.annotation)
        description = description or _find_description(statement.annotation) or _docstring_after(after)
        yield Field(statement.target.id, annotation, default, " ".join(description.split()))


def _read_value(value: ast.expr | None) -> tuple[str, str]:
    """Return the default and the description of a field, from the expression after its `=`."""
    if value is None:
        return "required", ""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in ("Field", "field")):
        text = ast.unparse(value)
        return WORDS.get(text, text.strip("'")), ""
    default = ast.unparse(value.args[0]) if value.args else "required"
    description = ""
    for keyword in value.keywords:
        if keyword.arg == "default":
            default = ast.unparse(keyword.value)
        elif keyword.arg == "default_factory":
            default = FACTORIES.get(ast.unparse(keyword.value), "")
        elif keyword.arg == "description":
            description = str(ast.literal_eval(keyword.value))
    return WORDS.get(default, default.strip("'")), description


def _plain_type(annotation: ast.expr) -> str:
    """Return a type as a reader of YAML would say it."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        return _plain_type(annotation.slice.elts[0])
    if isinstance(annotation, ast.BinOp):
        return f"{_plain_type(annotation.left)} | {_plain_type(annotation.right)}"
    if isinstance(annotation, ast.Subscript):
        return _plain_container(annotation)
    text = ast.unparse(annotation)
    return TYPES.get(text, text)


def _plain_container(annotation: ast.Subscript) -> str:
    inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if ast.unparse(annotation.value) == "Literal":
        return " | ".join(ast.unparse(choice).replace("'", '"') for choice in inside)
    if ast.unparse(annotation.value) == "dict":
        return "mapping"
    return f"list of {_plain_type(inside[0])}"


def _find_description(annotation: ast.expr) -> str:
    """Return the description that `Annotated[..., Field(description=...)]` holds, or an empty string."""
    for call in ast.walk(annotation):
        if isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg == "description":
                    return str(ast.literal_eval(keyword.value))
    return ""


def _docstring_after(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""


def _write_section(section: Field, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    fields = list(_read_fields(node, classes))
    described = any(field.description for field in fields)
    lines = [f"## `{section.name}`", "", _escape(section.description), "", ast.get_docstring(node) or "", ""]
    lines += ["| field | type | default |" + (" meaning |" if described else "")]
    lines += ["|---|---|---|" + ("---|" if described else "")]
    for field in fields:
        row = f"| `{field.name}` | `{field.type}` | `{field.default}` |"
        lines.append(row + (f" {_escape(field.description)} |" if described else ""))
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
