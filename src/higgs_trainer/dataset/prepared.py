"""A prepared dataset on disk: a `datasets` dataset with a `dataset_card.json` beside it.

A recording is kept as its codes, uint16, frame after frame: F*K numbers, to be read back as
`codes.reshape(num_frames, num_codebooks)`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from higgs_trainer import __version__
from higgs_trainer.audio.codec import Codec
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.files import new_folder, write_json

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import ChunkedArray

CARD_NAME = "dataset_card.json"
REJECTED_NAME = "rejected.jsonl"
OWN_NAMES = (
    CARD_NAME,
    REJECTED_NAME,
    "dataset_info.json",
    "state.json",
)  # and the *.arrow files: all that is in one
NUMBERS = ("codes", "context_codes", "context_frames")  # the columns of numpy arrays
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class DatasetCard:
    """What a prepared folder holds, and which codec its codes belong to.

    `codec_fingerprint` is a hash of the codec's weights; `content_hash` one of all rows and codes. `tasks` and
    `text_changes` count rows; the rows' own columns of these names say which.
    """

    codec_name: str
    codec_revision: str | None
    codec_fingerprint: str
    num_codebooks: int
    codebook_size: int
    frames_per_second: float
    loudness_lufs: float | None
    utterances: int
    rejected: int
    tasks: dict[str, int]
    text_changes: dict[str, int]
    hours: float
    content_hash: str
    manifest: str
    higgs_trainer_version: str


class PreparedRows:
    """The rows of a prepared dataset, by position: a dict of the columns that `build_features` lists, numbers as numpy.

    Read straight from Arrow: `datasets`' own numpy format takes ten times as long (benchmarks/prepare.py).
    """

    def __init__(self, dataset: "Dataset") -> None:
        self.features: Features = dataset.features
        self._dataset = dataset
        self._columns = {name: dataset.data.column(name) for name in dataset.column_names}

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedRows, (
            self._dataset,
        )  # which a worker of a data loader opens again, where columns were copied

    def __len__(self) -> int:
        return len(self._dataset)

    def column(self, name: str) -> "ChunkedArray":
        """One column of all rows, as Arrow holds it."""
        return self._columns[name]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, column in self._columns.items():
            value = column[index]
            if name in NUMBERS:
                row[name] = value.values.to_numpy(zero_copy_only=False).astype(np.int64)  # torch's integers
            else:
                row[name] = value.as_py()
        return row


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder, opened."""

    rows: PreparedRows
    card: DatasetCard


def build_features() -> "Features":
    """The columns of a prepared dataset.

    What stands before the target in the prompt, references first and then earlier turns, lies end to end in
    ``context_codes``; ``context_frames`` and ``context_texts`` have one entry a clip. Flat columns, since nested ones
    read many times slower. ``content_hash`` is of the target's sound.
    """
    from datasets import Features, Sequence, Value

    text, codes = Value("string"), Sequence(Value("uint16"))
    return Features(
        utterance_id=text,
        text=text,
        speaker=text,
        language=text,
        scene=text,
        task=text,
        codes=codes,
        num_frames=Value("int32"),
        num_references=Value("int32"),
        context_texts=Sequence(text),
        context_frames=Sequence(Value("int32")),
        context_codes=codes,
        duration_seconds=Value("float32"),
        reward=Value("float32"),
        text_changes=Sequence(text),
        content_hash=text,
    )


