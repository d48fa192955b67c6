"""The base class of mixins for a Trainer: Trainer for a type checker, and nothing when the program runs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

__all__ = ["TrainerBase"]
