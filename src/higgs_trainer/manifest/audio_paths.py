"""Compare and resolve the paths of recordings."""

import filecmp
import functools
import os
from pathlib import Path


def find_real_path(path: str) -> str:
    """Resolve all links. The folder is cached, because most rows share a few folders."""
    if os.path.islink(path):
        return os.path.realpath(path, strict=False)
    return os.path.join(_resolve_folder(os.path.dirname(path)), os.path.basename(path))


@functools.lru_cache(1024)
def _resolve_folder(folder: str) -> str:
    return os.path.realpath(folder)


def is_same_content(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file or to byte-for-byte copies."""
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
