"""Open what users name: only regular files, and only up to a size. A pipe or a device could block or never end."""

import errno
import os
import stat
from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.limits import STORED_JSON_BYTES

GIVE_TEXT = "Give a text file, and save it as UTF-8 if it is one."
MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the operating system that say nothing about a file."""
SAVE_AS_UTF_8 = (
    'Save the file as UTF-8 (in a spreadsheet program: "CSV UTF-8"). A file from Windows may be in Windows-1252 or, '
    "from central Europe, Windows-1250: iconv -f WINDOWS-1250 -t UTF-8 OLD > NEW converts it."
)

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def name_kind(path: str | Path) -> str:
    """Return what a path leads to: "a file", "a folder", "a pipe", ... or "no such file".

    Raises:
        OSError: the path cannot be resolved: a loop of links, a name that is too long, no permission.
        ValueError: the path contains a NUL.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    return KINDS.get(stat.S_IFMT(mode), "a special file")


def check_is_file(path: str | Path, what_to_do: str, error_class: type[UserError] = UserError) -> None:
    """Raise an error unless the path leads to a regular file.

    Args:
        what_to_do: the remedy, a sentence.
    """
    try:
        kind = name_kind(path)
    except (OSError, ValueError) as error:
        raise error_class(f"{path} cannot be read ({name_reason(error)}). {what_to_do}") from error
    if kind == "no such file":
        raise error_class(f"{path} cannot be read (No such file or directory). {what_to_do}")
    if kind != "a file":
        raise error_class(f"{path} is {kind}, not a file. {what_to_do}")


def check_ends(
    path: str | Path,
    what_to_do: str,
    error_class: type[UserError] = UserError,
    *,
    at_most: int | None = STORED_JSON_BYTES,
) -> None:
    """Raise an error if reading the path could block or never end: it is a pipe, a device or an implausibly large file.

    What is missing, a folder or not readable is left to the code that opens it.

    Args:
        what_to_do: the remedy, a sentence.
        at_most: the largest size of a file (bytes). None: any.
    """
    try:
        kind, size = name_kind(path), os.stat(path).st_size
    except (OSError, ValueError):
        return
    if kind not in ("a file", "a folder"):
        raise error_class(f"{path} is {kind}, not a file. {what_to_do}")
    if kind == "a file" and at_most is not None and size > at_most:
        raise error_class(f"{path} has more than {at_most:,} bytes. {what_to_do}")


def read_file(
    path: str | Path, *, at_most: int, what_to_do: str, error_class: type[UserError] = UserError
) -> bytes:
    """Read a regular file of at most ``at_most`` bytes.

    Raises:
        UserError: it is another kind of file, it is larger, or it cannot be read. The message ends with ``what_to_do``.
    """
    check_is_file(path, what_to_do, error_class)
    try:
        with open(path, "rb") as file:
            # A file in /proc or on a network may contain more than its size.
            content = file.read(at_most + 1)
    except OSError as error:
        raise error_class(f"{path} cannot be read ({name_reason(error)}). {what_to_do}") from error
    if len(content) > at_most:
        raise error_class(f"{path} has more than {at_most:,} bytes. {what_to_do}")
    return content


def read_text_file(
    path: str | Path, *, at_most: int, what_to_do: str, error_class: type[UserError] = UserError
) -> str:
    """Read a regular file of text in UTF-8, with or without a byte order mark.

    Raises:
        UserError: as `read_file`, or the file is not UTF-8.
    """
    content = read_file(path, at_most=at_most, what_to_do=what_to_do, error_class=error_class)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise error_class(f"{path} is not UTF-8 ({describe_bad_byte(error)}). {SAVE_AS_UTF_8}") from error
    if "\0" in text:
        raise error_class(f"{path} contains NUL bytes, so it is not text in UTF-8. {GIVE_TEXT}")
    return text


def describe_bad_byte(error: UnicodeDecodeError) -> str:
    """Say which byte is not UTF-8, and what comes before it."""
    before = error.object[: error.start].decode("utf-8", errors="ignore")[-20:]
    place = f'after "{before}"' if before.strip() else "at the beginning"
    return f"byte 0x{error.object[error.start]:02X} {place}"


def name_reason(error: OSError | RuntimeError | ValueError) -> str:
    """Return why a file cannot be read, without its path, which may be long."""
    return str(error.strerror) if isinstance(error, OSError) else str(error)
