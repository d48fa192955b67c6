"""train-higgs-audio: a folder whose `metadata.json` lists samples, with the transcripts in text files.

    {"dataset_info": {...}, "samples": [{"audio_file": "a.wav", "transcript_file": "a.txt", "speaker_id": "s",
     "scene": "quiet_room", "language": "zh", "task_type": "zero_shot_voice_cloning",
     "ref_audio_file": "b.wav", "ref_transcript": "..."}]}

For several speakers, `ref_speakers` is a list of {speaker_tag, speaker_id, ref_audio_file, ref_transcript}. A scene
such as `quiet_room` becomes "Audio is recorded from quiet room.", as in its trainer.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, UserError, shorten
from higgs_trainer.input_files import read_text_file
from higgs_trainer.limits import DOCUMENT_BYTES
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row
from higgs_trainer.manifest.formats.text_folder import is_file, read_text
from higgs_trainer.manifest.strict_json import build_decoder
from higgs_trainer.manifest.text import find_speakers

METADATA_NAME = "metadata.json"
# The list of samples follows a description of the dataset.
BEGINNING_BYTES = 2**20
SAMPLES = re.compile(r'"samples"\s*:\s*\[')
# What separates two samples.
GAP = re.compile(r"[\s,]*")
PLACEHOLDERS = ("This is a voice sample for cloning.", "This is a voice sample.")
"""The placeholders that its tools write when the transcript of a reference is missing."""

FIELD_OF_KEY = {
    "audio_file": "audio",
    "speaker_id": "speaker",
    "language": "language",
    "ref_audio_file": "ref_audio",
    "ref_transcript": "ref_text",
    "reward": "reward",
}
# None: the fields decide.
TASK_OF_TYPE = {
    "audio_generation": None,
    "single_speaker_smart_voice": None,
    "multi_speaker_smart_voice": "multi_speaker",
    "zero_shot_voice_cloning": "zero_shot_cloning",
    "multi_speaker_voice_cloning": "multi_speaker_cloning",
}
OTHER_KEYS = ("transcript_file", "scene", "ref_speakers", "task_type")


def matches(path: Path) -> bool:
    """Match the metadata file, or its folder, with a list of samples."""
    metadata = _metadata_of(path)
    if not metadata.is_file() or metadata.suffix != ".json":
        return False
    with metadata.open("rb") as file:
        text = file.read(BEGINNING_BYTES).decode("utf-8-sig", errors="replace")
    return SAMPLES.search(text) is not None and '"audio_file"' in text


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per sample, with the line on which it begins."""
    metadata = _metadata_of(source.path)
    text = read_text_file(metadata, at_most=DOCUMENT_BYTES, what_to_do="Give a smaller part of the samples.")
    for number, (line, sample, problems) in enumerate(_iterate_samples(metadata, text), start=1):
        if isinstance(sample, dict):
            yield _Sample(metadata, line, number, sample, source.unused, problems).read()
        else:
            what = f"sample {number} is of type {type(sample).__name__}, not an object"
            yield build_bad_row(metadata, line, number, what, 'Write {"audio_file": ...}.')


def _metadata_of(path: Path) -> Path:
    return path / METADATA_NAME if path.is_dir() else path


def _iterate_samples(metadata: Path, text: str) -> Iterator[tuple[int, Any, list[Problem]]]:
    """Yield (line, sample, problems of its JSON), so that messages can name the line of a sample."""
    begin = SAMPLES.search(text)
    assert begin is not None, "`matches` was true"
    at, counted, line = begin.end(), 0, 1
    while True:
        gap = GAP.match(text, at)
        at = gap.end() if gap else at
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        problems: list[Problem] = []
        try:
            sample, at = build_decoder(metadata, line, problems).raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{metadata}:{line}: the file is not JSON ({error}). Correct it.") from error
        yield line, sample, problems


