"""Error classes. Each message names the problem, the place and the remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    file: Path
    line: int
    what: str
    what_to_do: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return make_line(f"{place}: {self.what}. {self.what_to_do}")


class ManifestError(UserError):
    """All problems of a manifest and of the files it names, in the order of its lines."""

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None) -> None:
        """Format the message.

        Args:
            problems: the problems to print.
            total: the number of all problems, if ``problems`` is only the first part of them.
        """
        self.problems = tuple(problems)
        total = len(self.problems) if total is None else total
        count = "1 problem" if total == 1 else f"{total} problems"
        listed = "\n".join(f"  {problem}" for problem in self.problems)
        if total > len(self.problems):
            listed += f"\n  ... and {total - len(self.problems)} more"
        super().__init__(f"{count} in the data. Nothing was written.\n{listed}")


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
    """The run received SIGTERM, saved a checkpoint and stopped."""

    exit_code = 128 + 15


def list_first(names: Sequence[str], at_most: int = 5) -> str:
    """List the first names, and the number of the others."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def shorten(text: str, at_most: int = 80) -> str:
    """Return the beginning of a text that is too long for a message, with its length."""
    return text if len(text) <= at_most else f"{text[:at_most]}... ({len(text)} characters)"


def suggest_name(wrong: str, known: Sequence[str]) -> str:
    """Build the remedy for a misspelt name: the closest known name or, if none is close, the first of them."""
    # The time grows with the length of the name, and a name this long is not misspelt.
    near = get_close_matches(wrong, known, n=1, cutoff=0.6) if len(wrong) <= 100 else []
    return f'Did you mean "{near[0]}"?' if near else f"Known: {list_first(known, 40)}."
