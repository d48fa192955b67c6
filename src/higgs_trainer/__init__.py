"""Higgs Trainer: fine-tune Higgs Audio speech models. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
