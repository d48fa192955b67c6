"""Paths in files that are shared with a model: relative to its folder, so that they tell nothing about the machine.

`share_path` writes them, `find_shared` finds what they name. A path that leads over the root of the disk or the folder
of all home folders would tell as much as an absolute one. It becomes a name, which only ``_local_paths.json`` explains.
That file also finds the data and the base model of a run folder that was moved on the same machine. transformers
uploads no file whose name starts with an underscore.
"""

import getpass
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from higgs_trainer.errors import UserError
from higgs_trainer.files import read_json_object, write_json
from higgs_trainer.run_folder import LOCAL_PATHS_FILE, read_step

NAMED = "_local/"
# An absolute path, or one that climbs, of at least one folder, in the text of a message.
PATH_IN_TEXT = re.compile(r"(?<![\w./])(?:/|(?:\.\./)+)(?:[^\s/:;,'\"()<>]+/)+(?=[^\s/:;,'\"()<>])")


def share_path(path: str | Path, folder: str | Path) -> str:
    """Return a path as files in ``folder`` may name it: relative to ``folder``, or only the name and a short hash."""
    target, start = os.path.abspath(path), os.path.abspath(folder)
    relative = os.path.relpath(target, start)
    common = Path(os.path.commonpath([target, start]))
    homes = {Path("/"), Path("/home"), Path("/Users"), *_find_home().parents}
    if common in homes or _find_user() in Path(relative).parts:
        return f"{NAMED}{Path(target).name}-{hashlib.sha256(os.fsencode(target)).hexdigest()[:8]}"
    return relative if relative.startswith(".") else f"./{relative}"


def share_name(name: str, folder: str | Path) -> str:
    """Return the name of a model: on the hub as it is, a folder as `share_path` names it."""
    return share_path(name, folder) if os.path.isabs(name) or os.path.exists(name) else name


def find_shared(text: str, folder: str | Path) -> Path | None:
    """Return what a text in a file of ``folder`` names, or None if it is no shared path or names nothing here.

    A checkpoint lies in the run folder, and names paths as that folder does.
    """
    if not text.startswith((".", NAMED)):
        return None
    folder = Path(os.path.abspath(folder))
    for start in (folder, folder.parent) if read_step(folder) >= 0 else (folder,):
        if (found := Path(os.path.normpath(start / text))).exists():
            return found
        if (local := _read_local_paths(start).get(text)) is not None and Path(local).exists():
            return Path(local)
    return None


def restore_paths(value: Any, folder: str | Path) -> Any:
    """Return nested values with each text that `find_shared` finds only by the private file as an absolute path."""
    if isinstance(value, dict):
        return {key: restore_paths(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [restore_paths(item, folder) for item in value]
    if not isinstance(value, str) or not value.startswith((".", NAMED)) or (Path(folder) / value).exists():
        return value
    found = _read_local_paths(Path(folder)).get(value)
    return value if found is None else found


def write_local_paths(folder: Path, paths: Iterable[str | Path]) -> None:
    """Write the private file that says which path each shared path of ``folder`` is on this machine."""
    local = {share_path(path, folder): os.path.abspath(path) for path in paths}
    write_json(folder / LOCAL_PATHS_FILE, {text: path for text, path in local.items() if text != "."})


def hide_paths(value: Any) -> Any:
    """Return nested values in whose texts each path that is absolute or climbs is only a name."""
    if isinstance(value, dict):
        return {hide_paths(key): hide_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_paths(item) for item in value]
    return PATH_IN_TEXT.sub("", value) if isinstance(value, str) else value


def _read_local_paths(folder: Path) -> dict[str, str]:
    path = folder / LOCAL_PATHS_FILE
    try:
        values = read_json_object(path) if path.is_file() else {}
    except UserError:
        return {}
    return {text: found for text, found in values.items() if isinstance(found, str)}


def _find_home() -> Path:
    return Path(os.path.expanduser("~"))


def _find_user() -> str:
    """Return the name of the user, which no path may contain. The superuser's name says nothing."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
    return "" if name == "root" else name
