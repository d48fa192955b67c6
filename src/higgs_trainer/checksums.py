"""Checksums of the files of a folder: written with the folder, and verified before its files are used.

`write_checksums` writes ``checksums.json`` with the size and the hash of each file. `verify_checksums` finds a file
that is missing, cut, changed or added. `compute_fingerprint` returns one hash for a whole folder.

The hash is XXH3 with 128 bits, which `datasets` uses as well. It finds damage; it is no protection against someone who
changes a file and its checksum. Reading is the slow part. So the hashes of large folders are remembered, in the user's
cache folder, for as long as size, times and inode of a file stay the same (`forget_hashes`).
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from higgs_trainer.errors import DamageError, list_first
from higgs_trainer.file_memory import describe_state, forget, is_settled, recall, remember
from higgs_trainer.files import write_json
from higgs_trainer.input_files import check_ends
from higgs_trainer.run_folder import CHECKSUMS_FILE, CHECKSUMS_SCHEMA, Checksums, FileChecksum

BLOCK_BYTES = 2**20
MAX_THREADS = 8
REMEMBER_FROM_BYTES = 2**30
"""The hashes of a folder with fewer bytes are computed each time, which takes less than a second."""
KIND = "hashes"
"""The name of the remembered hashes."""


def list_files(folder: Path) -> list[str]:
    """List the files of a folder and its subfolders by their paths in it, without the file of checksums."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != CHECKSUMS_FILE)


def hash_file(path: Path) -> str:
    """Compute the hash of a file's content."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return str(digest.hexdigest())


def write_checksums(folder: Path, names: Sequence[str] | None = None) -> None:
    """Write the checksums of files of a folder into it.

    Args:
        names: paths in the folder. None: all files.
    """
    chosen = sorted(list_files(folder) if names is None else names)
    hashes = _hash_all(folder, chosen)
    files: dict[str, FileChecksum] = {
        name: {"bytes": (folder / name).stat().st_size, "xxh3": hashes[name]} for name in chosen
    }
    content: Checksums = {
        "schema": CHECKSUMS_SCHEMA,
        "fingerprint": _combine(hashes),
        "files": files,
    }
    write_json(folder / CHECKSUMS_FILE, content)


def verify_checksums(folder: Path, list_names: Callable[[Path], Sequence[str]], *, remedy: str) -> bool:
    """Check that the files of a folder are as they were when `write_checksums` was called.

    Args:
        list_names: lists the files that are in the folder now and that a reader may use. One that was not there then is
            an error.
        remedy: a sentence for the user, after the problem.

    Returns:
        False if the folder has no checksums, so that nothing is known about its files.

    Raises:
        DamageError: a file is missing, cut, changed or added; names it.
    """
    files = _read_checksums(folder, remedy)
    if files is None:
        return False
    problems = [problem for name in files if (problem := _check_size(folder / name, files[name]["bytes"]))]
    problems += [
        f"{folder / name} was added after the folder was written"
        for name in list_names(folder)
        if name not in files
    ]
    if not problems:
        hashes = hash_files(folder, list(files))
        problems = [
            f"{folder / name} has changed since it was written"
            for name, checksum in files.items()
            if hashes[name] != checksum["xxh3"]
        ]
    if problems:
        raise DamageError(list_first(problems, 3), remedy)
    return True


def compute_fingerprint(folder: Path, names: Sequence[str]) -> str:
    """Compute one hash of the names and contents of files of a folder."""
    return _combine(hash_files(folder, names))


def hash_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Compute the hashes of files of a folder, by name.

    If the files have 1 GiB or more, a hash is remembered for later calls, until the file changes.

    Raises:
        DamageError: a file cannot be read.
    """
    found = {name: (folder / name).stat() for name in names}
    if sum(file.st_size for file in found.values()) < REMEMBER_FROM_BYTES:
        return _hash_all(folder, names)
    signatures = {name: describe_state(file) for name, file in found.items()}
    remembered = _recall(folder)
    hashes = {
        name: remembered[name][1] for name in names if remembered.get(name, [None])[0] == signatures[name]
    }
    settled = [name for name in names if is_settled(found[name])]
    hashes |= _hash_all(folder, [name for name in names if name not in hashes])
    remember(KIND, folder, remembered | {name: [signatures[name], hashes[name]] for name in settled})
    return hashes


def forget_hashes(folder: Path) -> None:
    """Forget the hashes of a folder, so that its files are read again when it is opened next."""
    forget(KIND, folder)


def _hash_all(folder: Path, names: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_readable(folder / name), names), strict=True))


def _hash_readable(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DamageError(
            f"{path} cannot be read ({error.strerror})",
            "Check its permissions and the disk, or copy it again.",
        ) from error


def _combine(hashes: Mapping[str, str]) -> str:
    return str(xxhash.xxh3_128_hexdigest(json.dumps(sorted(hashes.items())).encode()))


def _check_size(path: Path, expected: int) -> str | None:
    """Return what is wrong with the kind or the size of a file, or None."""
    try:
        found = path.stat()
    except OSError:
        return f"{path} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file"
    if found.st_size != expected:
        return f"{path} has {found.st_size:,} bytes, but was written with {expected:,}"
    return None


def _read_checksums(folder: Path, remedy: str) -> dict[str, FileChecksum] | None:
    """Read the checksums of a folder; None if it has none.

    Raises:
        DamageError: the file of checksums is itself damaged.
    """
    path = folder / CHECKSUMS_FILE
    if not os.path.lexists(path):
        return None
    check_ends(path, remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, FileChecksum] = content["files"]
        _check_names(files)
        is_whole = content["schema"] == CHECKSUMS_SCHEMA and content["fingerprint"] == _combine(
            {name: checksum["xxh3"] for name, checksum in files.items()}
        )
        is_whole &= all(type(checksum["bytes"]) is int for checksum in files.values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} is damaged ({error})", remedy) from error
    if not is_whole:
        raise DamageError(f"{path} is damaged, or was written by another version", remedy)
    return files


def _check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that leads out of the folder."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"it names {name!r}, which is outside the folder")


def _recall(folder: Path) -> dict[str, list[Any]]:
    """Return the remembered hashes of a folder: [state, hash] by name. A memory that cannot be read is empty."""
    try:
        return {str(name): [state, str(digest)] for name, (state, digest) in recall(KIND, folder).items()}
    except (ValueError, TypeError):
        return {}
