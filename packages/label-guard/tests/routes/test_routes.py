"""Every route, every layer, cell by cell; and the page says the same."""

from pathlib import Path

import pytest
import transformers
from catalogue import COLUMNS, ROUTES, Route, expected_cell, run
from distributed import DDP_ROUTES, SHARDED, run_distributed
from table import PAGE, read_table

CASES = [
    pytest.param(route, stage, id=f"{route.name}, {stage}") for route in ROUTES for stage in route.stages
]


# Under transformers 4.46 the guarded columns are the same. The stock Trainer is another one, so `none` is not compared,
# and its PEFT cannot put a SEQ_2_SEQ_LM class around a wrapper at all.
OLD = transformers.__version__.startswith("4.")
NOT_IN_OLD = {"PEFT SEQ_2_SEQ_LM, outside a wrapper"}


@pytest.fixture(scope="module")
def page() -> dict[tuple[str, str], list[str]]:
    return read_table(PAGE.read_text())


@pytest.mark.parametrize(("route", "stage"), CASES)
def test_every_cell(route: Route, stage: str, tmp_path: Path, page: dict[tuple[str, str], list[str]]) -> None:
    if OLD and route.name in NOT_IN_OLD:
        pytest.skip("peft 0.13 builds no such model")
    columns = [column for column in COLUMNS if not (OLD and column == "none")]
    outcomes = {column: run(route, stage, column, tmp_path) for column in columns}
    cells = {column: outcome.cell for column, outcome in outcomes.items()}
    assert cells == {column: expected_cell(route, stage, column) for column in columns}
    assert outcomes["all"].died == ""
    assert page[route.name, stage][-len(columns) :] == list(cells.values())


@pytest.mark.slow
def test_two_processes(tmp_path: Path, page: dict[tuple[str, str], list[str]]) -> None:
    cells = run_distributed(tmp_path)
    for route in DDP_ROUTES:
        assert cells[route.name] == {column: expected_cell(route, "train", column) for column in COLUMNS}
    assert cells[SHARDED] == {"none": "leaks", "5": "clean", "all": "clean"}
    for name, row in cells.items():
        assert page[name, "train"] == [row.get(column, "-") for column in COLUMNS]


def test_the_page_has_no_other_rows(page: dict[tuple[str, str], list[str]]) -> None:
    shown = {(route.name, stage) for route in ROUTES for stage in route.stages}
    assert set(page) == shown | {(name, "train") for name in (*(route.name for route in DDP_ROUTES), SHARDED)}
