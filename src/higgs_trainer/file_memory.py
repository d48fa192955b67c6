"""Remember what was computed from the files of a folder, in the user's cache folder, until a file changes.

Reading gigabytes is slow, so their hashes are kept with the size, times and inode of each file.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from higgs_trainer.errors import SaveError
from higgs_trainer.files import write_json

SETTLED_SECONDS = 2.0
"""A file that was changed more recently is not remembered: a second change might leave its times as they are."""


def describe_state(file: os.stat_result) -> list[int]:
    """Return what changes whenever a file is written, replaced or given another time."""
    return [file.st_size, file.st_mtime_ns, file.st_ctime_ns, file.st_ino]


def is_settled(file: os.stat_result) -> bool:
    """Return whether a file was changed so long ago that its state says so if it changes again."""
    return max(file.st_mtime, file.st_ctime) < time.time() - SETTLED_SECONDS


def list_states(files: Iterable[Path]) -> dict[str, list[int]] | None:
    """Return the state of each file by name, or None if one is not settled."""
    found = {file.name: file.stat() for file in files}
    if not all(map(is_settled, found.values())):
        return None
    return {name: describe_state(file) for name, file in sorted(found.items())}


def recall(kind: str, folder: Path) -> dict[str, Any]:
    """Return what is remembered of a folder, by name. A memory that cannot be read is empty."""
    try:
        memory = json.loads(find_memory(kind, folder).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def remember(kind: str, folder: Path, values: Mapping[str, Any]) -> None:
    """Remember values of a folder in place of earlier ones. Without a place for the memory, nothing is remembered."""
    with suppress(SaveError, OSError, RuntimeError):
        write_json(find_memory(kind, folder), dict(values))


def forget(kind: str, folder: Path) -> None:
    """Forget what is remembered of a folder."""
    with suppress(OSError, RuntimeError):
        find_memory(kind, folder).unlink(missing_ok=True)


def find_memory(kind: str, folder: Path) -> Path:
    """Return the file that has the memory of a folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = xxhash.xxh3_128_hexdigest(os.fsencode(folder.resolve()))
    return Path(cache, "higgs-trainer", kind, f"{name}.json")
