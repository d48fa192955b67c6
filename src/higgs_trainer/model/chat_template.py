"""Read the layout of a prompt from the chat template of a checkpoint.

The template is rendered once for each kind of conversation (its roles, and which parts are texts or clips), with
markers in place of the texts. The result is checked: every text and clip is in it once, whole and in order. Then
prompts are built from this layout, so no text can change what the template does, and none can be lost. A template
other than the one in this package is rendered in a process of its own, with limits (`template_process.py`).
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from higgs_trainer.errors import CheckpointError, shorten
from higgs_trainer.limits import (
    PROMPT_CHARACTERS,
    TEMPLATE_BYTES,
    TEMPLATE_MEMORY_BYTES,
    TEMPLATE_SECONDS,
    TEMPLATE_WAIT_SECONDS,
)
from higgs_trainer.model import template_process

Message = dict[str, Any]
"""A message of a conversation: its role, and its content, a list of texts and clips."""

PLACEHOLDER_TOKEN = "<|AUDIO_OUT|>"
"""What a template writes in place of a clip."""
AUDIO_MESSAGE: Message = {"role": "assistant", "content": [{"type": "audio"}]}
MARKERS = (
    "PlaceOfText{}\n[Ä]  <x> &\"' End",
    "{}. And other words, which are a little longer, \\ to compare them.",
)
"""What is rendered in place of the texts, first one and then the other. A template that changes texts, such as their
case or lines, changes these; one that writes something else for some texts does not write the same around both."""
REMEDY = "Copy chat_template.jinja of the released model into the folder of this model."


@dataclass(frozen=True)
class Layout:
    """The pieces of a prompt, in order: literal texts, and markers of texts and clips. ``markers`` names the texts."""

    pieces: tuple[str, ...]
    markers: tuple[str, ...]

    def fill(self, texts: Sequence[str], clips: Sequence[str]) -> str:
        """Return the prompt with these texts and clips in place of the markers."""
        text_of, rest = dict(zip(self.markers, texts, strict=True)), iter(clips)
        return "".join(
            next(rest) if piece == PLACEHOLDER_TOKEN else text_of.get(piece, piece) for piece in self.pieces
        )


@dataclass(frozen=True)
class Layouts:
    """The layout of a prompt for generation, and of the whole conversation with its last clip, which begins with it."""

    prompt: Layout
    conversation: Layout


def read_texts(messages: Sequence[Message]) -> list[str]:
    """Return the texts of a conversation after its system message, without white space around them."""
    return [part["text"].strip() for message in messages[1:] for part in message["content"] if "text" in part]


def lay_out(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Layouts:
    """Lay out a conversation that ends with the text to be spoken, by the template of the tokenizer.

    Raises:
        CheckpointError: there is no template, it fails or exceeds a limit, it loses, changes, repeats or exchanges
            texts or clips, or the whole conversation does not begin with the prompt for generation.
    """
    place = f"the chat template of {shorten(tokenizer.name_or_path or 'this tokenizer', 200)}"
    kind = tuple((message["role"], _mark(message)) for message in messages[1:])
    try:
        template = tokenizer.get_chat_template()
        if len(template) > TEMPLATE_BYTES:
            raise ValueError(f"it has more than {TEMPLATE_BYTES:,} characters")
        return _lay_out(template, json.dumps(tokenizer.special_tokens_map), _read_system(messages), kind)
    except ValueError as error:
        raise CheckpointError(f"{place} cannot be used: {error}. {REMEDY}") from error


def _mark(message: Message) -> tuple[bool, ...]:
    """Return for each part of a message whether it is a text."""
    return tuple("text" in part for part in message["content"])


def _read_system(messages: Sequence[Message]) -> str:
    return str(messages[0]["content"][0]["text"])


@lru_cache(1024)
def _lay_out(
    template: str, variables: str, system: str, kind: tuple[tuple[str, tuple[bool, ...]], ...]
) -> Layouts:
    """Render markers, and check the result.

    Args:
        kind: the role of each message, and for each of its parts whether it is a text.

    Raises:
        ValueError: the template cannot be used.
    """
    marked = [_build_marked_messages(system, kind, marker) for marker in MARKERS]
    conversations = [(messages, True) for messages, _ in marked]
    conversations += [([*messages, AUDIO_MESSAGE], False) for messages, _ in marked]
    rendered = _render(template, json.loads(variables), conversations)
    orders = [order for _, order in marked]
    whole = [[*order, PLACEHOLDER_TOKEN] for order in orders]
    prompts = [_read_layout(*one) for one in zip(rendered[:2], orders, strict=True)]
    conversations_read = [_read_layout(*one) for one in zip(rendered[2:], whole, strict=True)]
    for first, second in (prompts, conversations_read):
        if first.pieces[::2] != second.pieces[::2]:
            raise ValueError("what it writes around the texts depends on the texts")
    if not rendered[2].startswith(rendered[0]):
        raise ValueError("what is learned does not begin with what is generated from")
    return Layouts(prompts[0], conversations_read[0])


def _build_marked_messages(
    system: str, kind: tuple[tuple[str, tuple[bool, ...]], ...], marker: str
) -> tuple[list[Message], list[str]]:
    """Return a conversation with markers as texts, and the markers and clips in their order."""
    messages: list[Message] = [{"role": "system", "content": [{"type": "text", "text": system}]}]
    order: list[str] = []
    for role, are_texts in kind:
        content: list[dict[str, str]] = []
        for is_text in are_texts:
            order.append(marker.format(len(order)) if is_text else PLACEHOLDER_TOKEN)
            content.append({"type": "text", "text": order[-1]} if is_text else {"type": "audio"})
        messages.append({"role": role, "content": content})
    return messages, order


def _read_layout(rendered: str, order: Sequence[str]) -> Layout:
    """Split what was rendered at the markers and clips, which must be those of ``order``."""
    pieces = tuple(re.split(f"({'|'.join(map(re.escape, {*order, PLACEHOLDER_TOKEN}))})", rendered))
    markers = tuple(marker for marker in order if marker != PLACEHOLDER_TOKEN)
    found = pieces[1::2]
    if found != tuple(order):
        num_texts = sum(piece != PLACEHOLDER_TOKEN for piece in found)
        raise ValueError(
            f"it does not lay out each of the {len(markers)} texts and {len(order) - len(markers)} clips of a "
            f"conversation once and in order, but {num_texts} texts and {len(found) - num_texts} clips"
        )
    return Layout(pieces, markers)


def _render(
    template: str, variables: dict[str, Any], conversations: Sequence[tuple[list[Message], bool]]
) -> list[str]:
    """Render a template for each conversation: the template of this package here, any other one in a process."""
    job: dict[str, Any] = {
        "template": template,
        "variables": variables,
        "conversations": conversations,
        "seconds": TEMPLATE_SECONDS,
        "bytes": TEMPLATE_MEMORY_BYTES,
        "characters": PROMPT_CHARACTERS,
    }
    return template_process.render(job) if template == _read_own_template() else _render_in_process(job)


def _render_in_process(job: dict[str, Any]) -> list[str]:
    # -P: a module of the user in the working directory must not replace one of Python's.
    command = [sys.executable, "-P", str(Path(template_process.__file__))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=TEMPLATE_WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it does not end within {TEMPLATE_WAIT_SECONDS} s") from None
    if sys.platform != "win32" and done.returncode == -signal.SIGXCPU:
        raise ValueError(f"it takes more than {TEMPLATE_SECONDS} s of the CPU")
    if sys.platform != "win32" and done.returncode == -signal.SIGKILL:
        # The template may use little memory, so this is a fault of the machine.
        raise MemoryError("the process that renders the chat template was killed: out of memory")
    try:
        result = json.loads(done.stdout)
    except ValueError:
        reason = shorten(" ".join(done.stderr.decode(errors="replace").split())[-300:], 300)
        raise ValueError(f"the process that renders it failed with {done.returncode} ({reason})") from None
    if "error" in result:
        raise ValueError(str(result["error"]))
    return list(map(str, result["texts"]))


@cache
def _read_own_template() -> str:
    return resources.files("higgs_trainer.model").joinpath("chat_template.jinja").read_text(encoding="utf-8")
