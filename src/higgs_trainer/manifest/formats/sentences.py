"""Plain text with one sentence per line, for `generate` and `evaluate`."""

from collections.abc import Iterator

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.json_lines import read_lines
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per line. Blank lines are allowed only at the end."""
    first_blank = 0
    for line, text in read_lines(source.path):
        if isinstance(text, Problem):
            yield RawRow(source.path, line, line, None, (text,))
        elif not text.strip():
            first_blank = first_blank or line
        else:
            if first_blank:
                yield build_bad_row(
                    source.path,
                    first_blank,
                    first_blank,
                    "the line is empty",
                    "Write a sentence or remove the line: the clips are numbered by sentence.",
                )
                first_blank = 0
            yield RawRow(source.path, line, line, {"text": text})
