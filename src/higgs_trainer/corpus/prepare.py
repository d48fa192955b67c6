"""Manifest -> prepared dataset: every row checked, every recording encoded once, written whole or not at all.

Read `prepare` first: five steps, each in a module of its own. What they leave for one another lies in the unfinished
folder (`unfinished.py`), so that memory does not grow with the manifest and a killed run goes on where it was.
"""

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.corpus.code_store import CodeStore
from higgs_trainer.corpus.corpus_page import write_report_page
from higgs_trainer.corpus.encoding import Encoder, encode_recordings
from higgs_trainer.corpus.inspection import (
    Progress,
    check_rejected,
    find_notes,
    iterate_accepted,
    judge_corpus,
    measure_rows,
    pair_accepted,
    store_rows,
    write_rejected,
)
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.work_directory import (
    DATASET,
    ROWS,
    lock_unfinished,
    open_table_file,
    publish_dataset,
    unfinished_folder,
)
from higgs_trainer.dataset.prepared import REJECTED_NAME, DatasetCard
from higgs_trainer.dataset.prepared_writer import check_output, write_prepared
from higgs_trainer.distributed import join_processes
from higgs_trainer.errors import CheckpointError
from higgs_trainer.manifest.formats import Source, open_source
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import check_rows
from higgs_trainer.manifest.text import TextRules
from higgs_trainer.manifest.utterance import Utterance


@dataclass(frozen=True)
class PreparedSummary:
    """What `prepare` wrote, and where. `resumed` counts the recordings that an earlier run had encoded; `notes` are
    sentences on what is no mistake but should be known; `process_index` is 0 in the one that should print it."""

    folder: Path
    card: DatasetCard
    resumed: int
    notes: tuple[str, ...]
    process_index: int


def show_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """A rich progress bar on stderr; where that is no terminal, one line at the end."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total=total, console=Console(stderr=True))


def skip_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """Nothing is shown: for all processes but the first."""
    return items


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
    """Check every row, then encode every recording once and write `output`.

    Under `accelerate launch` each process checks and encodes its share; the first one reads, judges and writes. A run
    that was killed is resumed by the same call.

    Args:
        pair_seed: draw references for single-speaker rows (`pair_references`).
        max_rejected: so many bad rows are left out and listed in `rejected.jsonl`; with more, nothing is written.
        loudness_lufs: bring every recording to this loudness first.
        batch_seconds: how much sound of equal length the codec is given at once.
        report: where to write an HTML page about the corpus, also where it is refused.

    Raises:
        ManifestError: all that is wrong with rows and recordings, together; nothing was written.
        UserError: the manifest cannot be read, `output` is not empty and `overwrite` was not asked for, or another
            run is preparing it.
        CheckpointError: there is no such codec.
    """
    manifest, output = Path(manifest), Path(output)
    encoder = Encoder(_load_codec(codec), loudness_lufs)
    folder = unfinished_folder(output)
    source = open_source(manifest, audio_folder=folder / "recordings")
    rules = RowRules(
        allow_outside=allow_outside, allow_own_reference=allow_own_reference, text_rules=text_rules
    )
    rows = check_rows(source, rules)

    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        quietly = progress if processes.is_first else skip_progress

        def read() -> list[str]:
            check_output(output, overwrite=overwrite)
            stack.enter_context(lock_unfinished(output))
            return store_rows(progress(rows, "reading rows", None), folder)

        def judge() -> int:
            judge_corpus(folder, processes, limits, allow_own_reference=allow_own_reference)
            if pair_seed is not None:
                pair_accepted(folder, seed=pair_seed)
            if report is not None:
                write_report_page(folder, Path(report), title=manifest.name, limits=limits)
            return check_rejected(folder, max_rejected)

        notes = processes.share(read)
        measure_rows(folder, processes, limits, quietly)
        processes.wait()
        rejected = processes.share(judge)
        store = stack.enter_context(CodeStore(folder, encoder.settings, processes.index))
        resumed = encode_recordings(
            folder, encoder, store, processes, batch_seconds=batch_seconds, progress=quietly
        )
        notes = [*notes, *_describe_unused(source), *find_notes(folder)]
        processes.wait()
        card = processes.share(lambda: _write(output, folder, encoder, store, rejected, manifest.name))
    return PreparedSummary(output, card, resumed, tuple(notes), processes.index)


def _load_codec(codec: Codec | str | Path) -> Codec:
    loaded = load_codec(codec) if isinstance(codec, str | Path) else codec
    if loaded.sample_rate_hz != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"the codec {loaded.name} works at {loaded.sample_rate_hz} Hz, not at {SAMPLE_RATE_HZ} Hz"
        )
    return loaded


def _describe_unused(source: Source) -> list[str]:
    """The format that was found, unless it is ours, and what stood in it that has no place in a manifest."""
    found = [] if source.format_name == "JSON lines" else [f"{source.path} is read as: {source.format_name}"]
    return found + [
        f"{count} rows have a {name!r}, which is not used" for name, count in source.unused.items()
    ]


def _write(
    output: Path, folder: Path, encoder: Encoder, store: CodeStore, rejected: int, source: str
) -> DatasetCard:
    """The dataset, whole, in the output's place."""
    whole = folder / DATASET
    shutil.rmtree(whole, ignore_errors=True)  # what a run left that was killed while it wrote
    store.look_again()
    tables = open_table_file(folder / ROWS)
    num_codebooks = encoder.codec.num_codebooks
    rows = (_build_row(tables, store, num_codebooks, *numbered) for numbered in iterate_accepted(tables))
    card = write_prepared(
        rows,
        whole,
        codec=encoder.codec,
        source=source,
        loudness_lufs=encoder.loudness_lufs,
        rejected=rejected,
    )
    tables.close()
    if rejected:
        write_rejected(folder, whole / REJECTED_NAME)
    publish_dataset(whole, output)
    return card


def _build_row(
    tables: sqlite3.Connection, store: CodeStore, num_codebooks: int, number: int, utterance: Utterance
) -> dict[str, Any]:
    """A row of `build_features`, its codes found by their recordings' content."""
    query = "SELECT content_hash, seconds FROM recordings WHERE number = ? ORDER BY place"
    recordings = tables.execute(query, (number,)).fetchall()
    codes_FK, *context_codes = (store.get(hash_).reshape(-1, num_codebooks) for hash_, _ in recordings)
    content_hash, seconds = recordings[0]
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
        "duration_seconds": seconds,
        "reward": utterance.reward,
        "text_changes": list(utterance.text_changes),
        "content_hash": content_hash,
    }