def write_prepared(
    rows: Iterable[dict[str, Any]],
    folder: Path,
    *,
    codec: Codec,
    source: str,
    loudness_lufs: float | None = None,
    rejected: int = 0,
) -> DatasetCard:
    """Write rows, streamed, and their card into a folder that is not there yet."""
    import pyarrow
    from datasets import Dataset

    unsaved = folder.with_suffix(".arrow")
    schema = build_features().arrow_schema
    digest, seconds = hashlib.sha256(codec.fingerprint.encode()), 0.0
    tasks, text_changes = Counter[str](), Counter[str]()
    rows = iter(rows)
    with pyarrow.ipc.new_stream(unsaved, schema) as stream:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for row in chunk:
                tasks[row["task"]] += 1
                text_changes.update(row["text_changes"])
                seconds += row["duration_seconds"]
                digest.update(_hash_row(row))
            stream.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=schema))
    with _without_progress_bars():
        Dataset.from_file(str(unsaved)).save_to_disk(folder)
    unsaved.unlink()
    card = DatasetCard(
        codec_name=codec.name,
        codec_revision=codec.revision,
        codec_fingerprint=codec.fingerprint,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        frames_per_second=codec.frames_per_second,
        loudness_lufs=loudness_lufs,
        utterances=sum(tasks.values()),
        rejected=rejected,
        tasks=dict(tasks),
        text_changes=dict(text_changes),
        hours=round(seconds / 3600, 6),
        content_hash=digest.hexdigest()[:16],
        manifest=source,
        higgs_trainer_version=__version__,
    )
    write_json(folder / CARD_NAME, asdict(card))
    return card


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """`datasets` draws one in each process and for each write, however short."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _hash_row(row: dict[str, Any]) -> bytes:
    plain = {name: value for name, value in row.items() if not isinstance(value, np.ndarray)}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in ("codes", "context_codes"):
        digest.update(row[name].tobytes())
    return digest.digest()


def write_encoded(
    clips: Sequence[tuple[str, str, np.ndarray]], output: str | Path, *, codec: Codec, source: str
) -> DatasetCard:
    """Write a prepared folder from clips that are codes already: (utterance id, text, codes (F, K)) each.

    ``source`` stands in the card in the manifest's place. Raises UserError where `output` is not empty.
    """
    output = Path(output)
    rows: Iterable[dict[str, Any]] = (
        {
            **dict.fromkeys(build_features()),
            "utterance_id": utterance_id,
            "text": text,
            "task": "single_speaker",
            "codes": codes_FK.flatten().astype(np.uint16),
            "num_frames": len(codes_FK),
            "num_references": 0,
            "context_texts": [],
            "context_frames": [],
            "context_codes": np.empty(0, np.uint16),
            "text_changes": [],
            "duration_seconds": len(codes_FK) / codec.frames_per_second,
        }
        for utterance_id, text, codes_FK in clips
    )
    check_output(output, overwrite=False)
    with new_folder(output) as unfinished:
        return write_prepared(rows, unfinished, codec=codec, source=source)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise UserError unless `output` is new, empty, or nothing but a prepared folder to be overwritten."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{output} is not empty; give another folder, or --overwrite")
    if not (output / CARD_NAME).is_file():
        raise UserError(f"{output} is no prepared dataset and is not overwritten; give another folder")
    strangers = [
        path.name for path in output.iterdir() if path.name not in OWN_NAMES and path.suffix != ".arrow"
    ]
    if strangers:
        raise UserError(
            f"{output} holds {', '.join(sorted(strangers))} too; move that, or give another folder"
        )


def read_prepared(folder: str | Path) -> PreparedDataset:
    """Open a prepared folder.

    Raises:
        CheckpointError: it is not one, or is damaged.
    """
    from datasets import load_from_disk

    folder = Path(folder)
    make_one = f"make one with: higgs-trainer prepare MANIFEST -o {folder} --codec CODEC"
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{folder} is no prepared dataset (no {CARD_NAME}); {make_one}")
    try:
        card = DatasetCard(**json.loads((folder / CARD_NAME).read_text(encoding="utf-8")))
        rows = load_from_disk(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged or of another version ({error}); {make_one}") from error
    if len(rows) != card.utterances or rows.features != build_features():
        raise CheckpointError(f"the rows of {folder} are not those of its {CARD_NAME}; {make_one}")
    return PreparedDataset(PreparedRows(rows), card)


def check_codec(card: DatasetCard, codec: Codec) -> None:
    """Raise CheckpointError when the codes behind `card` were not made by `codec`."""
    if card.codec_fingerprint != codec.fingerprint:
        made_by = " at ".join(filter(None, [card.codec_name, card.codec_revision]))
        raise CheckpointError(
            f"{card.manifest} was encoded by the codec {made_by} ({card.codec_fingerprint}), but the "
            f"model speaks through {codec.name} ({codec.fingerprint}), where these codes are other sounds; "
            "prepare the data again with --codec and the model's codec"
        )
