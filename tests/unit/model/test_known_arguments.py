"""What the error about an unknown argument says about versions is what the package declares."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from higgs_trainer.model.known_arguments import SUPPORTED_TRANSFORMERS

ROOT = Path(__file__).parents[3]


def test_the_versions_in_the_error_are_those_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (declared,) = (
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "transformers"
    )
    assert SpecifierSet(SUPPORTED_TRANSFORMERS) == declared
