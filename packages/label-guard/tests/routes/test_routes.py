"""Every layer stops the routes that it must stop, and the table in ``ROUTES.md`` says so."""

from pathlib import Path

import peft
import pytest
import transformers
from catalogue import COLUMNS, ROUTES, Route, expected_cell, run
from distributed import DDP_ROUTES, SHARDED, run_distributed
from packaging.version import Version
from table import PAGE, read_table
from transformers.integrations.peft import MIN_PEFT_VERSION

Table = dict[tuple[str, str], list[str]]

CASES = [
    pytest.param(route, stage, id=f"{route.name}, {stage}") for route in ROUTES for stage in route.stages
]


# Under transformers 4.46 the columns of an owner are the same. The stock Trainer differs, so the columns that run what
# it runs are not compared. The peft of that time cannot wrap a wrapper in its SEQ_2_SEQ_LM class.
OLD = transformers.__version__.startswith("4.")
RUN_AS_STOCK = {"none", "observer 1-4", "observer 5"}
NOT_IN_OLD = {"PEFT SEQ_2_SEQ_LM, outside a wrapper"}
# transformers refuses to attach an adapter itself if peft is older than this; 5.24 asks for one that is not released.
ADD_ADAPTER_REFUSES = Version(peft.__version__) < Version(MIN_PEFT_VERSION)


@pytest.fixture(scope="module")
def page() -> Table:
    return read_table(PAGE.read_text())


@pytest.mark.parametrize(("route", "stage"), CASES)
def test_each_layer_stops_a_route_as_the_table_says(
    route: Route, stage: str, tmp_path: Path, page: Table
) -> None:
    if OLD and route.name in NOT_IN_OLD:
        pytest.skip("peft 0.13 cannot build this model")
    if transformers.__version__.startswith("4.46") and route.name.startswith("`num_items_in_batch`"):
        pytest.skip("the Trainer of 4.46 counts no targets for a wrapper")
    if ADD_ADAPTER_REFUSES and route.name == "`model.add_adapter`":
        pytest.skip("transformers requires a newer peft to add an adapter")
    columns = [column for column in COLUMNS if not (OLD and column in RUN_AS_STOCK)]
    outcomes = {column: run(route, stage, column, tmp_path) for column in columns}
    cells = {column: outcome.cell for column, outcome in outcomes.items()}
    assert cells == {column: expected_cell(route, stage, column) for column in columns}
    assert outcomes["all"].died == ""
    shown = dict(zip(COLUMNS, page[route.name, stage], strict=True))
    assert {column: shown[column] for column in columns} == cells


@pytest.mark.slow
def test_each_layer_stops_the_routes_on_two_processes_as_the_table_says(tmp_path: Path, page: Table) -> None:
    cells = run_distributed(tmp_path)
    for route in DDP_ROUTES:
        assert cells[route.name] == {column: expected_cell(route, "train", column) for column in COLUMNS}
    assert cells[SHARDED] == {"none": "leaks", "5": "clean", "all": "clean"}
    for name, row in cells.items():
        assert page[name, "train"] == [row.get(column, "-") for column in COLUMNS]


def test_the_table_has_a_row_for_each_route_and_no_other(page: Table) -> None:
    shown = {(route.name, stage) for route in ROUTES for stage in route.stages}
    assert set(page) == shown | {(name, "train") for name in (*(route.name for route in DDP_ROUTES), SHARDED)}
