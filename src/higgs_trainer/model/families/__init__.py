"""The table of model families. A new family is one file in this folder and one row here."""

from collections.abc import Mapping

from torch import nn

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.families.boson import BOSON
from higgs_trainer.model.families.family import Aligned, Family, SequenceFormat, StreamIds
from higgs_trainer.model.families.higgs_audio_v2 import HIGGS_AUDIO_V2

__all__ = [
    "BOSON",
    "FAMILIES",
    "HIGGS_AUDIO_V2",
    "Aligned",
    "Family",
    "SequenceFormat",
    "StreamIds",
    "family_of",
    "find_family",
]

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (HIGGS_AUDIO_V2, BOSON)}
"""The ``model_type`` of a configuration -> the family."""


def find_family(model_type: str) -> Family:
    """Find the family of a ``model_type``. Raises ``CheckpointError`` if there is none."""
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model type {model_type!r} is not one that Higgs Trainer knows ({', '.join(FAMILIES)}); "
            "is name_or_path a Higgs Audio checkpoint?"
        )
    return FAMILIES[model_type]


def family_of(model: nn.Module) -> Family:
    """Find the family of a model by its configuration. Raises ``CheckpointError`` if there is none."""
    return find_family(str(getattr(getattr(model, "config", None), "model_type", None)))
