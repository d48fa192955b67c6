"""The voices that clips should have, as mean speaker embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.evaluation.speaker_encoder import SpeakerEncoder


@dataclass(frozen=True)
class VoiceEmbeddings:
    """For each sentence, the mean embedding (D,) of the voice that it should have, and those of other voices.

    None and an empty list where there are no recordings of them.
    """

    own: Sequence[Tensor | None]
    others: Sequence[Sequence[Tensor]]


def embed_voices(
    sentences: Sequence[EvaluationSentence],
    encoder: SpeakerEncoder,
    sample_rate_hz: int,
    *,
    other_voice: Sequence[Tensor] = (),
) -> VoiceEmbeddings:
    """Embed the voices of sentences.

    A sentence's voice is the mean over the other sentences of that voice. Its own recording is left out, because a
    recording resembles itself. If that leaves nothing, the first reference is the voice.

    Args:
        other_voice: recordings (S,) of another person. Without any, the other voices among the sentences are used.
    """
    recorded = [
        None if sentence.recording_S is None else encoder.embed(sentence.recording_S, sample_rate_hz)
        for sentence in sentences
    ]
    own = []
    for number, sentence in enumerate(sentences):
        of_its_voice = [
            recorded[other]
            for other in range(len(sentences))
            if other != number and sentences[other].voice == sentence.voice
        ]
        referenced = [encoder.embed(clip_S, sample_rate_hz) for clip_S in sentence.references[:1]]
        found = _compute_mean(of_its_voice)
        own.append(_compute_mean(referenced) if found is None else found)
    by_voice = {sentence.voice: own[i] for i, sentence in enumerate(sentences)}
    other_D = _compute_mean([encoder.embed(wave_S, sample_rate_hz) for wave_S in other_voice])
    others = [
        [other_D]
        if other_D is not None
        else [
            embedding_D
            for voice, embedding_D in by_voice.items()
            if voice != sentence.voice and embedding_D is not None
        ]
        for sentence in sentences
    ]
    return VoiceEmbeddings(own, others)


def embed_one_voice(
    recordings: Sequence[Tensor], encoder: SpeakerEncoder, sample_rate_hz: int, *, num_sentences: int
) -> VoiceEmbeddings:
    """Embed one voice, the mean over ``recordings`` (S,), that all sentences should have.

    Raises:
        ValueError: all recordings are silent, or there are none.
    """
    voice_D = _compute_mean([encoder.embed(wave_S, sample_rate_hz) for wave_S in recordings])
    if voice_D is None:
        raise ValueError("a voice needs at least one recording that is not silent")
    return VoiceEmbeddings([voice_D] * num_sentences, [[]] * num_sentences)


def _compute_mean(embeddings: Sequence[Tensor | None]) -> Tensor | None:
    """Return the mean, scaled to length one. None if all embeddings are missing or those of silence."""
    heard = [embedding for embedding in embeddings if embedding is not None and embedding.any()]
    return torch.nn.functional.normalize(torch.stack(heard).mean(dim=0), dim=0) if heard else None
