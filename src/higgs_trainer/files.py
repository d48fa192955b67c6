"""Atomic writes: a file or a folder is complete under its name, or it is not there.

Everything is written under another name first and then renamed, so a process that is killed never leaves half a file
under the name that readers look for. Names of what is not complete, or no longer needed, start with an underscore:
transformers uploads nothing of that kind to the hub.

    whole_file, write_text, write_bytes, write_json, write_json_lines     a file
    read_json_object                                                      what `write_json` wrote
    check_inside                                                          a file that a foreign folder names
    new_folder                                                            a folder that must not exist yet
    whole_folder, move_into_place                                         a folder that may replace another
    restore_replaced, restore_folders                                     recovery after a kill
    remove_folder                                                         deletion
"""

import errno
import glob
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from higgs_trainer.errors import SaveError, UserError
from higgs_trainer.input_files import check_ends

if sys.platform != "win32":
    import fcntl

REMEDY = "make room, or give another place"
TORCH_WRITE_WORDS = (
    "unexpected pos",
    "inline_container",
    "PytorchStreamWriter",
    "cannot be opened",
    "Parent directory",
)
"""Words in the RuntimeError that torch.save raises if a file cannot be written."""

UNFINISHED, REPLACED, REMOVED = "_unfinished-", "_replaced-", "_removed-"
REPLACE_ATTEMPTS = 3


@contextmanager
def explain_failed_write(target: str | Path, remedy: str = REMEDY) -> Iterator[None]:
    """Raise a `SaveError` that names ``target``, the free space and ``remedy`` where a write in the block fails.

    Other errors, such as a lack of memory, are not changed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_failed_write(error):
            raise
        free_mb = shutil.disk_usage(_find_existing_parent(Path(target))).free / 1e6
        raise SaveError(
            f"{target} could not be written ({error}; {free_mb:,.1f} MB were free); {remedy}"
        ) from error


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in TORCH_WRITE_WORDS)
    return getattr(error, "errno", None) != errno.ENOMEM


def _find_existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


@contextmanager
def whole_file(path: str | Path, *, remedy: str = REMEDY) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` when the block has succeeded.

    The temporary file is in the same folder, which is made if it is missing, and keeps the suffix of ``path``. It is
    deleted if the block raises. Two processes may write the same file: the last one to finish wins.

    Raises:
        SaveError: the file could not be written.
    """
    path = Path(path)
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with explain_failed_write(path, remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes of this machine left of a file that they wrote (`whole_file`)."""
    for leftover in path.parent.glob(f"{UNFINISHED}[0-9]*-{glob.escape(path.name)}"):
        pid = leftover.name.removeprefix(UNFINISHED).partition("-")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process with this number runs. On Windows, asking would end it."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole (`whole_file`)."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: str | Path, text: str, *, remedy: str = REMEDY) -> None:
    """Write a text file whole (`whole_file`), in UTF-8."""
    with whole_file(path, remedy=remedy) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole (`whole_file`), indented for a reader."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Write a file of one JSON value a line whole (`whole_file`)."""
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.writelines(to_json_line(row) for row in rows)


def to_json_line(row: Any) -> str:
    """Return a JSON value as one line, with its newline."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def check_is_empty(folder: str | Path) -> None:
    """Check that a folder can be written to: it must be missing or empty.

    Raises:
        UserError: ``folder`` is a file, or a folder that is not empty.
    """
    folder = Path(folder)
    restore_replaced(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give another folder")


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        UserError: the file is missing or damaged, or contains another value.
    """
    check_ends(path, "Write it again, or remove it.")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); write it again, or remove it") from error
    # Nesting of many thousands of levels raises RecursionError.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it again, or remove it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not contain a JSON object; write it again, or remove it")
    return value


