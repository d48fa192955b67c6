"""The runs with other versions of the libraries: what they install, and which bound a failure says to lower."""

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
script = runpy.run_path(str(ROOT / "scripts" / "library_versions.py"))
PINS = {"transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0"}
CHANGED = {"transformers": "5.24.0", "peft": "0.22.0"}


@pytest.mark.parametrize(
    ("changed", "guilty", "answer"),
    [
        (CHANGED, ["peft"], 'Support peft 0.22.0, or lower its bound in pyproject.toml to "peft<0.22.0"'),
        (CHANGED, [], "even if one of transformers 5.24.0, peft 0.22.0 is set back"),
        ({}, [], "no bound is to blame"),
    ],
)  # fmt: skip
def test_a_failure_names_the_bound_to_lower(changed, guilty, answer):
    assert answer in script["describe_failure"](changed, guilty, PINS)


def test_every_row_of_the_guards_table_names_the_three_libraries_and_pins_all_but_the_newest():
    table = tomllib.loads(script["TABLE"].read_text())
    for row, requirements in table.items():
        names = [requirement.partition("==")[0] for requirement in requirements]
        assert tuple(names[:3]) == script["LIBRARIES"]
        assert all("==" in requirement for requirement in requirements) == (row != "newest")
        assert row == "newest" or requirements[0].startswith(f"transformers=={row}.")


def test_every_library_is_pinned_by_the_constraints():
    assert script["read_pins"]().keys() >= {*script["LIBRARIES"], "pytest", "pytest-xdist", "hypothesis"}


def test_tests_that_are_run_with_the_newest_versions_exist():
    assert all((ROOT / path).exists() for path in script["NEWEST_TESTS"])
