"""The commands and their options.

Each command calls one function and imports it only when it runs, so that `-h` does not wait for torch.
"""

from higgs_trainer.cli.application import app, main

# Importing a module of commands registers them, in the order in which `-h` lists them.
from higgs_trainer.cli import (  # isort: skip
    demonstration,
    beginning,
    corpus,
    recipes,
    training,
    planning,
    generation,
    evaluation,
    reports,
    sharing,
)

__all__ = [
    "app",
    "beginning",
    "corpus",
    "demonstration",
    "evaluation",
    "generation",
    "main",
    "planning",
    "recipes",
    "reports",
    "sharing",
    "training",
]
