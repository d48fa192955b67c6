"""Write the table of foreign trainers in ``TRAINERS.md``: ``python packages/label-guard/tests/foreign/table.py``."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "TRAINERS.md"
BEGIN, END = "<!-- trainers: begin -->", "<!-- trainers: end -->"
if __name__ == "__main__":
    sys.path[:0] = [str(HERE)]

from comparison import Outcome, run_case  # noqa: E402
from trainers import CASES, Case  # noqa: E402

LIBRARIES = ("trl", "sentence-transformers", "transformers", "peft", "accelerate", "torch")
GUARDS = ("mixin", "launcher")
COLUMNS = [(guard, leaks) for leaks in (False, True) for guard in GUARDS]
HEADERS = {"mixin": "`LabelGuardMixin`", "launcher": "`python -m label_guard`"}


def name_versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def compare(case: Case, lora: bool, reference: Outcome, guard: str, leaks: bool) -> str:
    """Run a case guarded. Returns the cell of the table: ``same``, or what differs."""
    with tempfile.TemporaryDirectory() as folder:
        outcome, found = run_case(case, lora, Path(folder), guard, leaks=leaks)
    differences = outcome.find_differences(reference)
    if bool(found) != leaks:
        differences.append("what was reported")
    return ", ".join(differences) or "same"


def make_row(case: Case, lora: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        reference, _ = run_case(case, lora, Path(folder))
    cells = [compare(case, lora, reference, guard, leaks) for guard, leaks in COLUMNS]
    return [case.name, "yes" if lora else "no", *cells]


def format_table(rows: list[list[str]]) -> str:
    headers = [
        "trainer",
        "LoRA",
        *(HEADERS[guard] + (", a leak" if leaks else "") for guard, leaks in COLUMNS),
    ]
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_rows(page: str) -> list[list[str]]:
    """Read the rows of the page's table."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in inside.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    rows = []
    for case in CASES:
        for lora in (False, True):
            print(f"{case.name}, {'with' if lora else 'without'} LoRA", file=sys.stderr)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                rows.append(make_row(case, lora))
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = f"Run with {name_versions()}.\n\n{format_table(rows)}"
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
