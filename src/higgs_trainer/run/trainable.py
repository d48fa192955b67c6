"""Choose which parameters of a model are trained: those of an adapter, or all but the frozen ones."""

from dataclasses import replace

from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.model.parameters import freeze, freeze_text_head
from higgs_trainer.recipe.schema import AdapterRecipe


def choose_trainable(
    base: Checkpoint, adapter: AdapterRecipe | None, frozen_kinds: tuple[str, ...]
) -> Checkpoint:
    """Add the adapter to the model, or freeze kinds of its modules. The text head is frozen: no loss reads it.

    Raises:
        RecipeError: a name matches no module, or nothing is left to train.
    """
    family, checkpoint = base.family, base
    if adapter is not None:
        checkpoint = replace(base, model=add_lora(base.model, family, **adapter.model_dump()))
    freeze(checkpoint.model, family, frozen_kinds)
    freeze_text_head(checkpoint.model, family)
    return checkpoint
