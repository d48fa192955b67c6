"""What can be said of a prepared dataset to somebody who is not given it: counts, and nobody's name."""

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

DATA_SUMMARY_NAME = "data_summary.json"


def summarize(rows: "Dataset") -> dict[str, Any]:
    """Utterances, hours, tasks and languages with their counts, and how many speakers are named."""
    languages = Counter(language for language in rows["language"] if language)
    return {
        "utterances": len(rows),
        "hours": round(sum(rows["duration_seconds"]) / 3600, 4),
        "tasks": dict(sorted(Counter(rows["task"]).items())),
        "languages": dict(sorted(languages.items())),
        "speakers": len({speaker for speaker in rows["speaker"] if speaker}),
    }
