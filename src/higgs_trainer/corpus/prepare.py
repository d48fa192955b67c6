"""Prepare data: check every row, encode every recording once, and write a dataset whole or not at all.

`prepare` runs the steps below. They exchange their results through the work directory, so that memory does not grow
with the data and a killed run can be resumed.

1. read and check the rows       manifest/rows.py, inspection.store_rows
2. measure the recordings        inspection.measure_rows
3. judge the corpus as a whole   inspection.judge_corpus
4. draw the rows to hold out     inspection.divide_rows
5. encode                        encoding.encode_recordings
6. write the dataset, or both    _write_datasets
"""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.corpus.corpus_page import write_corpus_page
from higgs_trainer.corpus.encoding import Encoder, encode_recordings
from higgs_trainer.corpus.held_out import parse_hold_out
from higgs_trainer.corpus.inspection import (
    check_rejected,
    divide_rows,
    find_notes,
    judge_corpus,
    measure_rows,
    store_rows,
    write_rejected,
)
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.work_directory.code_store import CodeStore
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.dataset.prepared import HELD_OUT_NAME, REJECTED_NAME, TRAIN_NAME, DatasetCard
from higgs_trainer.dataset.prepared_writer import check_output, write_prepared
from higgs_trainer.distributed import joined_processes
from higgs_trainer.errors import CheckpointError, count_noun
from higgs_trainer.manifest.formats import DataSource, open_source
from higgs_trainer.manifest.formats.columns import NO_COLUMNS, Columns
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import check_rows
from higgs_trainer.manifest.text import TextRules
from higgs_trainer.manifest.utterance import Utterance
from higgs_trainer.outputs import Input, check_apart, check_name, check_page
from higgs_trainer.progress import Track, skip_progress, track


@dataclass(frozen=True)
class WrittenDataset:
    """A dataset that was written: its folder and its card."""

    folder: Path
    card: DatasetCard


@dataclass(frozen=True)
class PreparedSummary:
    """The result of `prepare`.

    Attributes:
        folder: the folder of the dataset; with ``held_out``, of the dataset to train on.
        card: its card.
        held_out: the dataset of the rows that were held out. None if none were to be.
        resumed: the number of recordings that an earlier run had encoded.
        notes: sentences about the data that are not errors.
        process_index: 0 in the process that should print the summary.
    """

    folder: Path
    card: DatasetCard
    held_out: WrittenDataset | None
    resumed: int
    notes: tuple[str, ...]
    process_index: int


def prepare(
    manifest: str | Path,
    output: str | Path,
    *,
    codec: Codec | str | Path,
    held_out: str | int | None = None,
    held_out_seed: int = 0,
    columns: Columns = NO_COLUMNS,
    allow_outside: bool = False,
    allow_own_reference: bool = False,
    text_rules: TextRules = TextRules(),
    pair_seed: int | None = None,
    limits: Limits = Limits(),
    max_rejected: int = 0,
    loudness_lufs: float | None = None,
    batch_seconds: float = 60.0,
    report: str | Path | None = None,
    overwrite: bool = False,
    progress: Track = track,
) -> PreparedSummary:
    """Check every row, then encode every recording once and write ``output``.

    Under `accelerate launch` each process checks and encodes its share. Process 0 also reads, judges and writes. Repeat
    the call to resume a run that was killed.

    Args:
        manifest: a manifest (JSON lines), a table, a folder of recordings and text files, or another format that the
            command `prepare` reads.
        codec: a codec, or its name for `load_codec`.
        held_out: how much to hold out of training: "5%" of the rows, or a number of rows. ``output`` then has two
            datasets, ``train`` and ``held_out``. Each speaker gives its share; rows with the same words or recording
            stay on one side. None: ``output`` is one dataset.
        held_out_seed: the seed of the draw. It depends on nothing else but the recordings and the texts.
        columns: the columns of a table by manifest field, where they have other names: ``{"audio": "filename"}``.
        allow_outside: accept recordings outside the folder of the manifest.
        allow_own_reference: accept a row whose reference or earlier turn is its own recording.
        pair_seed: the seed to draw references for single-speaker rows (`pair_references`). None: draw none.
        max_rejected: how many bad rows may be left out; `rejected.jsonl` lists them. With more, nothing is written.
        loudness_lufs: normalize every recording to this loudness before it is encoded.
        batch_seconds: the total length of the recordings that are encoded together.
        report: the HTML page about the corpus to write, even if the data is rejected.
        overwrite: replace a prepared dataset in ``output``.

    Raises:
        ManifestError: lists all problems of rows and recordings; nothing was written.
        UserError: the data cannot be read, ``output`` is not empty or overlaps the data or the codec, ``report`` is a
            file that is no page, ``held_out`` is no amount or cannot be drawn, or another run is preparing the data.
        CheckpointError: the codec cannot be loaded.

    Example:
        ```python
        from higgs_trainer import prepare

        summary = prepare("data.jsonl", "prepared", codec="base/codec", held_out="20%")
        print(f"{summary.folder}: {summary.card.utterances} utterances, {summary.card.hours:.2f} hours")
        ```
    """
    manifest, output = Path(manifest), Path(output)
    hold_out = None if held_out is None else parse_hold_out(held_out, seed=held_out_seed)
    _check_apart(manifest, output, codec, report)
    work = WorkDirectory(output)
    source = open_source(manifest, audio_folder=work.audio_folder, columns=columns)
    rules = RowRules(
        allow_outside=allow_outside, allow_own_reference=allow_own_reference, text_rules=text_rules
    )
    rows = check_rows(source, rules)

    with ExitStack() as stack:
        processes = stack.enter_context(joined_processes())
        # After each process has been given a GPU.
        encoder = Encoder(_load_codec(codec), loudness_lufs)
        if not processes.is_first:
            progress = skip_progress

        def read() -> list[str]:
            check_output(output, overwrite=overwrite, is_divided=hold_out is not None)
            stack.enter_context(work.lock())
            return store_rows(progress(rows, "reading rows", None), work)

        def judge() -> list[str]:
            judge_corpus(work, processes, limits, allow_own_reference=allow_own_reference)
            found = divide_rows(work, hold_out, pair_seed=pair_seed, max_rejected=max_rejected)
            if report is not None:
                write_corpus_page(work, Path(report), title=manifest.name, limits=limits)
            check_rejected(work, max_rejected, page=None if report is None else Path(report))
            return found

        notes = processes.share(read)
        measure_rows(work, processes, limits, progress)
        processes.wait()
        notes += processes.share(judge)
        store = stack.enter_context(
            work.open_codes(encoder.settings, encoder.codec.num_codebooks, processes.index)
        )
        resumed = encode_recordings(
            work, encoder, store, processes, batch_seconds=batch_seconds, progress=progress
        )
        notes = [*notes, *_describe_source(source), *find_notes(work)]
        processes.wait()
        cards = processes.share(
            lambda: _write_datasets(work, encoder, store, manifest.name, is_divided=hold_out is not None)
        )
    if hold_out is None:
        folder, held_out_set = output, None
    else:
        folder = output / TRAIN_NAME
        held_out_set = WrittenDataset(output / HELD_OUT_NAME, cards[1])
    return PreparedSummary(folder, cards[0], held_out_set, resumed, tuple(notes), processes.index)


