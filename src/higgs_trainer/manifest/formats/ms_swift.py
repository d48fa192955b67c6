"""ms-swift: JSON lines of `messages` and `audios`, where each `<audio>` refers to the next of the `audios`.

Three forms assign words to a recording:

    assistant "<audio>the words"                          the words with the recording
    user "<audio>any instruction", assistant "the words"  a transcription
    user "the words", assistant "<audio>"                 speech to learn

A row with several such pairs is a conversation: the last pair is the target, the others are earlier turns. One
recording and one answer without any `<audio>` are a pair too.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from higgs_trainer.manifest.formats.json_lines import first_objects, read_objects
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row

MARK = "<audio>"
SAID_BY_MESSAGES = ("audio", "text", "references", "turns")
MANIFEST_FIELDS = ("speaker", "language", "scene", "reward")


def matches(path: Path) -> bool:
    """Match JSON lines with messages."""
    return path.is_file() and any("messages" in fields for fields in first_objects(path))


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per conversation."""
    for row in read_objects(source.path):
        if row.fields is None:
            yield row
            continue
        try:
            fields = _read_conversation(row.fields, source)
        except _NotSpeech as error:
            yield build_bad_row(row.file, row.line, row.number, error.what, error.what_to_do)
        else:
            yield RawRow(row.file, row.line, row.number, fields)


class _NotSpeech(Exception):
    """A conversation in which the words of a recording are missing or ambiguous."""

    def __init__(self, what: str, what_to_do: str) -> None:
        super().__init__(what)
        self.what, self.what_to_do = what, what_to_do


def _read_conversation(fields: dict[str, Any], source: DataSource) -> dict[str, Any]:
    messages, audios = fields.get("messages"), fields.get("audios")
    if both := [name for name in SAID_BY_MESSAGES if name in fields]:
        raise _NotSpeech(f'"{both[0]}" is given together with "messages"', "Keep one of them.")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise _NotSpeech(
            '"messages" is not a list of messages', 'Write [{"role": ..., "content": ...}, ...].'
        )
    if isinstance(audios, str):
        audios = [audios]
    if not isinstance(audios, list) or not audios or not all(isinstance(audio, str) for audio in audios):
        raise _NotSpeech('"audios" is not a list of paths', 'Write ["a.wav", ...].')
    if remote := [audio for audio in audios if "://" in audio]:
        raise _NotSpeech(f"{remote[0]} is not a file", "Download it and give its path.")
    pairs = _pair(messages, audios, source)
    *turns, last = [{"audio": audio, "text": text} for text, audio in pairs]
    known = {name: fields[name] for name in MANIFEST_FIELDS if fields.get(name) is not None}
    source.unused.update(key for key in fields if key not in ("messages", "audios", *MANIFEST_FIELDS))
    return {**last, **({"turns": turns} if turns else {}), **known}


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and message.get("role") in ("system", "user", "assistant")
    )


def _pair(
    messages: Sequence[dict[str, str]], audios: Sequence[str], source: DataSource
) -> list[tuple[str, str]]:
    """Return (words, recording) of each answer, in order."""
    marks = sum(message["content"].count(MARK) for message in messages)
    answers = [message for message in messages if message["role"] == "assistant"]
    if marks == 0 and len(audios) == len(answers) == 1:
        source.unused.update(f"{m['role']} message" for m in messages if m is not answers[0])
        return [(answers[0]["content"], audios[0])]
    if marks != len(audios):
        what = f"the messages have {marks} {MARK} for {len(audios)} audios"
        raise _NotSpeech(what, f"Write one {MARK} at the place of each recording.")
    rest = iter(audios)
    pairs: list[tuple[str, str]] = []
    # The words and the recording of the user since the last answer.
    asked, heard = "", None
    for message in messages:
        words = message["content"].replace(MARK, "").strip()
        recordings = [next(rest) for _ in range(message["content"].count(MARK))]
        if len(recordings) > 1 or (recordings and heard):
            raise _NotSpeech("one turn has two recordings", "Give each recording its own turn.")
        if message["role"] == "system":
            source.unused["system message"] += 1
        elif message["role"] == "user":
            asked, heard = words, recordings[0] if recordings else heard
        else:
            recording = recordings[0] if recordings else heard
            if recording is None:
                raise _NotSpeech("an answer has no recording", f"Remove the answer, or add its {MARK}.")
            if words and asked:
                source.unused["user message"] += 1
            pairs.append((words or asked, recording))
            asked, heard = "", None
    if not pairs or heard:
        raise _NotSpeech("a recording has no answer", "End with the words or the recording of the assistant.")
    return pairs
