"""A recogniser for tests, which hears what it is told and listens to nothing."""

from torch import Tensor

from higgs_trainer.evaluation.languages import WHISPER_LANGUAGES
from higgs_trainer.evaluation.recogniser_source import RecogniserSource

KNOWS_ALL = RecogniserSource("parrot", "packaged", WHISPER_LANGUAGES)


class Parrot:
    """A recogniser that returns the given transcripts, one for each clip. ``asked``: the languages, in order."""

    def __init__(self, *transcripts: str, source: RecogniserSource = KNOWS_ALL) -> None:
        self.transcripts, self.source = list(transcripts), source
        self.asked: list[str] = []

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int, *, language: str) -> str:
        self.asked.append(language)
        return self.transcripts.pop(0)
