"""Build transformers' ``TrainingArguments`` from the ``training`` section of a recipe, and check what they name."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import get_scheduler
from transformers.training_args import OptimizerNames, ParallelMode

from higgs_trainer.distributed import Processes, join_processes
from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.printable import join_lines
from higgs_trainer.recipe.training_section import TrainingRecipe
from higgs_trainer.run.launch import check_launcher

logger = logging.getLogger(__name__)

# transformers never lists these integrations as available, even if they are installed.
NOT_LISTED = {"flyte"}

DEFAULT_TIMEOUT_SECONDS = 1800
"""The default of ``TrainingArguments.ddp_timeout``."""

PACKAGE_OF_INTEGRATION = {
    "azure_ml": "azureml-core mlflow",
    "comet_ml": "comet-ml",
    "neptune": "neptune",
    "tensorboard": "'higgs-trainer[tensorboard]'",
}
"""What pip installs for an integration of ``report_to``. Those that are not listed are named like their packages."""


def build_arguments(values: Mapping[str, Any]) -> TrainingArguments:
    """Build the arguments of the Trainer.

    Raises:
        RecipeError: transformers refuses a value, a package is not installed, or the machine lacks what is asked for.
    """
    check_optimizer_name(values.get("optim"))
    with _explain_refusal():
        arguments = TrainingArguments(**values)
    use_one_gpu(arguments)
    check_reports(arguments)
    check_precision(arguments)
    check_compiler(arguments)
    check_offload(arguments)
    return arguments


def join_run(training: TrainingRecipe) -> Processes:
    """Join the processes of a run, which wait for each other as long as ``ddp_timeout`` says.

    Raises:
        RecipeError: they were launched for DeepSpeed.
    """
    check_launcher()
    extra = training.extra_arguments
    seconds = extra.get("ddp_timeout", DEFAULT_TIMEOUT_SECONDS)
    return join_processes(timedelta(seconds=seconds), use_cpu=bool(extra.get("use_cpu", False)))


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Use one of several visible GPUs, unless a launcher started a process for each.

    Trainer would wrap the model in `nn.DataParallel` and multiply the batch size: several packs would be glued into one
    row, which is as long as they are together, on the first GPU.
    """
    if arguments.parallel_mode is ParallelMode.NOT_DISTRIBUTED and arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible, and one of them is used. To use all: accelerate launch -m higgs_trainer train ...",
            arguments.n_gpu,
        )
        # transformers has no argument for this.
        arguments._n_gpu = 1


@contextmanager
def _explain_refusal() -> Iterator[None]:
    """Raise a RecipeError where transformers refuses a value of `TrainingArguments`."""
    try:
        yield
    except ImportError as error:
        missing = error.name
        if missing is None:
            raise RecipeError(f"training: {join_lines(error)}") from error
        raise RecipeError(
            f"training: {missing} is not installed. Run pip install {missing}, or remove the field that needs it from "
            "the recipe."
        ) from error
    except (ValueError, TypeError, OSError) as error:
        if "support bf16" in str(error):
            raise RecipeError(
                "training.bf16: this machine has no GPU that computes with bfloat16. Leave it out, or set "
                "training.use_cpu to true, with which the CPU does."
            ) from error
        raise RecipeError(f"training: {join_lines(error)}") from error


def check_optimizer_name(name: str | None) -> None:
    """Raise RecipeError if transformers does not know the optimizer."""
    known = [one.value for one in OptimizerNames]
    if name is not None and name not in known:
        raise RecipeError(f'training.optim: "{name}" is unknown. {suggest_name(name, known)}')


def check_reports(arguments: TrainingArguments) -> None:
    """Raise RecipeError if an integration of ``report_to`` is unknown or not installed."""
    wanted, known = arguments.report_to, list(INTEGRATION_TO_CALLBACK)
    for name in wanted:
        if name not in known:
            raise RecipeError(f'training.report_to: "{name}" is unknown. {suggest_name(name, known)}')
    missing = sorted(set(wanted) - {*get_available_reporting_integrations(), *NOT_LISTED})
    if missing:
        packages = " ".join(PACKAGE_OF_INTEGRATION.get(name, name) for name in missing)
        raise RecipeError(
            f"training.report_to: {', '.join(missing)} is not installed. Run pip install {packages}, or remove it from "
            "the recipe."
        )


def check_precision(arguments: TrainingArguments) -> None:
    """Raise RecipeError for float16 on a CPU, which accelerate refuses when the model is loaded."""
    if arguments.fp16 and arguments.device.type == "cpu":
        raise RecipeError("training.fp16: mixed precision with float16 needs a GPU. Leave it out.")


def check_offload(arguments: TrainingArguments) -> None:
    """Raise RecipeError if activations should be offloaded, but no GPU is used. torch fails at the first step."""
    # transformers has this field since version 5.23.
    options = getattr(arguments, "activation_checkpointing_kwargs", None) or {}
    if options.get("offload") and arguments.device.type == "cpu":
        raise RecipeError(
            "training.activation_checkpointing_kwargs: offload moves activations from a GPU to the host, and this run "
            "uses no GPU. Leave offload out."
        )


def check_compiler(arguments: TrainingArguments) -> None:
    """Raise RecipeError if ``torch_compile_backend`` is unknown. torch fails at the first step."""
    backend = arguments.torch_compile_backend
    if not arguments.torch_compile or backend is None:
        return
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise RecipeError(
            f'training.torch_compile_backend: "{backend}" is unknown. {suggest_name(backend, known)}'
        )


def check_optimizer(arguments: TrainingArguments, model: nn.Module | None) -> None:
    """Check that the package of the optimizer is installed, and that its settings belong together.

    Args:
        model: the model that is trained, on the meta device, for optimizers that look at its modules. None: unknown.

    Raises:
        RecipeError: it is not, or they do not.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except ImportError as error:
        raise RecipeError(f"training.optim: {join_lines(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if model is not None:
            raise RecipeError(f"training.optim: {join_lines(error)}") from error


def check_schedule(arguments: TrainingArguments) -> None:
    """Raise RecipeError if the schedule of the learning rate refuses ``lr_scheduler_kwargs``."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RecipeError(
            f"training.lr_scheduler_type: {arguments.lr_scheduler_type.value} cannot be built ({join_lines(error)}). "
            "Correct training.lr_scheduler_kwargs."
        ) from error
