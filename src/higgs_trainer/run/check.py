"""Run real batches through train, evaluate and predict, and test what reached the model (`higgs-trainer check`)."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from higgs_trainer.dataset.prepared import verify_prepared
from higgs_trainer.model.parameters import count_trainable, describe_trainable
from higgs_trainer.peak_memory import read_peak_bytes
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.arguments import build_arguments, check_schedule, join_run
from higgs_trainer.run.assembly import build_run
from higgs_trainer.run.data_overlap import find_data_overlap, judge_overlap
from higgs_trainer.run.output_folder import check_output_place
from higgs_trainer.run.trainable import resolve_dtype
from higgs_trainer.training.check_result import CheckResult
from higgs_trainer.training.example_checks import inspect_examples
from higgs_trainer.training.model_checks import inspect_leaks, inspect_model
from label_guard import LabelLeakError

# Settings of one training step that changes no weight and writes nothing.
DRY_RUN = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.0,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "disable_tqdm": True,
}
# Fields of TrainingArguments that the dry run leaves out: eval_on_start would evaluate before the tested step, and
# the arguments of the recipe's schedule do not fit the constant one.
DROPPED_ARGUMENTS = ("eval_on_start", "lr_scheduler_kwargs")


TRAINING_NEEDS = "Training with packs as full needs about as much."


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        guard: what the guard saw, in one line or, after a leak, as a table of layers, calls and keys.
        results: one result for each test of the data, the model and the loss.
        trainable: which parameters would be trained, in one line.
        loss: the loss of the first batch. None if a leak ended the run earlier.
        is_main: whether this is the main process. Only that one should print the report.
        peak: the largest memory that the check needed, in one line. None: the system does not say it.
    """

    guard: str
    results: tuple[CheckResult, ...]
    trainable: str
    loss: float | None
    is_main: bool = True
    peak: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(result.passed for result in self.results)


def check(recipe: Recipe) -> CheckReport:
    """Run real batches through train, evaluate and predict, and test what reached the model.

    The learning rate is 0, so the weights do not change, and nothing is written.

    Raises:
        RecipeError: something in the recipe does not fit the model or the data.

    Example:
        ```python
        from higgs_trainer import check, read_recipe

        report = check(read_recipe("recipe.yaml"))
        for result in report.results:
            print("passed" if result.passed else "failed", result.name)
        ```
    """
    join_run(recipe.training)
    recipe = resolve_dtype(recipe)
    check_output_place(recipe)
    # The dry run has another schedule and reports to nothing.
    check_schedule(build_arguments(build_training_arguments(recipe)))
    for data in (*recipe.data.train, *recipe.data.eval):
        if data.path.is_dir():
            verify_prepared(data.path)
    # Trainer always creates its output folder.
    with tempfile.TemporaryDirectory() as folder:
        given = recipe.training.extra_arguments
        extra = {name: value for name, value in given.items() if name not in DROPPED_ARGUMENTS}
        changes = {**DRY_RUN, "output_dir": Path(folder), "extra_arguments": extra}
        training = recipe.training.model_copy(update=changes)
        run = build_run(recipe.model_copy(update={"training": training}))
        trainer, examples = run.trainer, run.train_set.examples
        some = [examples[i] for i in range(min(len(examples), trainer.args.per_device_eval_batch_size))]
        loss = None
        try:
            loss = float(trainer.train().training_loss)
            trainer.evaluate(some)
            trainer.predict(some)
        except LabelLeakError as error:
            results = [inspect_leaks(trainer.guard, error)]
        else:
            every_example = (examples[i] for i in range(len(examples)))
            results = [
                inspect_leaks(trainer.guard),
                *inspect_examples(every_example, run.checkpoint.stream_ids),
                *inspect_model(trainer, some),
            ]
    results += judge_overlap(find_data_overlap(recipe.data, run.train_set, run.held_out))
    return CheckReport(
        guard=trainer.guard.ledger.summary(),
        results=tuple(results),
        trainable=describe_trainable(count_trainable(run.checkpoint.model)),
        loss=loss,
        is_main=trainer.is_world_process_zero(),
        peak=describe_peak(trainer.args.device),
    )


def describe_peak(device: torch.device) -> str | None:
    """Describe the largest memory that this process needed on a device, and what it means for training."""
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device) / 1e9
        return f"peak memory: {allocated:.1f} GB of tensors on the GPU. {TRAINING_NEEDS} The CUDA context is not in it."
    if (resident := read_peak_bytes()) is None:
        return None
    return f"peak memory: {resident / 1e9:.1f} GB of this process, Python and mapped weights included. {TRAINING_NEEDS}"
