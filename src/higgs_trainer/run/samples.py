"""The sentences that a run speaks while it trains, and the real speech they are compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.context import Context, PromptClip, read_context
from higgs_trainer.dataset.examples import Rows
from higgs_trainer.errors import RecipeError
from higgs_trainer.evaluation.held_out_scores import HeldOutScores
from higgs_trainer.evaluation.judging import load_judges
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.clip_folder import ClipFolder
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.real_recordings import REFERENCE, ComparisonRecording, decode_row, find_rows
from higgs_trainer.speech.sampling import Sampling

if TYPE_CHECKING:
    from higgs_trainer.recipe.schema import SamplesRecipe

RECOGNISER = "whisper-tiny.en"


@dataclass(frozen=True)
class Samples:
    """What a run speaks before the first step, at each evaluation and after the last step.

    Args:
        section: the recipe's ``samples``.
        checkpoint, codec: of the run; the model is the one that is trained.
        held_out: rows of ``data.eval``, whose first ``section.held_out`` sentences are spoken.
        seed: of the draws. Every step draws alike, so that samples differ by the training alone.

    Raises:
        RecipeError: more held-out sentences are asked for than there are.
    """

    section: "SamplesRecipe"
    checkpoint: Checkpoint
    codec: Codec
    held_out: Rows | None
    seed: int

    def __post_init__(self) -> None:
        there = len(self.held_out or ())
        if self.section.held_out > there:
            raise RecipeError(
                f"samples.held_out is {self.section.held_out}, but data.eval has {there} utterances"
            )

    def generate(self, folder: Path) -> None:
        """Speak the recipe's texts, then the held-out sentences, each in its own context, into ``folder``."""
        sampling = Sampling(max_seconds=self.section.max_seconds, seed=self.seed)
        with ClipFolder(folder, self.codec) as clips:
            for number, clip in generate_codes(self.checkpoint, self._build_requests(), sampling=sampling):
                clips.write(number, clip)

    def _build_requests(self) -> list[Request]:
        references: tuple[PromptClip, ...] = ()
        if self.section.ref_audio is not None:
            codes_FK = self.codec.encode(read_audio(self.section.ref_audio))
            references = (PromptClip(self.section.ref_text, codes_FK),)
        return [
            *(Request(text, Context(references=references)) for text in self.section.texts),
            *(Request(row["text"], read_context(row)) for row in self._held_out_rows()),
        ]

    def list_recordings(self, train_rows: Rows) -> Iterator[ComparisonRecording]:
        """Yield the references of the samples, and the recordings of the same sentences that the data has."""
        if self.section.ref_audio is not None:
            reference_S = read_audio(self.section.ref_audio)
            for text in self.section.texts:
                yield ComparisonRecording(text, REFERENCE, self.section.ref_text, reference_S)
        sets = [train_rows] if self.held_out is None else [self.held_out, train_rows]
        for row in find_rows(self.section.texts, sets):
            yield from decode_row(row, self.codec, with_references=False)
        for row in self._held_out_rows():
            yield from decode_row(row, self.codec, with_references=True)

    def _held_out_rows(self) -> Sequence[Mapping[str, Any]]:
        return [self.held_out[i] for i in range(self.section.held_out)] if self.held_out is not None else []

    def load_scores(self) -> HeldOutScores:
        """Load the judges of the held-out sentences, and what they need to know of these sentences."""
        judges = load_judges(RECOGNISER, with_quality=False)
        return HeldOutScores(self._held_out_rows(), self.codec, judges)
