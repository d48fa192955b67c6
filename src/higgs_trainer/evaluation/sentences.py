"""What models are evaluated on: the same sentences for all, with what their speech is compared with.

From a script (a list of texts, JSON lines, a manifest) or from a prepared, held-out set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.context import read_context
from higgs_trainer.dataset.prepared import check_codec, read_prepared
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.judges import normalize_transcript
from higgs_trainer.evaluation.speaker_encoder import SpeakerEncoder
from higgs_trainer.manifest.utterance import Utterance, Voice
from higgs_trainer.speech.generate import Request


@dataclass(frozen=True)
class Sentence:
    """A request with what is known of it.

    Attributes:
        voice: a name for the voice that it should have; sentences of one name share their recordings as references.
        recording_S: the same sentence, recorded; None where there is none.
        references: clips (S,) of the voice that the model is given in the prompt.
    """

    request: Request
    voice: str
    recording_S: Tensor | None
    references: tuple[Tensor, ...]


def build_sentences(
    script: Sequence[Utterance], build_request: Callable[[Utterance], Request], voice: Voice
) -> list[Sentence]:
    """From lines of a script, in their own voices or else in ``voice``.

    Raises:
        UserError: a line has no word to recognise, or a recording cannot be read.
    """
    sentences = []
    for number, line in enumerate(script, start=1):
        _check_has_words(line.text, f"line {number}")
        references = line.references or voice.references
        sentences.append(
            Sentence(
                request=build_request(line),
                voice=line.speaker or (str(references[0].audio) if references else ""),
                recording_S=None if line.audio is None else read_audio(line.audio),
                references=tuple(read_audio(clip.audio) for clip in references),
            )
        )
    return sentences


def read_sentences(folder: str | Path, codec: Codec, *, count: int | None = None) -> list[Sentence]:
    """From a prepared folder: each row in its own context. It holds codes, so recordings are what the codec leaves of
    them. ``count``: only the first rows.

    Raises:
        CheckpointError: it is no prepared folder, or of another codec.
        UserError: a text has no word to recognise.
    """
    prepared = read_prepared(folder)
    check_codec(prepared.card, codec)
    sentences = []
    for row in (prepared.rows[i] for i in range(len(prepared.rows))[:count]):
        _check_has_words(row["text"], row["utterance_id"])
        context = read_context(row, codec.num_codebooks)
        codes_FK = torch.as_tensor(row["codes"], dtype=torch.long).reshape(-1, codec.num_codebooks)
        sentences.append(
            Sentence(
                request=Request(row["text"], context, language=row["language"] or "en"),
                voice=row["speaker"] or "",
                recording_S=codec.decode(codes_FK),
                references=tuple(codec.decode(clip.codes_FK) for clip in context.references),
            )
        )
    return sentences


@dataclass(frozen=True)
class VoicePrints:
    """For each sentence, the mean embedding (D,) of the voice that it should have, and those of other voices; None
    and empty where there is no sound of them."""

    own: Sequence[Tensor | None]
    others: Sequence[Sequence[Tensor]]


def embed_voices(
    sentences: Sequence[Sentence],
    encoder: SpeakerEncoder,
    sample_rate_hz: int,
    *,
    other_voice: Sequence[Tensor] = (),
) -> VoicePrints:
    """The voices of sentences. A sentence's own recording is left out of its voice, lest a recording resemble itself;
    where that leaves nothing, the references stand for it.

    ``other_voice``: recordings (S,) of somebody else; without any, the other voices among the sentences.
    """
    recorded = [
        None if sentence.recording_S is None else encoder.embed(sentence.recording_S, sample_rate_hz)
        for sentence in sentences
    ]
    lent = [
        [encoder.embed(clip_S, sample_rate_hz) for clip_S in sentence.references] for sentence in sentences
    ]
    own = [
        _mean(
            [
                recorded[other]
                for other in range(len(sentences))
                if other != number and sentences[other].voice == sentence.voice
            ]
        )
        for number, sentence in enumerate(sentences)
    ]
    own = [_mean(lent[i][:1]) if found is None else found for i, found in enumerate(own)]
    by_voice = {sentence.voice: own[i] for i, sentence in enumerate(sentences)}
    stranger = _mean([encoder.embed(wave_S, sample_rate_hz) for wave_S in other_voice])
    others = [
        [stranger]
        if stranger is not None
        else [
            print_D for voice, print_D in by_voice.items() if voice != sentence.voice and print_D is not None
        ]
        for sentence in sentences
    ]
    return VoicePrints(own, others)


def _mean(embeddings: Sequence[Tensor | None]) -> Tensor | None:
    """Of length one; None of nothing, or of silence alone."""
    heard = [embedding for embedding in embeddings if embedding is not None and embedding.any()]
    return torch.nn.functional.normalize(torch.stack(heard).mean(dim=0), dim=0) if heard else None


def _check_has_words(text: str, where: str) -> None:
    if not normalize_transcript(text):
        raise UserError(f"{where}: {text!r} has no word that a recogniser could hear; take it out")
