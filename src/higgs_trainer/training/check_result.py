"""The result of one test of ``higgs-trainer check``."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckResult:
    """The result of one test: what was measured (``found``), and what a failure means and what to do (``remedy``).

    A test that passes may still warn: ``severity`` says how much its ``found`` and ``remedy`` matter.
    """

    name: str
    passed: bool
    found: str
    remedy: str = ""
    severity: Literal["none", "warning", "serious"] = "none"
