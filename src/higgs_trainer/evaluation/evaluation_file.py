"""``evaluation.json`` in a run's folder: what judges said of sets of clips, "before" and "after" among them.

::

    {"schema": "higgs-trainer/evaluation/1",
     "sets": [{"name": str,
               "scores": {measure: number | {"value", "low", "high"} | null},
               "clips": [{"text", "audio", "transcript", "stopped"}]}]}

``low`` and ``high`` are the ends of a 95% interval. ``audio`` is a path from the file's own folder. ``transcript`` is
what the recogniser heard; ``stopped``, whether the model ended the clip itself.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.files import write_json
from higgs_trainer.run_folder import EVALUATION_FILE

SCHEMA = "higgs-trainer/evaluation/1"


@dataclass(frozen=True)
class JudgedClip:
    """A clip in a file, the text it should say, and what was heard."""

    text: str
    audio: Path
    transcript: str
    stopped: bool = True


@dataclass(frozen=True)
class JudgedSet:
    """Clips of one kind and their scores by measure; an interval is (value, low, high)."""

    name: str
    scores: Mapping[str, float | tuple[float, float, float] | None]
    clips: Sequence[JudgedClip]


def write_evaluation(folder: Path, sets: Sequence[JudgedSet]) -> Path:
    """Write ``evaluation.json`` into ``folder``, under a temporary name first; returns its path."""
    content = {
        "schema": SCHEMA,
        "sets": [
            {
                "name": one.name,
                "scores": {measure: _show_score(score) for measure, score in one.scores.items()},
                "clips": [
                    {
                        "text": clip.text,
                        "audio": os.path.relpath(clip.audio, folder),
                        "transcript": clip.transcript,
                        "stopped": clip.stopped,
                    }
                    for clip in one.clips
                ],
            }
            for one in sets
        ],
    }
    path = folder / EVALUATION_FILE
    write_json(path, content)
    return path


def _show_score(score: float | tuple[float, float, float] | None) -> float | dict[str, float] | None:
    if isinstance(score, tuple):
        return dict(zip(("value", "low", "high"), score, strict=True))
    return score
