"""Read rows: one utterance each, in any known format. One pass finds every problem.

`prepare`, `generate` and `evaluate` read rows with the same checks and the same messages. For `generate` and `evaluate`
the field ``audio`` is optional, and the file may also be plain text with one sentence per line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.errors import ManifestError, Problem
from higgs_trainer.manifest.formats import DataSource, open_sentences, open_source
from higgs_trainer.manifest.row_checker import RowChecker, RowRules
from higgs_trainer.manifest.utterance import Utterance


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A row after checking: an utterance, or the problems of the row."""

    utterance: Utterance | None
    problems: tuple[Problem, ...]


def read_rows(path: str | Path, rules: RowRules = RowRules()) -> list[Utterance]:
    """Read and check all rows.

    Args:
        path: data in any known format. If ``rules.audio_required`` is False: JSON lines, or plain text with one
            sentence per line.

    Raises:
        ManifestError: lists all problems of all rows, each with its line.
        UserError: the data cannot be read.
    """
    source = open_source(path) if rules.audio_required else open_sentences(path)
    rows = list(check_rows(source, rules))
    if problems := [problem for row in rows for problem in row.problems]:
        raise ManifestError(problems)
    return [row.utterance for row in rows if row.utterance is not None]


def check_rows(source: DataSource, rules: RowRules = RowRules()) -> Iterator[CheckedRow]:
    """Read and check the rows one by one, without keeping them.

    Raises:
        UserError: the data cannot be read.
    """
    folder = source.folder.resolve()
    is_empty = True
    for row in source:
        is_empty = False
        checker = RowChecker(row, folder, source.trusted, rules)
        utterance = checker.check()
        yield CheckedRow(utterance, tuple(checker.problems))
    if is_empty:
        problem = Problem(source.path, 0, "there are no rows", "Write one row per line.")
        yield CheckedRow(None, (problem,))
