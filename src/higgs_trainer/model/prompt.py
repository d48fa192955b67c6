"""Encode an utterance and its context as token ids. Training and generation use the same code.

The chat template of the checkpoint lays out the conversation (`chat_template.py`). This module builds the messages for
the task, and expands each audio placeholder to as many tokens as its clip has columns, as ``HiggsAudioV2Processor``
does for raw audio. The processor itself is not used, because it would encode the audio in every call. Here it is
encoded once, before training.
docs/tasks.md shows the result for each task.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import UserError, shorten
from higgs_trainer.manifest.text import (
    SPECIAL_TOKEN,
    TextRules,
    clean_text,
    find_prompt_problem,
    find_speakers,
)
from higgs_trainer.model.chat_template import (
    AUDIO_MESSAGE,
    PLACEHOLDER_TOKEN,
    Message,
    lay_out,
    read_texts,
)
from higgs_trainer.model.delay_pattern import count_columns

SYSTEM_MESSAGE = "Generate audio following instruction."
SPEAKERS_SYSTEM_MESSAGE = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
"""The system message of Boson's and transformers' examples for a dialogue in which the model chooses the voices."""

DELAY_TOKEN = "<|reserved_special_token_6|>"
"""The second token of audio placeholders in the released tokenizer. The first is `PLACEHOLDER_TOKEN`."""


def build_messages(text: str, context: Context = Context()) -> list[Message]:
    """Build the conversation up to the text to be spoken: system, scene, clips as earlier turns, user.

    Texts are normalized as in `prepare`, so that a typed sentence has the same tokens in generation as in training.

    Raises:
        UserError: references are in the system message without a scene, which the chat template cannot lay out; an
            earlier turn has no text; or the text has a speaker without a reference, although others have one.
    """
    speakers = find_speakers(text)
    if context.references and any(number >= len(context.references) for number in speakers):
        raise UserError(
            f"the text has [SPEAKER{speakers[-1]}], but no reference for it. "
            "The first reference is [SPEAKER0]. Add a reference, or correct the tag."
        )
    texts = [text, *(turn.text or "" for turn in context.turns)]
    is_open_dialogue = (
        not context.references and len({n for words in texts for n in find_speakers(words)}) > 1
    )
    messages = [
        _build_text_message("system", SPEAKERS_SYSTEM_MESSAGE if is_open_dialogue else SYSTEM_MESSAGE)
    ]
    if context.references_in_system:
        messages.append(_build_speaker_scene(context))
    elif context.scene:
        messages.append(_build_text_message("scene", context.scene))
    earlier = context.turns if context.references_in_system else _tag_references(context) + context.turns
    for clip in earlier:
        if not clip.text:
            raise UserError("a reference or an earlier turn of the prompt has no text. Add its text.")
        messages += [_build_user_message(clip.text), AUDIO_MESSAGE]
    return [*messages, _build_user_message(text)]


def _tag_references(context: Context) -> tuple[PromptClip, ...]:
    """Return the references as earlier turns. If there are several, each text begins with the tag of its speaker."""
    if len(context.references) < 2:
        return context.references
    return tuple(
        PromptClip(f"[SPEAKER{i}] {clip.text}" if clip.text else None, clip.codes_FK)
        for i, clip in enumerate(context.references)
    )


def _build_speaker_scene(context: Context) -> Message:
    """Build the scene message with each speaker's clip after the scene.

    Without a scene, the released template would put a blank line between a speaker's name and clip, which the model has
    never seen in pretraining.
    """
    if not context.scene:
        raise UserError('references in the system message need a scene before them. Add "scene".')
    content: list[dict[str, str]] = [{"type": "text", "text": context.scene}]
    for i in range(len(context.references)):
        content += [{"type": "text", "text": f"SPEAKER{i}:"}, {"type": "audio"}]
    return {"role": "scene", "content": content}


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: Context,
    *,
    num_codebooks: int,
) -> Tensor:
    """Encode the prompt as token ids (T,), up to and including begin of audio, where generation begins.

    Raises:
        UserError: as `build_messages`, or a text cannot be part of a prompt.
        CheckpointError: the chat template of the tokenizer cannot be used (`lay_out`).
    """
    messages = build_messages(text, context)
    frames = [len(clip.codes_FK) for clip in context.clips]
    return _encode(tokenizer, messages, frames, num_codebooks, is_whole=False)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: Context,
    target_frames: int,
    *,
    num_codebooks: int,
) -> Tensor:
    """Encode the whole conversation as token ids (T,); its last turn is the target clip of ``target_frames`` frames.

    The ids begin with those of `encode_prompt`.
    """
    messages = build_messages(text, context)
    frames = [*(len(clip.codes_FK) for clip in context.clips), target_frames]
    return _encode(tokenizer, messages, frames, num_codebooks, is_whole=True)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    clip_frames: Sequence[int],
    num_codebooks: int,
    *,
    is_whole: bool,
) -> Tensor:
    texts = read_texts(messages)
    for text in texts:
        _check_text(text, _find_other_special_tokens(tokenizer))
    layouts = lay_out(tokenizer, messages)
    clips = [_build_placeholders(num_frames, num_codebooks) for num_frames in clip_frames]
    prompt = (layouts.conversation if is_whole else layouts.prompt).fill(texts, clips)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _build_placeholders(num_frames: int, num_codebooks: int) -> str:
    """Build one token per column. The last K - 1, in which the codebooks end one by one, are delay tokens."""
    num_delay = num_codebooks - 1
    return (
        PLACEHOLDER_TOKEN * (count_columns(num_frames, num_codebooks) - num_delay) + DELAY_TOKEN * num_delay
    )


def _check_text(text: str, other_tokens: Sequence[str]) -> None:
    """Raise UserError if the text cannot be part of a prompt, or contains one of the other special tokens."""
    problem = find_prompt_problem(text)
    if problem is None and (token := next((token for token in other_tokens if token in text), None)):
        problem = f'contains the special token "{token}"', "Remove it: the model would not read it as text."
    if problem is not None:
        raise UserError(f"the text {shorten(repr(text))} {problem[0]}. {problem[1]}")


@lru_cache(8)
def _find_other_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the special tokens of a tokenizer that are not of the form that `find_prompt_problem` knows."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token for token in added if not SPECIAL_TOKEN.fullmatch(token))


def _build_user_message(text: str) -> Message:
    return _build_text_message("user", clean_text(text, TextRules()).text)


def _build_text_message(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}
