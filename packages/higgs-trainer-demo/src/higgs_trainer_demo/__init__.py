"""The data of ``higgs-trainer demo``. This package contains no code."""
