"""Decide whether a name that the user gave is a path on this machine or a repository on the Hugging Face hub.

A path that looks local and does not exist is an error here. It must not go to the hub, which would try to connect, and
then report that there is no such repository.
"""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from higgs_trainer.errors import CheckpointError, UserError

EMBEDDED = "embedded"
"""The name of the codec in this package. It is neither a path nor a hub name."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`owner/name`. A few old repositories have no owner, but none of them is a Higgs Audio model, a codec or a dataset."""

HUB_SUBFOLDER = re.compile(HUB_NAME.pattern + r"(/[\w-][\w.-]*)+")
"""`owner/name/folder`."""

FILE_SUFFIXES = frozenset(
    ".bin .ckpt .csv .flac .gguf .jinja .json .jsonl .mp3 .ndjson .ogg .parquet .pt .pth .safetensors .tar .tsv .txt "
    ".wav .yaml .yml .zip".split()
)
"""Suffixes of files. No name of a repository ends in one."""

NEIGHBOURS_READ = 10_000
"""Names in a folder among which a similar one is searched."""


def is_hub_name(name: str | Path, folder: str | Path = ".") -> bool:
    """Return whether a name that is no path on this machine can be a repository on the hub.

    It is `owner/name`, does not look like a path (`./a`, `/a/b`, `~/a`, `a\\b`, `a/b/c`, `a/b.csv`), and there is no
    folder here with the name of the owner.

    Args:
        folder: the folder that relative paths are relative to.
    """
    text = str(name)
    return (
        HUB_NAME.fullmatch(text) is not None
        and Path(text).suffix.lower() not in FILE_SUFFIXES
        and not os.path.lexists(Path(folder, text))
        and not os.path.isdir(Path(folder, text.partition("/")[0]))
    )


def is_hub_subfolder(name: str | Path) -> bool:
    """Return whether a name that is no path on this machine can be a folder in a repository: `owner/name/folder`.

    A name that resembles a path on this machine is a path with a mistake.
    """
    return (
        HUB_SUBFOLDER.fullmatch(str(name)) is not None
        and is_hub_name("/".join(str(name).split("/")[:2]))
        and find_similar(name) is None
    )


def check_hub_name(
    name: str | Path,
    error_class: type[UserError] = CheckpointError,
    *,
    known: Sequence[str] = (),
    more: str = "",
) -> None:
    """Raise an error unless a name that is no folder on this machine can be a repository on the hub.

    Args:
        known: other names that the user may give, such as that of a built-in codec.
        more: a sentence for the end of the message.
    """
    if not is_hub_name(name):
        raise error_class(f"{describe_missing(name, known)} {more}".rstrip())


def describe_missing(name: str | Path, known: Sequence[str] = ()) -> str:
    """Describe a folder that does not exist, with a similar name, as the message of an error."""
    text = str(name)
    if os.path.isfile(text):
        return (
            f"{text} is a file, not a folder. Give the folder that contains it, or a hub name (owner/name)."
        )
    what = (
        f"there is no folder {text}" if os.path.isabs(text) else f"there is no folder {text} in {Path.cwd()}"
    )
    close = get_close_matches(Path(text).name, known, n=1, cutoff=0.75)
    if near := find_similar(text) or next(iter(close), None):
        return f"{what}. Did you mean {near}?"
    if HUB_NAME.fullmatch(text) and os.path.isdir(first := text.partition("/")[0]):
        return f"{what}. It was not looked up on the Hugging Face hub, because there is a folder {first}. Correct it."
    return f"{what}, and a name on the Hugging Face hub has the form owner/name. Correct it."


def find_similar(path: str | Path) -> str | None:
    """Find the path that was probably meant: correct the first part that does not exist by a name in its folder."""
    given = Path(path)
    existing = Path(given.anchor)
    for index, part in enumerate(given.parts[1:] if given.anchor else given.parts):
        if os.path.lexists(existing / part):
            existing /= part
            continue
        try:
            names = [entry.name for entry in islice(os.scandir(existing), NEIGHBOURS_READ)]
        except OSError:
            return None
        near = get_close_matches(part, names, n=1, cutoff=0.75)
        if not near:
            return None
        rest = given.parts[index + 1 + bool(given.anchor) :]
        found = Path(existing, near[0], *rest)
        return str(found) if os.path.lexists(found) else str(existing / near[0])
    return None
