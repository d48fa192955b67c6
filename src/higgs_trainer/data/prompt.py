"""From an utterance to the token ids that the model reads; the same code for training and for generation.

The layout of the conversation is the chat template's, which comes with the checkpoint. Only two things are done here:
the messages are built for the task, and each audio placeholder is widened to as many tokens as its clip has columns,
as ``HiggsAudioV2Processor`` does it for raw audio. (Here the audio is encoded long before, so the processor, which
encodes at every call, is not called.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_trainer.data.delay_pattern import count_columns
from higgs_trainer.errors import UserError

SYSTEM_MESSAGE = "Generate audio following instruction."

Message = dict[str, Any]


@dataclass(frozen=True)
class AudioTokens:
    """The text of the tokens that stand for audio, as the released tokenizer names them."""

    placeholder: str = "<|AUDIO_OUT|>"
    delay: str = "<|reserved_special_token_6|>"


def build_messages(text: str, *, scene: str | None = None, ref_text: str | None = None) -> list[Message]:
    """The conversation that ends with the text to be spoken.

    Single speaker: system, perhaps scene, user. Zero-shot cloning: the reference comes first, as an earlier turn of
    user (its transcript) and assistant (its audio).
    """
    messages = [_say("system", SYSTEM_MESSAGE)]
    if scene:
        messages.append(_say("scene", scene))
    if ref_text:
        messages += [_say("user", ref_text), _audio()]
    return [*messages, _say("user", text)]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    clip_frames: Sequence[int],
    *,
    num_codebooks: int,
    tokens: AudioTokens = AudioTokens(),
) -> Tensor:
    """Token ids (T,) of a conversation up to and with the begin-of-audio token: what generation continues.

    ``clip_frames``: the number of frames of each clip in the conversation, in order.
    """
    return _encode(tokenizer, messages, clip_frames, num_codebooks, tokens, add_generation_prompt=True)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    clip_frames: Sequence[int],
    *,
    num_codebooks: int,
    tokens: AudioTokens = AudioTokens(),
) -> Tensor:
    """Token ids (T,) of a conversation whose last turn is the target clip, appended here: what training reads."""
    return _encode(
        tokenizer, [*messages, _audio()], clip_frames, num_codebooks, tokens, add_generation_prompt=False
    )


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
        _refuse_audio_tokens(message, tokens)
    rendered = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    pieces = str(rendered).split(tokens.placeholder)
    if len(pieces) != len(clip_frames) + 1:
        raise ValueError(
            f"the conversation has {len(pieces) - 1} audio turns, but {len(clip_frames)} clips were given"
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


def _refuse_audio_tokens(message: Message, tokens: AudioTokens) -> None:
    for part in message["content"]:
        text = part.get("text", "")
        for token in (tokens.placeholder, tokens.delay):
            if token in text:
                raise UserError(
                    f"the text {text!r} holds the audio token {token!r}; take it out of the transcript"
                )


def _say(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _audio() -> Message:
    return {"role": "assistant", "content": [{"type": "audio"}]}
