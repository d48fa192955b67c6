"""A folder of recordings, each with its words in a text file of the same name: `a/one.flac` and `a/one.txt`.

Subfolders are read too. A recording without a text and a text without a recording are problems: one of the two is lost,
and which files are not data would be a guess.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.columns import AUDIO_SUFFIXES
from higgs_trainer.manifest.formats.json_lines import read_lines
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row, raise_unreadable


def matches(path: Path) -> bool:
    """Match a folder that contains a recording with a text of the same name."""
    return path.is_dir() and any(
        audio.with_suffix(".txt").is_file() for audio in find_files(path, AUDIO_SUFFIXES)
    )


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per recording, in the order of the paths."""
    number = 0
    for number, audio in enumerate(sorted(find_files(source.path, AUDIO_SUFFIXES)), start=1):
        words = audio.with_suffix(".txt")
        if not words.is_file():
            yield build_bad_row(
                audio, 0, number, "the recording has no text file", f"Write its words to {words.name}."
            )
            continue
        text = read_text(words)
        if isinstance(text, Problem):
            yield RawRow(words, text.line, number, None, (text,))
        else:
            fields = {"audio": str(audio.relative_to(source.path)), "text": text}
            yield RawRow(words, 1, number, fields)
    for words in sorted(find_files(source.path, {".txt"})):
        if not any(words.with_suffix(suffix).is_file() for suffix in _with_capitals(AUDIO_SUFFIXES)):
            number += 1
            yield build_bad_row(
                words, 0, number, "the text file has no recording", "Move it away if it is not a transcript."
            )


def is_file(path: Path) -> bool:
    """Return whether the path is a file. An impossible name (too long, with a NUL) is not a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str | Problem:
    """Return the words in a text file, or its problem."""
    lines = []
    for _, text in read_lines(path):
        if isinstance(text, Problem):
            return text
        lines.append(text)
    return "\n".join(lines)


def find_files(folder: Path, suffixes: frozenset[str] | set[str]) -> Iterator[Path]:
    """Find the files with these suffixes in either case, except hidden files. Links to folders are followed.

    Raises:
        UserError: a subfolder or a file cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for parent, subfolders, names in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        found = os.stat(parent)
        if (found.st_dev, found.st_ino) in seen:
            # A link back to a folder above.
            subfolders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in suffixes and path.is_file():
                yield path


def _with_capitals(suffixes: frozenset[str]) -> list[str]:
    return [*suffixes, *(suffix.upper() for suffix in suffixes)]
