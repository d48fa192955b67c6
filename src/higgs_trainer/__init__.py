"""Fine-tune Higgs Audio speech models: from recordings to a voice.

The public API. Each name is imported when it is first used, so ``import higgs_trainer`` is fast and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from higgs_trainer.version import __version__ as __version__

if TYPE_CHECKING:
    from higgs_trainer.corpus.prepare import prepare
    from higgs_trainer.dataset.prepared import read_prepared
    from higgs_trainer.evaluation.comparison import EvaluationSettings, evaluate_models
    from higgs_trainer.evaluation.judging import load_judges
    from higgs_trainer.recipe.reading import read_recipe
    from higgs_trainer.recipe.schema import Recipe
    from higgs_trainer.report.run_page import write_report
    from higgs_trainer.run.check import check
    from higgs_trainer.run.samples import speak_while_training
    from higgs_trainer.run.train import train
    from higgs_trainer.sharing.checkpoint_conversion import convert_checkpoint
    from higgs_trainer.sharing.merging import merge_adapter
    from higgs_trainer.sharing.model_card import write_model_card
    from higgs_trainer.speech.speech_model import load_speech_model
    from higgs_trainer.training.trainer import HiggsAudioTrainer

_MODULES = {
    "EvaluationSettings": "evaluation.comparison",
    "HiggsAudioTrainer": "training.trainer",
    "Recipe": "recipe.schema",
    "check": "run.check",
    "convert_checkpoint": "sharing.checkpoint_conversion",
    "evaluate_models": "evaluation.comparison",
    "load_judges": "evaluation.judging",
    "load_speech_model": "speech.speech_model",
    "merge_adapter": "sharing.merging",
    "prepare": "corpus.prepare",
    "read_prepared": "dataset.prepared",
    "read_recipe": "recipe.reading",
    "speak_while_training": "run.samples",
    "train": "run.train",
    "write_model_card": "sharing.model_card",
    "write_report": "report.run_page",
}

__all__ = [
    "EvaluationSettings",
    "HiggsAudioTrainer",
    "Recipe",
    "check",
    "convert_checkpoint",
    "evaluate_models",
    "load_judges",
    "load_speech_model",
    "merge_adapter",
    "prepare",
    "read_prepared",
    "read_recipe",
    "speak_while_training",
    "train",
    "write_model_card",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
