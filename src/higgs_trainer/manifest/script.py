"""What to say, from a file: a sentence a line or, where the first line begins an object, JSON lines.

A JSON line has ``text`` and may have a voice and a seed of its own, in the words of a manifest (docs/generate.md):

    text, scene, ref_audio, ref_text, references, task ("reference_in_system"), language, seed
    audio, speaker      a manifest's; `audio` is a recording of the same sentence, which `evaluate` compares with

Paths are relative to the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, UserError, name_the_near_one
from higgs_trainer.manifest.formats.json_lines import first_line, parse_row, read_lines
from higgs_trainer.manifest.text import TextRules, clean_text, find_special_tokens
from higgs_trainer.manifest.utterance import Clip

STRINGS = ("text", "scene", "ref_audio", "ref_text", "task", "language", "audio", "speaker")
FIELDS = (*STRINGS, "references", "seed")
CLIP_FIELDS = ("audio", "text", "speaker")
IN_SYSTEM = "reference_in_system"


@dataclass(frozen=True)
class Voice:
    """Whose voice: a scene in words, recordings with their words, both, or neither (the model's own choice, or the
    adapter's voice). Several references are [SPEAKER0], [SPEAKER1] and so on of a dialogue.

    ``references_in_system``: they stand behind the scene in the system message and not as earlier turns.
    """

    scene: str | None = None
    references: tuple[Clip, ...] = ()
    references_in_system: bool = False


@dataclass(frozen=True)
class ScriptLine:
    """A line of what to say. What is None or empty is left to the speaker's own voice and sampling.

    ``audio``: a recording of the same sentence, by ``speaker``.
    """

    text: str
    voice: Voice = Voice()
    language: str | None = None
    seed: int | None = None
    audio: Path | None = None
    speaker: str | None = None


def read_script(path: str | Path) -> list[ScriptLine]:
    """Read every line.

    Raises:
        UserError: the file cannot be read, or anything is wrong in it: all of it together, with its lines.
    """
    path = Path(path)
    is_json = first_line(path).startswith("{")
    problems: list[Problem] = []
    script: list[ScriptLine] = []
    last_blank = 0
    for number, line in read_lines(path):
        if isinstance(line, Problem):
            problems.append(line)
        elif not line.strip():
            last_blank = last_blank or number
        else:
            if last_blank and not is_json:
                what_to_do = (
                    "write a sentence there, or remove it: it would shift every later one in the index"
                )
                problems.append(Problem(path, last_blank, "an empty line", what_to_do))
            last_blank = 0
            if is_json:
                _read_json(path, number, line, script, problems)
            else:
                script.append(ScriptLine(_clean(path, number, line, problems)))
    if not script and not problems:
        problems.append(Problem(path, 0, "nothing to say", "write a sentence a line"))
    if problems:
        raise UserError("\n".join(map(str, problems)))
    return script


def _read_json(path: Path, number: int, line: str, script: list[ScriptLine], problems: list[Problem]) -> None:
    row = parse_row(path, number, line)
    if row.fields is None:
        problems += row.problems
        return
    found = [Problem(path, number, what, what_to_do) for what, what_to_do in _find_faults(row.fields)]
    problems += found
    if not found:
        script.append(_build_line(path, number, row.fields, problems))


def _find_faults(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the row, and what to do."""
    for name in fields:
        if name not in FIELDS:
            yield f"unknown field {name!r}", name_the_near_one(name, FIELDS)
    if fields.get("text") is None:
        yield "no 'text'", "give the row its text"
    yield from _find_wrong_strings("", fields, STRINGS)
    seed = fields.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        yield f"'seed' is {seed!r}", "write a whole number, 0 or more, without quotes"
    in_system = fields.get("task") == IN_SYSTEM
    references = fields.get("references")
    if references is not None and (fields.get("ref_audio") or fields.get("ref_text")):
        yield "'references' beside 'ref_audio' or 'ref_text'", "put all of them into 'references'"
    if fields.get("ref_text") is not None and fields.get("ref_audio") is None:
        yield "'ref_text' without 'ref_audio'", "a reference is a recording and its words: give both"
    if fields.get("ref_audio") is not None and fields.get("ref_text") is None and not in_system:
        yield "'ref_audio' without 'ref_text'", "a reference is a recording and its words: give both"
    if references is not None:
        yield from _find_wrong_references(references, texts_needed=not in_system)
    if in_system and not (fields.get("scene") and (references or fields.get("ref_audio"))):
        yield f"the task is {IN_SYSTEM!r}", "give 'scene' and 'ref_audio' (docs/tasks.md)"


def _find_wrong_references(references: object, *, texts_needed: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(references, list) or not all(isinstance(clip, dict) for clip in references):
        yield "'references' is no list of clips", 'write [{"audio": ..., "text": ...}, ...]'
        return
    for i, clip in enumerate(references):
        for name in clip:
            if name not in CLIP_FIELDS:
                yield f"unknown field 'references[{i}].{name}'", name_the_near_one(name, CLIP_FIELDS)
        for name in ("audio", "text") if texts_needed else ("audio",):
            if clip.get(name) is None:
                yield f"no 'references[{i}].{name}'", f"give the clip its {name}"
        yield from _find_wrong_strings(f"references[{i}].", clip, CLIP_FIELDS)


def _find_wrong_strings(
    place: str, fields: dict[str, Any], names: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    for name in names:
        value = fields.get(name)
        if value is not None and not isinstance(value, str):
            yield f"{place + name!r} is a {type(value).__name__}, not a string", "put it in quotes"
        elif value is not None and not value.strip():
            yield f"{place + name!r} is empty", "fill it in, or leave the field out"


def _build_line(path: Path, number: int, fields: dict[str, Any], problems: list[Problem]) -> ScriptLine:
    def find(name: str) -> Path:
        found = path.parent / name
        if not found.is_file():
            problems.append(Problem(path, number, f"{name} is no file", f"looked in {path.parent}"))
        return found

    def clean(text: str | None) -> str | None:
        return None if text is None else _clean(path, number, text, problems)

    clips = fields.get("references") or []
    if fields.get("ref_audio"):
        clips = [
            {"audio": fields["ref_audio"], "text": fields.get("ref_text"), "speaker": fields.get("speaker")}
        ]
    return ScriptLine(
        text=_clean(path, number, fields["text"], problems),
        voice=Voice(
            scene=clean(fields.get("scene")),
            references=tuple(
                Clip(find(clip["audio"]), clean(clip.get("text")), clip.get("speaker")) for clip in clips
            ),
            references_in_system=fields.get("task") == IN_SYSTEM,
        ),
        language=fields.get("language"),
        seed=fields.get("seed"),
        audio=find(fields["audio"]) if fields.get("audio") else None,
        speaker=fields.get("speaker"),
    )


def _clean(path: Path, number: int, text: str, problems: list[Problem]) -> str:
    if tokens := find_special_tokens(text):
        problems.append(Problem(path, number, f"the special token {tokens[0]!r} in the text", "take it out"))
    return clean_text(text, TextRules()).text
