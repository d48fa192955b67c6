"""The result of one test of ``higgs-trainer check``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """The result of one test: what was measured (``found``), and what a failure means and what to do (``remedy``)."""

    name: str
    passed: bool
    found: str
    remedy: str = ""
