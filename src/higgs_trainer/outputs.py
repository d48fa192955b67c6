"""Keep outputs away from inputs, and hold an output folder while a command fills it.

check_apart                      an output is no input, contains none and lies in none
check_page                       a page replaces nothing but a page
fill_folder, check_can_fill      a folder that a command fills file by file, such as one of generated clips
hold_folder                      no two commands write into one folder at once
find_free_name                   the first unused name for a folder that is moved out of the way
"""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from higgs_trainer.errors import UserError
from higgs_trainer.files import check_is_empty, explain_failed_write
from higgs_trainer.run_folder import REPORT_FILE
from higgs_trainer.terminal import echo

IN_PROGRESS = "_in_progress"
"""The file in a folder that a command fills. The command locks it, and deletes it when the folder is whole."""

PAGE_BEGINNING = b"<!doctype html"

Identity = tuple[int, int]
"""The device and the inode of a file or folder: the same for every name that it has."""


@dataclass(frozen=True)
class Input:
    """A file or folder that a command reads.

    Attributes:
        what: what it is, for the message, such as "the base model".
        path: its path. A name that is no path on this machine, such as a hub name, never overlaps.
        may_contain_output: whether an output may lie in it, as a dataset may lie in the folder of its manifest.
    """

    what: str
    path: str | Path
    may_contain_output: bool = False


def check_name(option: str, output: str | Path, error_class: type[UserError] = UserError) -> None:
    """Check that files in an output folder can be named in JSON and by libraries, before anything is computed.

    Args:
        option: how the user names the output, such as "--output".
    """
    try:
        os.fspath(output).encode("utf-8")
    except UnicodeEncodeError as error:
        raise error_class(
            f"{option}: the name {output} is not UTF-8, and the result could not be saved there. Choose another name."
        ) from error


def check_apart(option: str, output: str | Path, inputs: Iterable[Input]) -> None:
    """Check that an output would neither replace an input nor mix with its files.

    Files and folders are compared by what they are on the disk, so that symbolic links, hard links and other spellings
    of a name make no difference. Links inside an existing output folder are followed too.

    Args:
        option: how the user names the output, such as "--output".

    Raises:
        UserError: the output is an input, contains one, lies in one, or has a link to one.
    """
    place = _Place.of(output)
    present = [(given, _Place.of(given.path)) for given in inputs if os.path.lexists(given.path)]
    for given, source in present:
        if relation := _find_relation(place, source, given):
            raise UserError(
                f"{option}: {output} {relation} {given.what} ({given.path}), which would be overwritten or mixed with "
                "the output. Nothing was written. Choose another place."
            )
    if os.path.isdir(output) and (found := _find_link(Path(output), present)):
        link, given = found
        raise UserError(
            f"{option}: {link} is a link to {given.what} ({given.path}), which would be overwritten through it. "
            "Nothing was written. Choose another place, or remove the link."
        )


@dataclass(frozen=True)
class _Place:
    """A path with all links resolved, its identity (None: it does not exist), and the identities of its parents."""

    path: Path
    identity: Identity | None
    parents: frozenset[Identity]

    @classmethod
    def of(cls, path: str | Path) -> "_Place":
        real = Path(os.path.realpath(path))
        parents = (_identify(parent) for parent in real.parents)
        return cls(real, _identify(real), frozenset(one for one in parents if one is not None))

    def is_inside(self, other: "_Place") -> bool:
        return other.identity in self.parents or other.path in self.path.parents


def _identify(path: str | Path) -> Identity | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _find_relation(output: _Place, source: _Place, given: Input) -> str | None:
    if output.path == source.path or (output.identity is not None and output.identity == source.identity):
        return "is"
    if source.is_inside(output):
        return "contains"
    if output.is_inside(source) and not given.may_contain_output:
        return "lies in"
    return None


def _find_link(output: Path, inputs: Iterable[tuple[Input, _Place]]) -> tuple[Path, Input] | None:
    """Find a symbolic or hard link in an output folder that leads to an input."""
    hard_links: dict[Identity, Path] = {}
    for entry in _iterate_files(output):
        path = Path(entry.path)
        if entry.is_symlink():
            target = _Place.of(path)
            for given, source in inputs:
                if _find_relation(target, source, Input(given.what, given.path)):
                    return path, given
        elif (found := entry.stat(follow_symlinks=False)).st_nlink > 1:
            hard_links[found.st_dev, found.st_ino] = path
    if not hard_links:
        return None
    for given, source in inputs:
        # A folder that outputs may lie in is not read as a whole.
        files = [source.path] if given.may_contain_output or os.path.isfile(source.path) else []
        files = files or [Path(entry.path) for entry in _iterate_files(source.path)]
        for file in files:
            if link := hard_links.get(_identify(file) or (0, 0)):
                return link, given
    return None


