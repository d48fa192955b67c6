"""A Hugging Face dataset with a column of recordings: from `save_to_disk`, Parquet files or the hub.

One of several splits is named after a colon (`owner/name:train`). Recordings are not decoded here: torchcodec is not
needed, and `prepare` checks them like any file. Recordings that are stored in the dataset as bytes are first written to
files, which are named by a hash of their content.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from higgs_trainer.errors import UserError
from higgs_trainer.files import write_bytes
from higgs_trainer.hub_names import is_hub_name
from higgs_trainer.manifest.formats.columns import check_chosen, check_columns, is_readable, match_columns
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# `save_to_disk` writes the first for a dataset, the second for splits.
SAVED_NAMES = ("state.json", "dataset_dict.json")
SUFFIX_OF_BEGINNING = {
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff\xfb": ".mp3",
}


def matches(path: Path) -> bool:
    """Match the output of `save_to_disk` or `to_parquet`, with an optional split, or a name on the hub."""
    local = _split_name(path)[0]
    if local.is_file():
        return local.suffix == ".parquet"
    if local.is_dir():
        return any((local / name).is_file() for name in SAVED_NAMES) or any(_find_parquet(local))
    return is_hub_name(local)


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per row of the dataset, counted from 1."""
    from datasets import Audio

    dataset = _open(source.path)
    names = list(dataset.features)
    check_chosen(str(source.path), names, source.columns)
    fields = match_columns(names, source.columns)
    recordings = [i for i, name in enumerate(names) if isinstance(dataset.features[name], Audio)]
    if "audio" not in fields and len(recordings) == 1:
        fields[recordings[0]] = "audio"
    if not is_readable(fields):
        raise UserError(
            f"{source.path} has the columns {', '.join(names)}. "
            "One must contain recordings, and one their text. Name them: --columns audio=COLUMN,text=COLUMN"
        )
    check_columns(str(source.path), names, fields)
    field_of = {name: field for name, field in zip(names, fields, strict=True) if field}
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
    for number, row in enumerate(dataset.select_columns(list(field_of)), start=1):
        source.unused.update(name for name in names if name not in field_of)
        given = {field_of[name]: value for name, value in row.items() if value is not None}
        try:
            stored = {field: _store(value, source) for field, value in given.items()}
        except _NoRecording as error:
            yield build_bad_row(source.path, number, number, str(error), "Remove the row.")
        else:
            yield RawRow(source.path, number, number, stored)


def _open(path: Path) -> "Dataset | IterableDataset":
    """Open the dataset without decoding it: the named split, or the only one."""
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    local, split = _split_name(path)
    try:
        if local.is_dir() and any((local / name).is_file() for name in SAVED_NAMES):
            found = load_from_disk(local)
        elif local.exists():
            files = [str(local)] if local.is_file() else sorted(map(str, _find_parquet(local)))
            found = load_dataset("parquet", data_files=files, split="train", streaming=True)
        else:
            found = load_dataset(str(local))
    except (DatasetGenerationError, DatasetNotFoundError, ImportError, OSError, ValueError) as error:
        here = "" if local.exists() else "is not a local file or folder, and "
        raise UserError(
            f"{path} {here}cannot be opened as a dataset ({error}). Check its name and your access."
        ) from error
    if not isinstance(found, DatasetDict):
        return found
    if split is None and len(found) == 1:
        split = next(iter(found))
    if split not in found:
        raise UserError(
            f"{local} has the splits {', '.join(found)}. Name one of them, as in {local}:{next(iter(found))}"
        )
    return found[split]


def _split_name(path: Path) -> tuple[Path, str | None]:
    """Split a name: `owner/name:train` -> (`owner/name`, `train`)."""
    name, colon, split = str(path).rpartition(":")
    return (Path(name), split) if colon and not path.exists() else (path, None)


def _find_parquet(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.parquet")
    yield from folder.glob("data/*.parquet")


class _NoRecording(ValueError):
    """A cell without a recording."""


def _store(value: Any, source: DataSource) -> Any:
    """Return a cell as a manifest field: of a recording, the path of its file, which is written if there is none."""
    if not isinstance(value, Mapping):
        return value
    if value.get("bytes") is None:
        if value.get("path") is None:
            raise _NoRecording("the recording has neither bytes nor a path")
        if is_hub_name(_split_name(source.path)[0]):
            # `datasets` itself has downloaded the file to this folder.
            source.trusted.add(Path(value["path"]).parent.resolve())
        return value["path"]
    source.trusted.add(source.audio_folder.resolve())
    return str(_write_recording(value["bytes"], Path(value.get("path") or ""), source.audio_folder))


def _write_recording(encoded: bytes, named: Path, folder: Path) -> Path:
    """Write a recording under the hash of its bytes, once and atomically."""
    begun = (suffix for beginning, suffix in SUFFIX_OF_BEGINNING.items() if encoded.startswith(beginning))
    suffix = next(begun, named.suffix)
    path = folder.resolve() / f"{named.stem or 'row'}-{hashlib.sha256(encoded).hexdigest()[:16]}{suffix}"
    if not path.exists():
        write_bytes(path, encoded)
    return path