def _check_apart(manifest: Path, output: Path, codec: Codec | str | Path, report: str | Path | None) -> None:
    """Check that neither the dataset nor the page overlaps the data or the codec, and that it can be named."""
    check_name("--output", output)
    data = [Input("the data", manifest)]
    if os.path.isfile(manifest):
        data.append(Input("the folder of the data", manifest.parent, may_contain_output=True))
    name = codec if isinstance(codec, str | Path) else codec.name
    check_apart("--output", output, [*data, Input("the codec", name)])
    if report is not None:
        check_page("--report", report)
        check_apart("--report", report, [Input("the dataset", output)])


def _load_codec(codec: Codec | str | Path) -> Codec:
    loaded = load_codec(codec) if isinstance(codec, str | Path) else codec
    if loaded.sample_rate_hz != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"the codec {loaded.name} has a sample rate of {loaded.sample_rate_hz} Hz, not {SAMPLE_RATE_HZ} Hz. "
            "Give another codec."
        )
    return loaded


def _describe_source(source: DataSource) -> list[str]:
    """Describe the detected format, unless it is our own, and the fields that were not used."""
    found = [] if source.format_name == "JSON lines" else [f"{source.path} is read as: {source.format_name}"]
    return found + [
        f'{count_noun(count, "row")} with "{name}", which is not used'
        for name, count in source.unused.items()
    ]


def _write_datasets(
    work: WorkDirectory, encoder: Encoder, store: CodeStore, source: str, *, is_divided: bool
) -> list[DatasetCard]:
    """Write the dataset, or both, in the work directory, and rename their folder to the output in one step."""
    # A killed run may have left a part of it.
    shutil.rmtree(work.dataset, ignore_errors=True)
    store.refresh()
    sides = {TRAIN_NAME: False, HELD_OUT_NAME: True} if is_divided else {"": None}
    with work.open_tables() as tables:
        cards = [
            _write_dataset(tables, encoder, store, work.dataset / name, source, held_out=side)
            for name, side in sides.items()
        ]
    work.publish_dataset()
    return cards


def _write_dataset(
    tables: CorpusTables,
    encoder: Encoder,
    store: CodeStore,
    folder: Path,
    source: str,
    *,
    held_out: bool | None,
) -> DatasetCard:
    """Write the dataset of one side. The list of rejected rows is a part of what is trained on."""
    rejected = 0 if held_out else tables.count_rejected()
    if rejected:
        write_rejected(tables, folder / REJECTED_NAME)
    rows = (_build_row(tables, store, *row) for row in tables.iterate_accepted(held_out=held_out))
    return write_prepared(
        rows,
        folder,
        codec=encoder.codec,
        source=source,
        loudness_lufs=encoder.loudness_lufs,
        rejected=rejected,
    )


def _build_row(tables: CorpusTables, store: CodeStore, number: int, utterance: Utterance) -> dict[str, Any]:
    """Build a row for `write_prepared`, with the codes of its recordings."""
    recordings = tables.read_recordings(number)
    codes_FK, *context_codes = (store.get(recording.content_hash) for recording in recordings)
    return {
        "utterance_id": utterance.utterance_id,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "scene": utterance.scene,
        "task": utterance.task,
        "codes_FK": codes_FK,
        "num_references": len(utterance.references),
        "context_texts": [clip.text for clip in utterance.clips],
        "context_codes": context_codes,
        "duration_seconds": recordings[0].seconds,
        "reward": utterance.reward,
        "text_changes": list(utterance.text_changes),
        "content_hash": recordings[0].content_hash,
    }
