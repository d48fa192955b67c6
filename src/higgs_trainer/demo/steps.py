"""Steps that both forms of the demo share."""

from pathlib import Path

from rich.console import Console

from higgs_trainer.demo.outcome import ClipSet
from higgs_trainer.errors import HiggsTrainerError
from higgs_trainer.evaluation.comparison import generate_clips
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.run.check import CheckReport
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import load_speech_model

NUM_REFERENCES = 20
"""The number of recordings whose mean embedding represents a voice."""

SAMPLING = Sampling(greedy=True, max_seconds=8.0)


def print_heading(console: Console, step: str, description: str) -> None:
    """Print the heading of a step."""
    console.print(f"\n[bold cyan]{step:8}[/bold cyan] {description}")


def print_checks(console: Console, report: CheckReport) -> None:
    """Print the results of ``check``.

    Raises:
        HiggsTrainerError: a check failed. The demo's data is correct, so this is a bug.
    """
    console.print(report.guard, markup=False, highlight=False, soft_wrap=True)
    for result in report.results:
        console.print(
            f"{'passed' if result.passed else 'FAILED'}  {result.name} ({result.found})", highlight=False
        )
    if not report.passed:
        raise HiggsTrainerError("a check of the demo failed, as shown above; please report it")


def generate_set(model: Path, strings: list[str], folder: Path) -> ClipSet:
    """Generate a clip of each string into a folder, as ``higgs-trainer generate`` does."""
    sentences = [EvaluationSentence(Request(string)) for string in strings]
    clips, _ = generate_clips(load_speech_model(model, sampling=SAMPLING), sentences, folder)
    return ClipSet(strings, clips)
