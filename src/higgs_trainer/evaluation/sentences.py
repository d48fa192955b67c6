"""The sentences of an evaluation, the same for all models, with the recordings that their speech is compared with.

They come from a script (a list of texts, JSON lines, a manifest) or from a prepared held-out set.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.context import read_context
from higgs_trainer.dataset.prepared import check_codec, read_prepared
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.languages import DEFAULT_LANGUAGE
from higgs_trainer.evaluation.normalized_text import has_recognisable_words
from higgs_trainer.manifest.utterance import Utterance, Voice
from higgs_trainer.speech.generate import Request


@dataclass(frozen=True)
class EvaluationSentence:
    """A request to a model, and the recordings that the resulting speech is compared with.

    Attributes:
        voice: a name for the voice that the speech should have. Sentences with the same name share their recordings.
        recording_S: a recording of the same sentence, or None.
        references: clips (S,) of the voice that the model gets in its prompt.
    """

    request: Request
    voice: str = ""
    recording_S: Tensor | None = None
    references: tuple[Tensor, ...] = ()


def build_sentences(
    script: Sequence[Utterance], build_request: Callable[[Utterance], Request], voice: Voice
) -> list[EvaluationSentence]:
    """Build the sentences of a script. A line without references has those of ``voice``.

    Raises:
        UserError: a line has no word, or a recording cannot be read.
    """
    sentences = []
    for number, line in enumerate(script, start=1):
        request = build_request(line)
        _check_has_words(request, f"line {number}")
        references = line.references or voice.references
        sentences.append(
            EvaluationSentence(
                request=request,
                voice=line.speaker or (str(references[0].audio) if references else ""),
                recording_S=None if line.audio is None else read_audio(line.audio),
                references=tuple(read_audio(clip.audio) for clip in references),
            )
        )
    return sentences


def read_sentences(
    folder: str | Path, codec: Codec, *, language: str | None = None
) -> list[EvaluationSentence]:
    """Read the sentences of a prepared folder (`build_row_sentences`).

    Raises:
        CheckpointError: this is not a prepared folder, or another codec encoded it.
        UserError: a text has no word.
    """
    prepared = read_prepared(folder)
    check_codec(prepared.card, codec)
    rows = (prepared.rows[i] for i in range(len(prepared.rows)))
    return build_row_sentences(rows, codec, language=language)


def build_row_sentences(
    rows: Iterable[Mapping[str, Any]], codec: Codec, *, language: str | None = None
) -> list[EvaluationSentence]:
    """Build the sentences of prepared rows, each with the context of its row.

    Rows hold codes, so their recordings are decoded by ``codec``.

    Args:
        language: the language of rows that name none.

    Raises:
        UserError: a text has no word.
    """
    sentences = []
    for row in rows:
        context = read_context(row)
        request = Request(row["text"], context, language=row["language"] or language or DEFAULT_LANGUAGE)
        _check_has_words(request, row["utterance_id"])
        sentences.append(
            EvaluationSentence(
                request=request,
                voice=row["speaker"] or "",
                recording_S=codec.decode(row["codes_FK"]),
                references=tuple(codec.decode(clip.codes_FK) for clip in context.references),
            )
        )
    return sentences


def _check_has_words(request: Request, place: str) -> None:
    if not has_recognisable_words(request.text, language=request.language):
        raise UserError(f"{place}: {request.text!r} has no word that can be recognised. Remove the line.")
