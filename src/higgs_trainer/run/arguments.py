"""Build transformers' ``TrainingArguments`` from the ``training`` section of a recipe."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from higgs_trainer.errors import RecipeError

# transformers never lists these integrations as available, even if they are installed.
NOT_LISTED = {"flyte"}


def build_arguments(values: Mapping[str, Any]) -> TrainingArguments:
    """Build the arguments of the Trainer.

    Raises:
        RecipeError: transformers refuses a value, or an integration of ``report_to`` is not installed.
    """
    try:
        arguments = TrainingArguments(**values)
        # Raises for the name of an integration that does not exist.
        get_reporting_integration_callbacks(arguments.report_to)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training: {error}") from error
    if missing := set(arguments.report_to) - {*get_available_reporting_integrations(), *NOT_LISTED}:
        names = ", ".join(sorted(missing))
        raise RecipeError(
            f"training.report_to: {names} is not installed. Install it with pip, or remove it from the recipe. "
            "(TensorBoard: pip install 'higgs-trainer[tensorboard]'.)"
        )
    return arguments
