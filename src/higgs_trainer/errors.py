"""Error classes. Each message names the problem, the place and the remedy."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from higgs_trainer.printable import make_line


class HiggsTrainerError(Exception):
    """Base class of every error that this package raises on purpose.

    The command line prints the message without a traceback and exits with ``exit_code``.
    """

    exit_code = 1


class UserError(HiggsTrainerError):
    """A mistake in the user's input."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One problem at one place.

    Attributes:
        line: counts from 1; 0 means the file as a whole.
        what: the problem, without a full stop.
        what_to_do: the remedy, one or more complete sentences.
        kind: the problem without what is special about this place, such as the name of a file, if ``what`` names one.
            Problems of one kind are listed together. Numbers make no difference.
    """

    file: Path
    line: int
    what: str
    what_to_do: str
    kind: str = ""

    @property
    def place(self) -> str:
        """The file and, if the problem is that of a line, the line."""
        return make_line(f"{self.file}:{self.line}" if self.line else str(self.file))

    @property
    def general(self) -> str:
        """The problem as it would be said of many places."""
        return DIGITS.sub("N", self.kind or self.what)

    def __str__(self) -> str:
        return make_line(f"{self.place}: {self.what}. {self.what_to_do}")


class ManifestError(UserError):
    """All problems of a manifest and of the files it names.

    Attributes:
        problems: the first problems, in the order of the rows.
    """

    def __init__(self, problems: Iterable[Problem], *, page: Path | None = None) -> None:
        """Format the message.

        Args:
            problems: are read once. Only the first of them, and of each kind, are kept.
            page: the page about the data that was written although the data was rejected.
        """
        kinds: dict[str, _Kind] = {}
        first: list[Problem] = []
        total = 0
        for total, problem in enumerate(problems, start=1):
            if len(first) < PROBLEMS_KEPT:
                first.append(problem)
            if len(kinds) < PROBLEMS_KEPT or problem.general in kinds:
                kinds.setdefault(problem.general, _Kind()).add(total, problem)
        self.problems = tuple(first)
        entries = sorted(entry for kind in kinds.values() for entry in kind.list_entries())
        listed = "".join(f"\n  {text}" for _, _, text in entries[:ENTRIES_SHOWN])
        shown = sum(count for _, count, _ in entries[:ENTRIES_SHOWN])
        more = f"\n  ... and {total - shown:,} more" if total > shown else ""
        written = "Nothing was written."
        if page is not None:
            written = f"No dataset was written. The page about the data is {page}."
        super().__init__(f"{count_noun(total, 'problem')} in the data. {written}{listed}{more}")


LISTED_ONE_BY_ONE = 10
"""Problems of a kind that are listed one by one. More are one entry with a count and `EXAMPLES`."""
EXAMPLES = 3
ENTRIES_SHOWN = 60
PROBLEMS_KEPT = 1000
DIGITS = re.compile(r"\d+([.,]\d+)*")


@dataclass
class _Kind:
    """The problems of one kind: their number, the first with their positions, and what all have in common."""

    count: int = 0
    first: list[tuple[int, Problem]] = field(default_factory=list)
    same_what: bool = True
    same_remedy: bool = True

    def add(self, position: int, problem: Problem) -> None:
        self.count += 1
        if len(self.first) < LISTED_ONE_BY_ONE:
            self.first.append((position, problem))
        example = self.first[0][1]
        self.same_what = self.same_what and problem.what == example.what
        self.same_remedy = self.same_remedy and problem.what_to_do == example.what_to_do

    def list_entries(self) -> list[tuple[int, int, str]]:
        """Return entries of a list: the position of the first problem, the number of problems, the text."""
        if self.count <= LISTED_ONE_BY_ONE:
            return [(position, 1, str(problem)) for position, problem in self.first]
        position, example = self.first[0]
        examples = [problem for _, problem in self.first[:EXAMPLES]]
        head = f"{self.count:,} rows: {make_line(example.what if self.same_what else example.general)}."
        if self.same_remedy:
            head += f" {make_line(example.what_to_do)}"
        if self.same_what and self.same_remedy:
            return [(position, self.count, f"{head} For example {', '.join(one.place for one in examples)}.")]
        if self.same_remedy:
            lines = [f"{one.place}: {make_line(one.what)}" for one in examples]
        else:
            lines = [str(one) for one in examples]
        return [(position, self.count, "\n   - ".join([f"{head} For example:", *lines]))]


class RecipeError(UserError):
    """An invalid recipe, or an invalid override on the command line."""


class AudioError(UserError):
    """An audio file that cannot be used as speech: damaged, empty, too short or not finite."""

    def __init__(self, file: str | Path, what: str, what_to_do: str) -> None:
        super().__init__(f"{file} {what}. {what_to_do}")
        self.what, self.what_to_do = what, what_to_do


class CheckpointError(UserError):
    """A model, codec or prepared dataset that is invalid, or that does not match the others."""


class DamageError(CheckpointError):
    """A file that is not as it was written: missing, cut, changed, or added later."""

    def __init__(self, what: str, what_to_do: str) -> None:
        super().__init__(f"{what}. {what_to_do}")
        self.what, self.what_to_do = what, what_to_do


class VersionError(HiggsTrainerError):
    """A version of a library that calls our code in a way that was never tested."""


class LossError(HiggsTrainerError):
    """A training step without a loss: no supervised cell, or a value that is not finite."""


class SaveError(HiggsTrainerError):
    """A file or folder that could not be written, for example because the disk is full."""


class Terminated(HiggsTrainerError):
    """The run received SIGTERM, saved a checkpoint and stopped. All ranks stop after the same step."""

    exit_code = 128 + 15


class Interrupted(Terminated):
    """The run received Ctrl-C, saved a checkpoint and stopped."""

    exit_code = 128 + 2


def list_first(names: Sequence[str], at_most: int = 5) -> str:
    """List the first names, and the number of the others."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def count_noun(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 word", "5,000 rows"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def shorten(text: str, at_most: int = 80) -> str:
    """Return the beginning of a text that is too long for a message, with its length."""
    return text if len(text) <= at_most else f"{text[:at_most]}... ({len(text)} characters)"


def suggest_name(wrong: str, known: Sequence[str]) -> str:
    """Build the remedy for a misspelt name: the closest known name or, if none is close, the first of them."""
    # The time grows with the length of the name, and a name this long is not misspelt.
    near = get_close_matches(wrong, known, n=1, cutoff=0.6) if len(wrong) <= 100 else []
    return f'Did you mean "{near[0]}"?' if near else f"Known: {list_first(known, 40)}."
