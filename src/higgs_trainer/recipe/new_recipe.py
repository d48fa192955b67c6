"""Start a voice: copy a shipped recipe into a folder of its own, with the paths filled in."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.errors import RecipeError, UserError, suggest_name
from higgs_trainer.files import write_text
from higgs_trainer.hub_names import EMBEDDED, check_hub_name, is_hub_subfolder
from higgs_trainer.manifest.languages import find_code, find_plain_code
from higgs_trainer.outputs import Input, check_apart
from higgs_trainer.recipe.shipped import find_recipes
from higgs_trainer.run_folder import RECIPE_FILE

DATA_NAME = "data.jsonl"
PREPARED_FOLDER, RUNS_FOLDER = "prepared", "runs"
HELD_OUT = "5%"
CLONING_RECIPES = frozenset({"several_speakers", "zero_shot_cloning"})
"""Recipes for rows with references. `prepare` draws those that are missing."""
HELD_OUT_SENTENCES = 3
PLAIN_VALUE = re.compile(r"[\w.-]*/[\w./-]+", re.ASCII)
"""What YAML reads as text without quotes: a path or a hub name."""


@dataclass(frozen=True)
class NewVoice:
    """A folder with a new recipe.

    Attributes:
        recipe: the recipe that was written.
        data: the recordings to prepare. If it does not exist yet, the user writes it there.
        commands: what to run next, from recordings to speech.
    """

    recipe: Path
    data: Path
    commands: tuple[str, ...]


def start_voice(
    folder: Path,
    *,
    shipped: str,
    data: Path | None = None,
    model: str | None = None,
    codec: str | None = None,
    language: str | None = None,
) -> NewVoice:
    """Copy a shipped recipe to ``folder/recipe.yaml`` with its paths filled in.

    Args:
        folder: is made if it is missing. It may already contain recordings.
        shipped: the name of the shipped recipe.
        data: the recordings and transcripts. None: the user will write ``folder/data.jsonl``.
        model: the model to train, instead of the recipe's: a folder or a hub name. Its codec is used, too.
        codec: the codec, instead of the model's: a folder, a hub name or "embedded".
        language: the language of the recordings. The recipe's own sentences are English, so in another language
            sentences of the held-out rows are spoken instead.

    Raises:
        RecipeError: there is no such recipe, or the folder has a recipe already.
        UserError: the folder, the data, the model or the codec cannot be used.
        SaveError: the recipe cannot be written.
    """
    recipe = folder / RECIPE_FILE
    source = _find_source(shipped)
    if os.path.lexists(recipe):
        raise RecipeError(f"{recipe} exists already, and is not overwritten. Give another folder.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give another name.")
    if data is not None and not data.exists():
        raise UserError(
            f"--data: {data} does not exist. Give the file or folder with your recordings and texts."
        )
    inputs = [("the model", model), ("the codec", codec)]
    check_apart("DIR", folder, [Input(what, name) for what, name in inputs if name is not None])
    output = f"{RUNS_FOLDER}/{folder.resolve().name}"
    lines = source.read_text(encoding="utf-8").splitlines()
    set_field(lines, "data", "train", f"{PREPARED_FOLDER}/train")
    set_field(lines, "data", "eval", f"{PREPARED_FOLDER}/held_out")
    set_field(lines, "training", "output_dir", output)
    if model is not None:
        set_field(lines, "model", "name_or_path", _locate(model, folder))
    if codec is not None:
        set_field(lines, "model", "codec", _locate(codec, folder))
    elif model is not None:
        set_field(lines, "model", "codec", None)
    is_english = language is None or find_plain_code(language) == "en"
    if language is not None and not is_english and "samples:" in lines:
        set_field(lines, "samples", "language", find_code(language))
        set_field(lines, "samples", "texts", None)
        set_field(lines, "samples", "held_out", HELD_OUT_SENTENCES)
    write_text(recipe, "\n".join(lines) + "\n", remedy="give another folder")
    data = folder / DATA_NAME if data is None else data
    commands = _list_commands(
        folder, recipe, data, folder / output, shipped, None if is_english else language
    )
    return NewVoice(recipe, data, tuple(commands))


def _find_source(shipped: str) -> Path:
    recipes = {name: path for name, path in find_recipes().items() if "/" not in name}
    if shipped not in recipes:
        raise RecipeError(f"{shipped} is not a shipped recipe. {suggest_name(shipped, list(recipes))}")
    return recipes[shipped]


def _locate(name: str, folder: Path) -> str:
    """Return the name of a model or codec as a recipe in ``folder`` names it: a relative path, or the hub name."""
    if name == EMBEDDED:
        return name
    if os.path.isdir(name):
        relative = os.path.relpath(os.path.realpath(name), os.path.realpath(folder))
        return relative if relative.startswith(".") else f"./{relative}"
    if not is_hub_subfolder(name):
        check_hub_name(name, UserError)
    return name


def _list_commands(
    folder: Path, recipe: Path, data: Path, run: Path, shipped: str, language: str | None
) -> list[str]:
    """Return the commands from recordings to speech. They run in the working directory, as they are."""
    is_cloning = shipped in CLONING_RECIPES
    prepare: list[str | Path] = [
        "prepare",
        data,
        "-o",
        folder / PREPARED_FOLDER,
        "--held-out",
        HELD_OUT,
        "--recipe",
        recipe,
    ]
    commands: list[Sequence[str | Path]] = [
        [*prepare, *(["--pair-references"] if is_cloning else [])],
        ["check", recipe],
        ["train", recipe],
    ]
    if not is_cloning:
        options = [] if language is None else ["--language", language]
        speech: list[str | Path] = ["--text", "Anything you like.", *options, "-o", folder / "spoken"]
        commands.append(["generate", "--model", run, *speech])
    return [shlex.join(["higgs-trainer", *map(str, command)]) for command in commands]


def set_field(lines: list[str], section: str, field: str, value: str | int | None) -> None:
    """Set a field of a section in the lines of a shipped recipe, and keep its comments.

    Args:
        value: None removes the field, with the lines of its value.
    """
    start = lines.index(f"{section}:") + 1
    end = next((i for i in range(start, len(lines)) if re.match(r"\w", lines[i])), len(lines))
    first = next((i for i in range(start, end) if lines[i].startswith(f"  {field}:")), None)
    written = [] if value is None else [f"  {field}: {_format(value)}"]
    if first is None:
        lines[start:start] = written
        return
    last = first + 1
    while last < end and re.match(r"   +[^ #]", lines[last]):
        last += 1
    lines[first:last] = written


def _format(value: str | int) -> str:
    text = str(value)
    is_plain = isinstance(value, int) or PLAIN_VALUE.fullmatch(text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
