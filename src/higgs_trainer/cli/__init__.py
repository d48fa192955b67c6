"""The verbs and their arguments. Each verb calls one function, imported only then: `-h` must not wait for torch."""

from higgs_trainer.cli.application import app, main

# Importing a module of verbs registers them, in the order in which `-h` lists them.
from higgs_trainer.cli import corpus, training, generation, evaluation, sharing  # isort: skip

__all__ = ["app", "corpus", "evaluation", "generation", "main", "sharing", "training"]