@dataclass
class _Sample:
    """Read one sample and collect its problems."""

    metadata: Path
    line: int
    number: int
    sample: Mapping[str, Any]
    unused: Counter[str]
    problems: list[Problem]

    def add(self, what: str, what_to_do: str) -> None:
        self.problems.append(Problem(self.metadata, self.line, what, what_to_do))

    def read(self) -> RawRow:
        self.unused.update(key for key in self.sample if key not in FIELD_OF_KEY and key not in OTHER_KEYS)
        fields = {FIELD_OF_KEY[key]: value for key, value in self.sample.items() if key in FIELD_OF_KEY}
        fields["text"] = self._read_transcript()
        fields["scene"] = describe_scene(self.sample.get("scene"))
        fields["task"] = self._read_task()
        if self.sample.get("ref_speakers"):
            fields["references"] = self._read_speakers(self.sample["ref_speakers"])
        self._check_placeholder(fields.get("ref_text"))
        fields = {field: value for field, value in fields.items() if value is not None}
        return RawRow(
            self.metadata, self.line, self.number, None if self.problems else fields, tuple(self.problems)
        )

    def _read_transcript(self) -> str | None:
        name = self.sample.get("transcript_file")
        if not isinstance(name, str):
            self.add('"transcript_file" is missing', "Add the name of the text file with its words.")
            return None
        folder = self.metadata.parent.resolve()
        path = folder / name
        if not is_file(path):
            self.add(
                f'"transcript_file" does not exist: {shorten(name)}',
                f"Its path must be relative to {folder}.",
            )
            return None
        if not path.resolve().is_relative_to(folder):
            self.add(
                f'"transcript_file" is outside the folder of the metadata: {shorten(name)}',
                f"Move it into {folder}.",
            )
            return None
        text = read_text(path)
        if isinstance(text, Problem):
            self.problems.append(text)
            return None
        return text

    def _read_task(self) -> str | None:
        task_type = self.sample.get("task_type")
        if task_type is None or (isinstance(task_type, str) and task_type in TASK_OF_TYPE):
            return TASK_OF_TYPE.get(str(task_type))
        self.add(f"unknown task_type {shorten(repr(task_type))}", f"Known: {', '.join(TASK_OF_TYPE)}.")
        return None

    def _read_speakers(self, speakers: Any) -> list[dict[str, Any]]:
        """Return the references in the order of their tags, which must be [SPEAKER0], [SPEAKER1] and so on."""
        if not isinstance(speakers, list) or not all(isinstance(speaker, dict) for speaker in speakers):
            self.add('"ref_speakers" is not a list of speakers', "Write a list of objects.")
            return []
        speakers = sorted(speakers, key=lambda speaker: find_speakers(str(speaker.get("speaker_tag"))))
        tags = [speaker.get("speaker_tag") for speaker in speakers]
        if tags != [f"[SPEAKER{i}]" for i in range(len(speakers))]:
            self.add(
                f"the speaker tags are {shorten(str(tags))}", "Number them [SPEAKER0], [SPEAKER1] and so on."
            )
        names = {"ref_audio_file": "audio", "ref_transcript": "text", "speaker_id": "speaker"}
        for speaker in speakers:
            self._check_placeholder(speaker.get("ref_transcript"))
            self.unused.update(f"ref_speakers.{key}" for key in speaker if key not in (*names, "speaker_tag"))
        return [{names[key]: value for key, value in speaker.items() if key in names} for speaker in speakers]

    def _check_placeholder(self, words: object) -> None:
        if isinstance(words, str) and words.strip() in PLACEHOLDERS:
            self.add(
                f'"ref_transcript" is {words!r}, the placeholder of a tool for missing words',
                "Write what is said in the reference.",
            )


def describe_scene(scene: Any) -> Any:
    """Return the sentence that train-higgs-audio builds from the name of a scene. Keep a description unchanged."""
    if not isinstance(scene, str) or not scene.strip() or " " in scene.strip():
        return scene
    return f"Audio is recorded from {scene.strip().replace('_', ' ')}."
