"""Choose which parameters of a model are trained, those of an adapter or all but the frozen ones, and the dtype."""

from contextlib import suppress
from dataclasses import replace

from higgs_trainer.errors import UserError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.loaded_dtype import AUTO, choose_dtype
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.model.parameters import freeze, freeze_text_head
from higgs_trainer.recipe.schema import AdapterRecipe, Recipe


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


def resolve_dtype(recipe: Recipe) -> Recipe:
    """Return the recipe with the dtype that "auto" means for its model, so that a resumed run can be compared with it.

    With an adapter, the base is frozen and keeps the dtype of its files. Without one, the model is trained, in float32.
    A model that cannot be opened is reported later, together with the other mistakes.
    """
    if recipe.model.dtype != AUTO:
        return recipe
    dtype = "float32"
    if recipe.adapter is not None:
        with suppress(UserError):
            dtype = choose_dtype(recipe.model.name_or_path)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})


def choose_result_dtype(recipe: Recipe) -> str | None:
    """Return the dtype to which the weights of the trained model are rounded, or None if they stay as they are.

    A fully trained model is written in the dtype of its base, so that it needs as much memory as the base to be used.
    """
    is_narrow = recipe.adapter is None and choose_dtype(recipe.model.name_or_path) == "bfloat16"
    return "bfloat16" if is_narrow else None
