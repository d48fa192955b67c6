"""From an utterance to the token ids that the model reads; the same code for training and for generation.

The layout of the conversation is the chat template's, which comes with the checkpoint. Only two things are done here:
the messages are built for the task, and each audio placeholder is widened to as many tokens as its clip has columns,
as ``HiggsAudioV2Processor`` does it for raw audio. (Here the audio is encoded long before, so the processor, which
encodes at every call, is not called.) docs/tasks.md shows what comes out for each task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import UserError
from higgs_trainer.manifest.text import TextRules, clean_text, find_speakers, find_special_tokens
from higgs_trainer.model.delay_pattern import count_columns

SYSTEM_MESSAGE = "Generate audio following instruction."
SPEAKERS_SYSTEM_MESSAGE = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
"""What Boson's and transformers' examples tell the model before a dialogue of voices that it is to choose itself."""

Message = dict[str, Any]


@dataclass(frozen=True)
class AudioTokens:
    """The text of the tokens that stand for audio, as the released tokenizer names them."""

    placeholder: str = "<|AUDIO_OUT|>"
    delay: str = "<|reserved_special_token_6|>"


def build_messages(text: str, context: Context = Context()) -> list[Message]:
    """The conversation that ends with the text to be spoken: system, perhaps scene, clips as earlier turns, user.

    Texts are put in order as `prepare` does it, so that a sentence typed for generation is tokenized as in training.

    Raises:
        UserError: references in the system message without a scene, which the chat template cannot lay out; an
            earlier turn without its words; or a speaker in the text without a reference, where others have one.
    """
    speakers = find_speakers(text)
    if context.references and any(number >= len(context.references) for number in speakers):
        raise UserError(
            f"the text has [SPEAKER{speakers[-1]}], but no reference for it; the first reference is [SPEAKER0]"
        )
    texts = [text, *(turn.text or "" for turn in context.turns)]
    is_open_dialogue = (
        not context.references and len({n for words in texts for n in find_speakers(words)}) > 1
    )
    messages = [_say("system", SPEAKERS_SYSTEM_MESSAGE if is_open_dialogue else SYSTEM_MESSAGE)]
    if context.references_in_system:
        messages.append(_describe_speakers(context))
    elif context.scene:
        messages.append(_say("scene", context.scene))
    earlier = context.turns if context.references_in_system else _tag_references(context) + context.turns
    for clip in earlier:
        if not clip.text:
            raise UserError("an earlier turn of the prompt is a clip and its words; give its text")
        messages += [_say_words(clip.text), _audio()]
    return [*messages, _say_words(text)]


def _tag_references(context: Context) -> tuple[PromptClip, ...]:
    """References as earlier turns: where there are several, each text says whose voice it is."""
    if len(context.references) < 2:
        return context.references
    return tuple(
        PromptClip(f"[SPEAKER{i}] {clip.text}" if clip.text else None, clip.codes_FK)
        for i, clip in enumerate(context.references)
    )


def _describe_speakers(context: Context) -> Message:
    """The scene, and behind it each speaker's clip. Without a scene, the released template would put a blank line
    between a speaker's name and clip, as nothing in pretraining did."""
    if not context.scene:
        raise UserError("references in the system message stand behind a scene; describe one")
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
    tokens: AudioTokens = AudioTokens(),
) -> Tensor:
    """Token ids (T,) up to and with the begin-of-audio token: what generation continues."""
    messages = build_messages(text, context)
    frames = [len(clip.codes_FK) for clip in context.clips]
    return _encode(tokenizer, messages, frames, num_codebooks, tokens, add_generation_prompt=True)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: Context,
    target_frames: int,
    *,
    num_codebooks: int,
    tokens: AudioTokens = AudioTokens(),
) -> Tensor:
    """Token ids (T,) of the whole conversation, the target clip of ``target_frames`` its last turn: what training
    reads. It begins with exactly the ids of `encode_prompt`."""
    messages = [*build_messages(text, context), _audio()]
    frames = [*(len(clip.codes_FK) for clip in context.clips), target_frames]
    return _encode(tokenizer, messages, frames, num_codebooks, tokens, add_generation_prompt=False)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    clip_frames: Sequence[int],
    num_codebooks: int,
    tokens: AudioTokens,
    *,
    add_generation_prompt: bool,
) -> Tensor:
    for message in messages:
        _refuse_special_tokens(message)
    rendered = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    pieces = str(rendered).split(tokens.placeholder)
    if len(pieces) != len(clip_frames) + 1:
        raise ValueError(
            f"the chat template laid out {len(pieces) - 1} of {len(clip_frames)} clips; it is not this model's"
        )
    widened = pieces[0]
    for num_frames, piece in zip(clip_frames, pieces[1:], strict=True):
        widened += _placeholders(num_frames, num_codebooks, tokens) + piece
    ids = tokenizer(widened, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _placeholders(num_frames: int, num_codebooks: int, tokens: AudioTokens) -> str:
    """One token a column; the last K - 1, in which the codebooks end one by one, are delay tokens."""
    num_delay = num_codebooks - 1
    return (
        tokens.placeholder * (count_columns(num_frames, num_codebooks) - num_delay) + tokens.delay * num_delay
    )


def _refuse_special_tokens(message: Message) -> None:
    for part in message["content"]:
        for token in find_special_tokens(part.get("text", "")):
            raise UserError(f"the text {part['text']!r} holds the special token {token!r}; take it out")


def _say_words(text: str) -> Message:
    return _say("user", clean_text(text, TextRules()).text)


def _say(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _audio() -> Message:
    return {"role": "assistant", "content": [{"type": "audio"}]}
