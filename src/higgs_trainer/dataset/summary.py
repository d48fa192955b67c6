"""What can be said of a prepared dataset to somebody who is not given it: counts, and nobody's name."""

import pyarrow.compute

from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.run_folder import DatasetSummary


def summarize(rows: PreparedRows) -> DatasetSummary:
    """Utterances, hours, tasks and languages with their counts, and how many speakers are named."""
    return {
        "utterances": len(rows),
        "hours": round(pyarrow.compute.sum(rows.column("duration_seconds")).as_py() / 3600, 4),
        "tasks": _count(rows, "task"),
        "languages": _count(rows, "language"),
        "speakers": len(_count(rows, "speaker")),
    }


def _count(rows: PreparedRows, name: str) -> dict[str, int]:
    """Each value of a column and its number, in the alphabet's order; rows without one are left out."""
    pairs = rows.column(name).drop_null().value_counts().to_pylist()
    return {pair["values"]: pair["counts"] for pair in sorted(pairs, key=lambda pair: pair["values"])}
