"""Write one HTML page about one run folder or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.outputs import check_page
from higgs_trainer.page.document import COPYING_SCRIPT, PLAYERS_SCRIPT, read_script, write_document
from higgs_trainer.report.clips import Budget, find_longest, group_by_run, show_sentences
from higgs_trainer.report.first_sentence import describe_outcome
from higgs_trainer.report.listening import find_sentences
from higgs_trainer.report.logs import choose_charts
from higgs_trainer.report.part import hide_folder
from higgs_trainer.report.runs import RunContents, flatten, read_runs
from higgs_trainer.report.scores import build_table
from higgs_trainer.report.thinning import THINNED, fit_on_page, to_sparse
from higgs_trainer.report.tiles import build_tiles
from higgs_trainer.report.title import build_title, describe_training
from higgs_trainer.version import __version__

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000
SENTENCES_UNFOLDED = 8


@dataclass(frozen=True)
class NextStep:
    """What a reader of the page may do next: a sentence, a command to copy, and the address of a page about it."""

    what: str
    command: str
    address: str


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written. ``notes`` say what is missing on it; the page says the same."""

    path: Path
    size_bytes: int
    notes: tuple[str, ...]


def write_report(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    title: str | None = None,
    note: str = "",
    facts: Mapping[str, str] | None = None,
    next_step: NextStep | None = None,
) -> WrittenPage:
    """Write the page of one run, or a page that compares several, to ``path``.

    Args:
        runs: output folders of training, finished or not.
        title: the page's title; default: the names of the runs, what was trained, and the day.
        note: what a listener must know to judge fairly, shown at the top.
        facts: further facts by name, shown below the scores.
        next_step: what the reader may do next, shown below the scores.

    Raises:
        UserError: a folder is not a run folder or is given twice, or there are too many; ``path`` is a folder or a file
            that is no HTML page; or the page would be larger than 5 MB.

    Example:
        ```python
        from higgs_trainer import write_report

        page = write_report(["runs/voice"], "report.html")
        print(page.path, page.size_bytes)
        ```
    """
    check_page("--output", path)
    folders = read_runs(runs)
    found, notes = find_sentences(folders)
    sentences, left_out = show_sentences(found, Budget())
    notes = [*notes, *left_out]
    for run in folders:
        notes = [hide_folder(one, run.folder) for one in notes]
    logs, is_thinned = fit_on_page([run.logs.value or {} for run in folders])
    size_bytes = write_document(
        path,
        HERE / "report.html.jinja",
        most_bytes=MOST_BYTES,
        script=read_script(
            PLAYERS_SCRIPT, COPYING_SCRIPT, HERE / "curves.js", HERE / "numbers_as_csv.js", HERE / "blind.js"
        ),
        title=title or build_title(folders),
        subtitle=describe_training(folders) if title else "",
        outcomes={run.name: describe_outcome(run) for run in folders},
        note=note,
        facts=facts or {},
        next_step=next_step,
        version=__version__,
        thinned=f"To keep this page small, {THINNED}" if is_thinned else "",
        runs=folders,
        numbers_of={run.name: number for number, run in enumerate(folders)},
        tiles=build_tiles(folders),
        table=build_table(folders),
        sentences=sentences,
        unfolded=SENTENCES_UNFOLDED,
        group_by_run=group_by_run,
        find_longest=find_longest,
        listening_notes=notes,
        groups=choose_charts([columns for columns in logs if columns]),
        numbers=[{"run": run.name, **to_sparse(columns)} for run, columns in zip(folders, logs, strict=True)],
        differences=_find_differences(folders),
        trained={run.name: _count_trained(run) for run in folders},
    )
    return WrittenPage(Path(path), size_bytes, tuple(notes))


def _count_trained(run: RunContents) -> str:
    counts = [kind for kind in (run.parameters.value or {}).values() if isinstance(kind, dict)]
    values = [[kind.get(key) for kind in counts] for key in ("trained", "all")]
    trained, total = (sum(value for value in column if isinstance(value, int)) for column in values)
    return f"{trained:,} of {total:,} parameters ({trained / total:.1%})" if total else ""


def _find_differences(runs: Sequence[RunContents]) -> list[tuple[str, list[Any]]]:
    """List the settings in which the runs differ: (name, one value for each run)."""
    if len(runs) < 2:
        return []
    flat = [flatten(run.settings) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [str(settings.get(key, "–")) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
