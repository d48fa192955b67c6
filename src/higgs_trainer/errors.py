"""The error classes. Each message says what is wrong, where, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class HiggsTrainerError(Exception):
    """Base of every error that this package raises on purpose. The command line prints the message alone and exits
    with ``exit_code``."""

    exit_code = 1


class UserError(HiggsTrainerError):
    """A mistake in what the user gave."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong at one place. Lines count from 1; line 0 is the file as a whole."""

    file: Path
    line: int
    what: str
    what_to_do: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {self.what}; {self.what_to_do}"


class ManifestError(UserError):
    """Everything wrong with a manifest and the files it names, together, in the order of its lines."""

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None) -> None:
        """``total``: how many there are, where `problems` are only the first of very many."""
        self.problems = tuple(problems)
        total = len(self.problems) if total is None else total
        count = "1 problem" if total == 1 else f"{total} problems"
        listed = "\n".join(f"  {problem}" for problem in self.problems)
        if total > len(self.problems):
            listed += f"\n  ... and {total - len(self.problems)} more"
        super().__init__(f"{count} in the manifest; nothing was written:\n{listed}")


class RecipeError(UserError):
    """A recipe, or an override given on the command line, that cannot be used."""


class AudioError(UserError):
    """An audio file that cannot be read as speech: broken, empty, too short or not finite."""

    def __init__(self, file: str | Path, what: str, what_to_do: str) -> None:
        super().__init__(f"{file} {what}; {what_to_do}")
        self.what, self.what_to_do = what, what_to_do


class CheckpointError(UserError):
    """A model, codec or prepared folder that is not what it should be, or does not fit the others."""


class LossError(HiggsTrainerError):
    """A step whose loss cannot be computed: no supervised cell, or a value that is not finite."""


class SaveError(HiggsTrainerError):
    """Something that a run has to keep could not be written: the disk is full, or not there."""


class Terminated(HiggsTrainerError):
    """The run was asked to end (SIGTERM), and did, after saving."""

    exit_code = 128 + 15


def name_the_near_one(wrong: str, known: Sequence[str]) -> str:
    """What to do about a misspelt name: the closest known one or, where none is close, all of them."""
    near = get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
