"""Prepare data: check every row, encode every recording once, and write a dataset whole or not at all.

`prepare` runs the steps below. They exchange their results through the work directory, so that memory does not grow
with the data and a killed run can be resumed.

1. read and check the rows       manifest/rows.py, inspection.store_rows
2. measure the recordings        inspection.measure_rows
3. judge the corpus as a whole   inspection.judge_corpus
4. encode                        encoding.encode_recordings
5. write the dataset             _write_dataset
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
from higgs_trainer.corpus.inspection import (
    check_rejected,
    find_notes,
    judge_corpus,
    measure_rows,
    pair_accepted,
    store_rows,
    write_rejected,
)
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.progress import Progress, show_progress, skip_progress
from higgs_trainer.corpus.work_directory.code_store import CodeStore
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.dataset.prepared import REJECTED_NAME, DatasetCard
from higgs_trainer.dataset.prepared_writer import check_output, write_prepared
from higgs_trainer.distributed import join_processes
from higgs_trainer.errors import CheckpointError
from higgs_trainer.manifest.formats import DataSource, open_source
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import check_rows
from higgs_trainer.manifest.text import TextRules
from higgs_trainer.manifest.utterance import Utterance
from higgs_trainer.outputs import Input, check_apart, check_page


@dataclass(frozen=True)
class PreparedSummary:
    """The result of `prepare`.

    Attributes:
        resumed: the number of recordings that an earlier run had encoded.
        notes: sentences about the data that are not errors.
        process_index: 0 in the process that should print the summary.
    """

    folder: Path
    card: DatasetCard
    resumed: int
    notes: tuple[str, ...]
    process_index: int


def prepare(
    manifest: str | Path,
    output: str | Path,
    *,
    codec: Codec | str | Path,
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
    progress: Progress = show_progress,
) -> PreparedSummary:
    """Check every row, then encode every recording once and write ``output``.

    Under `accelerate launch` each process checks and encodes its share. Process 0 also reads, judges and writes. Repeat
    the call to resume a run that was killed.

    Args:
        manifest: data in any known format (docs/data_formats.md).
        codec: a codec, or its name for `load_codec`.
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
            file that is no page, or another run is preparing the data.
        CheckpointError: the codec cannot be loaded.

    Example:
        ```python
        from higgs_trainer import prepare

        summary = prepare("data.jsonl", "prepared/train", codec="base/codec")
        print(f"{summary.card.utterances} utterances, {summary.card.hours:.2f} hours")
        ```
    """
    manifest, output = Path(manifest), Path(output)
    _check_apart(manifest, output, codec, report)
    encoder = Encoder(_load_codec(codec), loudness_lufs)
    work = WorkDirectory(output)
    source = open_source(manifest, audio_folder=work.audio_folder)
    rules = RowRules(
        allow_outside=allow_outside, allow_own_reference=allow_own_reference, text_rules=text_rules
    )
    rows = check_rows(source, rules)

    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        if not processes.is_first:
            progress = skip_progress

        def read() -> list[str]:
            check_output(output, overwrite=overwrite)
            stack.enter_context(work.lock())
            return store_rows(progress(rows, "reading rows", None), work)

        def judge() -> None:
            judge_corpus(work, processes, limits, allow_own_reference=allow_own_reference)
            if pair_seed is not None:
                pair_accepted(work, seed=pair_seed)
            if report is not None:
                write_corpus_page(work, Path(report), title=manifest.name, limits=limits)
            check_rejected(work, max_rejected, page=None if report is None else Path(report))

        notes = processes.share(read)
        measure_rows(work, processes, limits, progress)
        processes.wait()
        processes.share(judge)
        store = stack.enter_context(
            work.open_codes(encoder.settings, encoder.codec.num_codebooks, processes.index)
        )
        resumed = encode_recordings(
            work, encoder, store, processes, batch_seconds=batch_seconds, progress=progress
        )
        notes = [*notes, *_describe_source(source), *find_notes(work)]
        processes.wait()
        card = processes.share(lambda: _write_dataset(work, encoder, store, manifest.name))
    return PreparedSummary(output, card, resumed, tuple(notes), processes.index)


def _check_apart(manifest: Path, output: Path, codec: Codec | str | Path, report: str | Path | None) -> None:
    """Check that neither the dataset nor the page overlaps the data or the codec."""
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
    return found + [f'{count} rows have "{name}", which is not used' for name, count in source.unused.items()]


def _write_dataset(work: WorkDirectory, encoder: Encoder, store: CodeStore, source: str) -> DatasetCard:
    """Write the complete dataset in the work directory, and rename it to the output."""
    # A killed run may have left a part of it.
    shutil.rmtree(work.dataset, ignore_errors=True)
    store.refresh()
    with work.open_tables() as tables:
        rejected = tables.count_rejected()
        if rejected:
            write_rejected(tables, work.dataset / REJECTED_NAME)
        rows = (_build_row(tables, store, *numbered) for numbered in tables.iterate_accepted())
        card = write_prepared(
            rows,
            work.dataset,
            codec=encoder.codec,
            source=source,
            loudness_lufs=encoder.loudness_lufs,
            rejected=rejected,
        )
    work.publish_dataset()
    return card


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
