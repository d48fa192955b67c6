"""Write the table of routes and layers in ``ROUTES.md``: ``python packages/label-guard/tests/routes/table.py``."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "ROUTES.md"
BEGIN, END = "<!-- routes: begin -->", "<!-- routes: end -->"
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]

from catalogue import COLUMNS, ROUTES, Route, run  # noqa: E402
from distributed import DDP_ROUTES, SHARDED, SHARDED_WHY, run_distributed  # noqa: E402

Row = tuple[str, str, list[str], str]


def format_table(rows: list[Row]) -> str:
    """Format rows of route, stages, cells and reason as a Markdown table."""
    lines = ["| route | on | " + " | ".join(COLUMNS) + " | why the other layers of an owner do not stop it |"]
    lines.append("|---|---|" + "---|" * (len(COLUMNS) + 1))
    lines += [f"| {route} | {stages} | {' | '.join(cells)} | {why} |" for route, stages, cells, why in rows]
    return "\n".join(lines)


def read_table(page: str) -> dict[tuple[str, str], list[str]]:
    """Read the cells of the page's table: (route, stage) -> one cell per column."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    cells: dict[tuple[str, str], list[str]] = {}
    for line in inside.strip().splitlines()[2:]:
        route, stages, *row = (cell.strip() for cell in line.strip("| ").split(" | "))
        for stage in stages.split(", "):
            cells[route, stage] = row[: len(COLUMNS)]
    return cells


def rows_of(route: Route, folder: Path) -> list[Row]:
    """Run a route in each of its stages. Stages with the same cells share a row."""
    by_cells: dict[tuple[str, ...], list[str]] = {}
    for stage in route.stages:
        cells = tuple(run(route, stage, column, folder).cell for column in COLUMNS)
        by_cells.setdefault(cells, []).append(stage)
    owner = slice(1, list(COLUMNS).index("all"))
    stopped = [cells for cells in by_cells if set(cells[owner]) != {"clean"}]
    return [
        (route.name, ", ".join(stages), list(cells), route.why if cells in stopped else "")
        for cells, stages in by_cells.items()
    ]


def distributed_rows(folder: Path) -> list[Row]:
    cells = run_distributed(folder)
    reasons = {route.name: route.why for route in DDP_ROUTES} | {SHARDED: SHARDED_WHY}
    return [
        (name, "train", [row.get(column, "-") for column in COLUMNS], reasons[name])
        for name, row in cells.items()
    ]


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, route in enumerate(ROUTES, 1):
            print(f"\r{number}/{len(ROUTES)} {route.name:60}", end="", file=sys.stderr, flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                rows += rows_of(route, Path(folder))
        rows += distributed_rows(Path(folder))
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{format_table(rows)}\n{END}{after}")
    print(f"\nwrote {len(rows)} rows to {PAGE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