def _iterate_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files and the symbolic links in a folder and its subfolders. What cannot be listed has no entries."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _iterate_files(Path(entry.path))
        else:
            yield entry


def check_page(option: str, path: str | Path) -> None:
    """Check that an HTML page may be written to a path: the file is new, or is itself an HTML page.

    Raises:
        UserError: the path is a folder, or a file with other content.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{option}: {path} is a folder; give a file, such as {path / REPORT_FILE}")
    if not os.path.exists(path):
        return
    try:
        with path.open("rb") as file:
            beginning = file.read(64)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror}). Give another file.") from error
    if beginning and not beginning.lstrip().lower().startswith(PAGE_BEGINNING):
        raise UserError(
            f"{option}: {path} exists and is not an HTML page, so it is not overwritten. Give another file."
        )


def find_free_name(folder: Path, ending: str) -> Path:
    """Return the first of ``NAME.ENDING-1``, ``NAME.ENDING-2``, ... that does not exist, next to a folder."""
    names = (folder.with_name(f"{folder.name}.{ending}-{number}") for number in itertools.count(1))
    return next(path for path in names if not os.path.lexists(path))


@contextmanager
def hold_folder(output: str | Path) -> Iterator[None]:
    """Keep other commands from holding the same folder during the block, by a lock on ``.NAME.lock`` next to it.

    Where the parent of the folder cannot be written to, as around a mounted volume, there is no lock.

    Raises:
        UserError: another command holds the folder.
    """
    output = Path(os.path.realpath(output))
    path = output.with_name(f".{output.name}.lock")
    lock = None
    # No yield in an except clause: an error of the block would look as if it came from this one.
    with suppress(OSError):
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, output)
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            lock.release()


def is_unfinished(output: str | Path) -> bool:
    """Return whether a command has begun to fill a folder and has not finished it."""
    return os.path.isfile(Path(output) / IN_PROGRESS)


def check_can_fill(output: str | Path) -> None:
    """Check that a command may fill a folder: it is missing or empty, or an earlier command did not finish it.

    Raises:
        UserError: it is a file, or a folder with other content, or another command is filling it now.
    """
    marker = Path(output) / IN_PROGRESS
    if not is_unfinished(output):
        check_is_empty(output)
        return
    _release(_lock(marker, marker.parent), marker)


@contextmanager
def fill_folder(output: str | Path) -> Iterator[Path]:
    """Make a folder for the block to fill, and mark it as unfinished until the block has succeeded.

    What an earlier command left unfinished is renamed to ``NAME.unfinished-N`` first, so that nothing is lost and the
    corrected command can be run. A folder that the block leaves without content is deleted.

    Raises:
        UserError: the folder cannot be filled (`check_can_fill`).
        SaveError: the folder could not be made.
    """
    output = Path(os.path.abspath(output))
    check_can_fill(output)
    with explain_failed_write(output):
        if is_unfinished(output):
            _move_away(output)
        output.mkdir(parents=True, exist_ok=True)
        lock = _lock(output / IN_PROGRESS, output)
    try:
        yield output
    except BaseException:
        _release(lock, output / IN_PROGRESS)
        if not _has_content(output):
            shutil.rmtree(output, ignore_errors=True)
        raise
    lock.release()
    (output / IN_PROGRESS).unlink(missing_ok=True)


def _move_away(output: Path) -> None:
    if not _has_content(output):
        shutil.rmtree(output)
        return
    moved = find_free_name(output, "unfinished")
    os.replace(output, moved)
    (moved / IN_PROGRESS).unlink(missing_ok=True)
    echo(f"note: {output} held what an earlier command had not finished. It is now {moved}.", to_stderr=True)


def _has_content(folder: Path) -> bool:
    """Whether a folder has a file with any content, apart from the marks of unfinished folders."""
    return any(
        entry.name != IN_PROGRESS and entry.stat(follow_symlinks=False).st_size > 0
        for entry in _iterate_files(folder)
    )


def _lock(marker: Path, folder: Path) -> FileLock:
    """Create a file and lock it, for a command that writes to ``folder``.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(marker)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"another command is writing to {folder}. Wait for it, or give another folder."
        ) from error
    return lock


def _release(lock: FileLock, marker: Path) -> None:
    """Release the lock and keep the mark, which some versions of filelock delete."""
    lock.release()
    marker.touch()
