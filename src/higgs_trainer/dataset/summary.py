"""Summarize a prepared dataset in counts, without the names of speakers."""

import pyarrow.compute

from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.run_folder import DatasetSummary


def summarize(rows: PreparedRows) -> DatasetSummary:
    """Count the utterances, hours, tasks, languages and speakers."""
    return {
        "utterances": len(rows),
        "hours": round(pyarrow.compute.sum(rows.column("duration_seconds")).as_py() / 3600, 4),
        "tasks": _count(rows, "task"),
        "languages": _count(rows, "language"),
        "speakers": len(_count(rows, "speaker")),
    }


def _count(rows: PreparedRows, name: str) -> dict[str, int]:
    """Count the rows with each value of a column, in alphabetical order, without empty rows."""
    pairs = rows.column(name).drop_null().value_counts().to_pylist()
    return {pair["values"]: pair["counts"] for pair in sorted(pairs, key=lambda pair: pair["values"])}
