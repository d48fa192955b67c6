"""A guarded trainer of another project computes what it computes unguarded, and a leak changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from comparison import LEAK, Outcome, run_case
from table import COLUMNS, GUARDS, PAGE, name_versions, read_rows
from trainers import CASES, Case

RUNS = [
    pytest.param(case, lora, id=f"{case.name}{', LoRA' if lora else ''}")
    for case in CASES
    for lora in (False, True)
]
Reference = Callable[[Case, bool], Outcome]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Run a case unguarded, once for all tests."""
    return cache(lambda case, lora: run_case(case, lora, tmp_path_factory.mktemp("unguarded"))[0])


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(("case", "lora"), RUNS)
def test_a_guarded_run_without_a_leak_is_the_unguarded_run(
    case: Case, lora: bool, guard: str, tmp_path: Path, reference: Reference
) -> None:
    outcome, leaks = run_case(case, lora, tmp_path, guard)
    assert leaks == []
    assert outcome.find_differences(reference(case, lora)) == []


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(("case", "lora"), RUNS)
def test_a_leak_is_stopped_and_named_and_changes_nothing(
    case: Case, lora: bool, guard: str, tmp_path: Path, reference: Reference
) -> None:
    outcome, leaks = run_case(case, lora, tmp_path, guard, leaks=True)
    assert {leak.key for leak in leaks} == {LEAK}
    assert all("add_emotions" in leak.source.name for leak in leaks)
    assert outcome.find_differences(reference(case, lora)) == []


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_under_the_policy_watch_a_leak_is_named_and_passes_as_without_the_guard(
    case: Case, tmp_path: Path
) -> None:
    expected, _ = run_case(case, False, tmp_path, leaks=True)
    outcome, leaks = run_case(case, False, tmp_path, "launcher", policy="watch", leaks=True)
    assert {leak.key for leak in leaks} == {LEAK}
    assert outcome.find_differences(expected) == []


def test_the_table_shows_these_runs_and_versions() -> None:
    assert read_rows(PAGE.read_text()) == [
        [case.name, "yes" if lora else "no", *["same"] * len(COLUMNS)]
        for case in CASES
        for lora in (False, True)
    ]
    assert name_versions() in PAGE.read_text()
