"""Write a prepared dataset: the rows as a `datasets` dataset, and the dataset card."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from higgs_trainer.audio.codec import Codec
from higgs_trainer.checksums import write_checksums
from higgs_trainer.dataset.content_hash import ContentHash
from higgs_trainer.dataset.prepared import (
    CARD_NAME,
    HELD_OUT_NAME,
    REJECTED_NAME,
    TRAIN_NAME,
    DatasetCard,
    build_features,
)
from higgs_trainer.errors import UserError
from higgs_trainer.files import new_folder, restore_replaced, write_json
from higgs_trainer.run_folder import CHECKSUMS_FILE
from higgs_trainer.version import __version__

# The files of a prepared dataset, with the *.arrow files.
FILES = (CARD_NAME, CHECKSUMS_FILE, REJECTED_NAME, "dataset_info.json", "state.json")
ROWS_PER_BATCH = 1000


def write_prepared(
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    codec: Codec,
    source: str,
    loudness_lufs: float | None = None,
    rejected: int = 0,
) -> DatasetCard:
    """Write streamed rows, their card, and the checksums of all files of the folder.

    Args:
        folder: is made if it is missing, as is its parent.
        rows: rows like those of `PreparedRows`, but with uint16 arrays as codes. A missing column becomes None.
        source: the name of the data, for the card.
        rejected: the number of rows that were rejected, for the card.
    """
    import pyarrow
    from datasets import Dataset

    unsaved = folder.with_suffix(".arrow")
    unsaved.parent.mkdir(parents=True, exist_ok=True)
    features = build_features()
    content, seconds = ContentHash(codec.fingerprint), 0.0
    tasks, text_changes = Counter[str](), Counter[str]()
    all_columns = (dict.fromkeys(features) | _build_columns(row) for row in rows)
    with pyarrow.ipc.new_stream(unsaved, features.arrow_schema) as stream:
        while batch := list(islice(all_columns, ROWS_PER_BATCH)):
            for columns in batch:
                tasks[columns["task"]] += 1
                text_changes.update(columns["text_changes"])
                seconds += columns["duration_seconds"]
            written = pyarrow.RecordBatch.from_pylist(batch, schema=features.arrow_schema)
            content.add(written)
            stream.write_batch(written)
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
        content_hash=content.compute(),
        manifest=source,
        higgs_trainer_version=__version__,
    )
    write_json(folder / CARD_NAME, asdict(card))
    write_checksums(folder)
    return card


def _build_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Build the columns of a row: flat codes, and the number of frames of each clip."""
    codes_FK, context = row["codes_FK"], row["context_codes"]
    return {
        **{name: value for name, value in row.items() if name != "codes_FK"},
        "codes": codes_FK.reshape(-1),
        "num_frames": len(codes_FK),
        "context_codes": np.concatenate(
            [np.empty(0, np.uint16), *(clip_FK.reshape(-1) for clip_FK in context)]
        ),
        "context_frames": [len(clip_FK) for clip_FK in context],
    }


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets`, which draws one in each process and for each write."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def write_encoded(
    clips: Sequence[tuple[str, str, np.ndarray]], output: str | Path, *, codec: Codec, source: str
) -> DatasetCard:
    """Write a prepared dataset from encoded clips.

    Args:
        clips: (utterance id, text, codes (F, K)) of each.
        source: the name of the data, for the card.

    Raises:
        UserError: ``output`` is not empty.
    """
    output = Path(output)
    rows = (
        {
            "utterance_id": utterance_id,
            "text": text,
            "task": "single_speaker",
            "codes_FK": codes_FK.astype(np.uint16),
            "num_references": 0,
            "context_texts": [],
            "context_codes": [],
            "text_changes": [],
            "duration_seconds": len(codes_FK) / codec.frames_per_second,
        }
        for utterance_id, text, codes_FK in clips
    )
    check_output(output, overwrite=False)
    with new_folder(output) as unfinished:
        return write_prepared(rows, unfinished, codec=codec, source=source)


def check_output(output: Path, *, overwrite: bool, is_divided: bool = False) -> None:
    """Raise UserError unless ``output`` is new, empty, or only a prepared dataset that may be overwritten.

    Args:
        is_divided: the output will have two datasets, train and held out. Then it may replace two such datasets, too.
    """
    restore_replaced(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{output} is not empty. Give another folder, or pass --overwrite.")
    datasets = [output]
    if is_divided and not (output / CARD_NAME).is_file():
        datasets = [output / TRAIN_NAME, output / HELD_OUT_NAME]
        _check_files(output, (TRAIN_NAME, HELD_OUT_NAME))
    for dataset in datasets:
        if not (dataset / CARD_NAME).is_file():
            raise UserError(
                f"{dataset} is not a prepared dataset, so {output} is not overwritten. Give another folder."
            )
        _check_files(dataset, (*FILES, *(path.name for path in dataset.glob("*.arrow"))))


def _check_files(folder: Path, expected: Sequence[str]) -> None:
    """Raise UserError if a folder that would be overwritten contains anything but the expected names."""
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in expected)
    if foreign:
        raise UserError(f"{folder} also contains {', '.join(foreign)}. Move it away, or give another folder.")
