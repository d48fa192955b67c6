"""Write the recordings that the samples of a run are compared with: references, and recordings of the same sentences.

A prepared dataset holds codes, so its recordings are decoded by the codec. A model that is trained on these codes
cannot sound better. The folder's name starts with an underscore, so that Trainer does not upload a person's recordings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import write_audio
from higgs_trainer.dataset.context import read_context
from higgs_trainer.dataset.examples import Rows
from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.files import whole_folder, write_json_lines
from higgs_trainer.run_folder import (
    CLIP_INDEX_FILE,
    RECORDING_KIND,
    RECORDINGS_FOLDER,
    REFERENCE_KIND,
    RecordingLine,
    name_clip,
)


@dataclass(frozen=True)
class ComparisonRecording:
    """A recording to compare generated speech with.

    Attributes:
        sentence: the sentence that is generated.
        kind: whether this is a reference in the sentence's prompt, or a recording of the sentence itself.
        words: the transcript of this recording.
        waveform_S: the recording, at 24 kHz.
    """

    sentence: str
    kind: Literal["reference", "recording"]
    words: str | None
    waveform_S: Tensor


def find_rows(texts: Sequence[str], sets: Iterable[Rows]) -> list[Mapping[str, Any]]:
    """Find the first prepared row with each text. Texts that no row has are left out.

    Args:
        sets: the rows to search, in order of preference.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for rows in sets:
        wanted = set(texts) - set(found)
        for index, text in enumerate(_read_texts(rows) if wanted else ()):
            if text in wanted:
                found[text] = rows[index]
                wanted.discard(text)
    return [found[text] for text in dict.fromkeys(texts) if text in found]


def decode_row(
    row: Mapping[str, Any], codec: Codec, *, with_references: bool
) -> Iterator[ComparisonRecording]:
    """Decode the references in a prepared row's prompt, then the row's own recording."""
    references = read_context(row).references if with_references else ()
    for clip in references:
        yield ComparisonRecording(row["text"], REFERENCE_KIND, clip.text, codec.decode(clip.codes_FK))
    yield ComparisonRecording(row["text"], RECORDING_KIND, row["text"], codec.decode(row["codes_FK"]))


def write_recordings(folder: Path, recordings: Iterable[ComparisonRecording]) -> None:
    """Write the folder ``_recordings`` of a run: WAV files and ``index.jsonl``. An existing folder is replaced."""
    with whole_folder(folder / RECORDINGS_FOLDER) as place:
        write_json_lines(place / CLIP_INDEX_FILE, _write_clips(place, recordings))


def _write_clips(place: Path, recordings: Iterable[ComparisonRecording]) -> Iterator[RecordingLine]:
    for number, recording in enumerate(recordings):
        name = name_clip(number)
        write_audio(place / name, recording.waveform_S)
        yield {
            "sentence": recording.sentence,
            "kind": recording.kind,
            "text": recording.words,
            "audio": name,
        }


def _read_texts(rows: Rows) -> Iterable[str]:
    """Read only the texts of prepared rows, without their codes."""
    if isinstance(rows, PreparedRows):
        return (text.as_py() for text in rows.column("text"))
    return (rows[index]["text"] for index in range(len(rows)))
