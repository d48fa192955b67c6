"""A page to listen with: the same texts spoken before and after training, beside the real voice.

One HTML file without scripts that holds its audio, so it can be moved, mailed and opened offline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from torch import Tensor

from higgs_trainer.data.audio import encode_data_uri
from higgs_trainer.speech.evaluate import SpeechScores, word_error_rate

TEMPLATE = "samples_page.html.jinja"
DEMO_NOTE = (
    "The model and the codec behind these clips are tiny, so that they train on a laptop: the sound is robotic, the "
    "vocabulary is ten words, and the voices are synthetic. Listen for the words and for whose voice it is, not for "
    "quality. The real checkpoint speaks far better and takes a GPU."
)


@dataclass(frozen=True)
class Clip:
    """One player: a waveform (S,) at 24 kHz, what the ASR heard in it, and whether the model ended it itself."""

    waveform_S: Tensor
    transcript: str
    stopped: bool = True


@dataclass(frozen=True)
class Row:
    """A text and its clips by column ("before", "after", "the real voice"); a column may be missing."""

    text: str
    clips: Mapping[str, Clip]


def write_samples_page(
    path: str | Path,
    title: str,
    rows: Sequence[Row],
    summary: Mapping[str, SpeechScores],
    *,
    facts: Mapping[str, str] | None = None,
    note: str = DEMO_NOTE,
) -> None:
    """Write the page to ``path``; its folder is made where it is missing.

    Args:
        rows: in the order of the page; their columns are shown in the order in which they first occur.
        summary: scores by name, one line each of the table on top.
        facts: further figures by name, shown below the table.
        note: what a listener must know to judge fairly, shown above all players.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=title,
        note=note,
        facts=facts or {},
        summary=summary,
        columns=list(dict.fromkeys(column for row in rows for column in row.clips)),
        rows=[
            (row.text, {column: _show(row.text, clip) for column, clip in row.clips.items()}) for row in rows
        ],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _show(text: str, clip: Clip) -> dict[str, str | bool]:
    return {
        "audio": encode_data_uri(clip.waveform_S) if len(clip.waveform_S) else "",
        "transcript": clip.transcript,
        "is_right": word_error_rate([text], [clip.transcript]) == 0.0,
        "stopped": clip.stopped,
    }