def check_inside(folder: str | Path, path: str | Path, *, most_bytes: int) -> None:
    """Check that a file, which an untrusted file in ``folder`` may have named, is a part of that folder.

    Raises:
        UserError: ``path`` leads out of ``folder``, also through a link; it is missing or no regular file; or it is
            larger than ``most_bytes``.
    """
    try:
        real = Path(path).resolve(strict=True)
        status = real.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); copy the whole folder again") from error
    if not real.is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"{path} is left out, because it leads to a file outside {folder}; copy that file into it"
        )
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is left out, because it is not a file; replace it")
    if status.st_size > most_bytes:
        raise UserError(
            f"{path} is left out, because it is larger than {most_bytes / 1e6:g} MB; shorten or remove it"
        )


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write into, and rename it to ``output`` when the block has succeeded (`whole_folder`).

    Raises:
        UserError: ``output`` is a file, or a folder that is not empty; or another process is writing it.
        SaveError: the folder could not be written.
    """
    output = Path(output).resolve()
    check_is_empty(output)
    with whole_folder(output) as unfinished:
        yield unfinished
        # Another process may have written it meanwhile.
        check_is_empty(output)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder to write into, and let it replace ``output`` when the block has succeeded.

    The temporary folder is locked, so that no other process writes the same output. It is deleted if the block raises.

    Raises:
        UserError: another process is writing ``output``.
        SaveError: the folder could not be written.
    """
    unfinished = output.with_name(UNFINISHED + output.name)
    with explain_failed_write(output):
        unfinished.mkdir(parents=True, exist_ok=True)
        lock = _lock_folder(unfinished)
    if lock is None:
        raise UserError(f"another process is writing {output}; wait for it, or give another folder")
    try:
        with explain_failed_write(output):
            # A process that was killed may have left something in it.
            for leftover in unfinished.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield unfinished
            move_into_place(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends. Return None if another process has the lock.

    On Windows and on a file system without locks, nothing is locked. This is not the FileLock of `outputs.py` and of
    the work directory of `prepare`: its file would be renamed into the output with the folder, or stay next to it.
    """
    if sys.platform == "win32":
        # Windows opens no folders. Any open descriptor does for the caller, who only closes it.
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor
    # The other process may have finished, and renamed the folder, after it was opened.
    if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        os.close(descriptor)
        return None
    return descriptor


def move_into_place(whole: Path, target: Path) -> None:
    """Rename a complete file or folder to ``target``, replacing what is there.

    A folder cannot be replaced in one step. So the old folder is renamed to ``_replaced-NAME`` first and deleted last.
    If the second rename fails, the old folder gets its name back. If the process is killed in between, the next reader
    (`restore_replaced`), `restore_folders` or the next call for the same target renames it back.
    """
    replaced = name_replaced(target)
    for attempt in range(REPLACE_ATTEMPTS):
        _restore(target)
        if target.is_dir():
            os.replace(target, replaced)
        try:
            os.replace(whole, target)
            break
        except OSError:
            # A reader in another process may have renamed the old folder back.
            was_restored = target.is_dir() and whole.is_dir()
            restore_replaced(target)
            if not was_restored or attempt == REPLACE_ATTEMPTS - 1:
                raise
    shutil.rmtree(replaced, ignore_errors=True)


def name_replaced(target: Path) -> Path:
    """Return the name of a folder while another one takes its place."""
    return target.with_name(REPLACED + target.name)


def restore_replaced(target: str | Path) -> None:
    """Give a folder its name back if a process was killed while it replaced the folder. Readers call this first."""
    target = Path(target).absolute()
    if not target.name:
        return
    replaced = name_replaced(target)
    # A name that is too long for the disk raises OSError in Path.is_dir.
    if os.path.isdir(replaced) and not os.path.lexists(target):
        # Another reader may be faster, and the folder may be read-only.
        with suppress(OSError):
            os.replace(replaced, target)


def remove_folder(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that a killed process does not leave half of it under its name."""
    removed = folder.with_name(REMOVED + folder.name)
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(folder, removed)
    shutil.rmtree(removed)


def restore_folders(parent: Path) -> None:
    """Clean up after a killed process in ``parent``: rename replaced folders back whose successor never took their
    name, and delete everything else that is unfinished, replaced or removed."""
    for replaced in parent.glob(f"{REPLACED}*"):
        _restore(replaced.with_name(replaced.name.removeprefix(REPLACED)))
    for leftover in (*parent.glob(f"{UNFINISHED}*"), *parent.glob(f"{REMOVED}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _restore(target: Path) -> None:
    replaced = name_replaced(target)
    if replaced.is_dir() and not target.exists():
        os.replace(replaced, target)
    else:
        shutil.rmtree(replaced, ignore_errors=True)


def flush_to_disk(folder: Path) -> None:
    """Wait until every file of a folder is on the disk, so that a rename never gets ahead of the content.

    Some file systems report only here that they are full. Windows flushes files only: it opens no folders, and flushes
    no descriptor that cannot write.
    """
    for path in (*folder.rglob("*"), folder):
        if sys.platform == "win32" and path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
