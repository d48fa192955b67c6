"""Write one HTML page about one run folder or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.outputs import check_page
from higgs_trainer.page.document import PLAYERS_SCRIPT, read_script, write_document
from higgs_trainer.report.clips import Budget, find_longest, group_by_run, show_sentences
from higgs_trainer.report.listening import find_sentences
from higgs_trainer.report.logs import choose_charts
from higgs_trainer.report.part import hide_folder
from higgs_trainer.report.runs import RunContents, find_setting, flatten, read_runs
from higgs_trainer.report.scores import build_table, build_tiles
from higgs_trainer.report.thinning import THINNED, fit_on_page, to_sparse
from higgs_trainer.version import __version__

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000


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
) -> WrittenPage:
    """Write the page of one run, or a page that compares several, to ``path``.

    Args:
        runs: output folders of training, finished or not.
        title: the page's title; default: the names of the runs.
        note: what a listener must know to judge fairly, shown at the top.
        facts: further facts by name, shown below the scores.

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
        script=read_script(PLAYERS_SCRIPT, HERE / "curves.js", HERE / "copying.js"),
        title=title or " and ".join(run.name for run in folders),
        subtitle=_describe(folders),
        note=note,
        facts=facts or {},
        version=__version__,
        thinned=f"To keep this page small, {THINNED}" if is_thinned else "",
        runs=folders,
        numbers_of={run.name: number for number, run in enumerate(folders)},
        tiles=build_tiles(folders),
        table=build_table(folders),
        sentences=sentences,
        group_by_run=group_by_run,
        find_longest=find_longest,
        listening_notes=notes,
        groups=choose_charts([columns for columns in logs if columns]),
        numbers=[{"run": run.name, **to_sparse(columns)} for run, columns in zip(folders, logs, strict=True)],
        differences=_find_differences(folders),
        trained={run.name: _count_trained(run) for run in folders},
    )
    return WrittenPage(Path(path), size_bytes, tuple(notes))


def _describe(runs: Sequence[RunContents]) -> str:
    """Say in one line what was trained, and from which model."""
    bases = dict.fromkeys(str(find_setting(run.settings, "model", "name_or_path") or "?") for run in runs)
    names = ", ".join(Path(base).name if Path(base).is_absolute() else base for base in bases)
    kinds = dict.fromkeys("LoRA" if run.settings.get("adapter") else "all parameters" for run in runs)
    return f"{' and '.join(kinds)} on {names}" if any(run.settings for run in runs) else ""


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
