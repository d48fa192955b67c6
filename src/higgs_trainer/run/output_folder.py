"""Decide whether a run may write into its output folder, and keep the earlier run there until the new one is under way.

A run writes into a folder that is missing, has nothing that it would overwrite, or holds an unfinished run. A finished
run is replaced only if the user asks for it: it is renamed to ``_earlier-NAME``, and when the new run has its first
checkpoint or its result, to ``NAME.replaced-N``. A new run that fails before that gives the earlier one its name back;
after a kill, the next run or reader does so (``unfinished_runs.py``).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgs_trainer.dataset.prepared import CARD_NAME
from higgs_trainer.errors import RecipeError, list_first
from higgs_trainer.files import explain_failed_write, restore_replaced
from higgs_trainer.model.model_folder import list_inputs
from higgs_trainer.outputs import Input, check_apart, check_name, find_free_name
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run_folder import METRICS_FILE, TRAINING_WRITES, is_run
from higgs_trainer.training.checkpoints import find_start
from higgs_trainer.unfinished_runs import is_in_order, name_earlier, settle_earlier_run, settle_run

FOREIGN = (*TRAINING_WRITES, CARD_NAME, "dataset_info.json", "*.arrow")
"""Patterns of files and folders that a run would overwrite, or that show that a folder is a dataset."""


def check_output_folder(recipe: Recipe, *, overwrite: bool) -> Path | None:
    """Check that training may write into its output folder, and return the checkpoint that the run starts from.

    Nothing is loaded, and only what a killed run left is put in order.

    Args:
        overwrite: whether an earlier run in the folder is to be replaced.

    Raises:
        UserError: the folder is, contains or lies in an input.
        RecipeError: the folder holds a finished run, later checkpoints or foreign files, or there is no such
            checkpoint.
    """
    training = recipe.training
    output_dir, resume = training.output_dir, training.resume_from_checkpoint
    check_name("training.output_dir", output_dir, RecipeError)
    restore_replaced(output_dir)
    if not is_in_order(output_dir):
        # Another command that trains into the folder now is an error here.
        settle_run(output_dir)
    check_output_place(recipe)
    if overwrite:
        if resume:
            raise RecipeError(
                "--overwrite starts a new run and --resume_from_checkpoint continues an old one. Give one of the two."
            )
        return None
    start = find_start(output_dir, resume)
    is_own = start is not None and start.resolve().parent == output_dir.resolve()
    if not is_own and (output_dir / METRICS_FILE).is_file():
        raise RecipeError(
            f"training.output_dir: {output_dir} holds a finished run. Choose another folder, or pass --overwrite, "
            f"which keeps the old run as {find_free_name(output_dir, 'replaced').name}."
        )
    return start


def check_output_place(recipe: Recipe) -> None:
    """Check that the output folder of a recipe is a place for a run, without changing anything there.

    Raises:
        UserError: the folder is, contains or lies in an input.
        RecipeError: its name is unusable, it cannot be written to, or it holds foreign files.
    """
    output_dir = recipe.training.output_dir
    check_name("training.output_dir", output_dir, RecipeError)
    check_apart("training.output_dir", output_dir, _list_inputs(recipe))
    _check_foreign(output_dir)
    _check_writable(output_dir)


def _check_writable(output_dir: Path) -> None:
    """Check that the folder, or the nearest one above it that exists, is a folder that this user may write to."""
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not existing.is_dir():
        raise RecipeError(f"training.output_dir: {existing} is not a folder. Choose another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(
            f"training.output_dir: {existing} may not be written to. Choose another place, or change its permissions."
        )


def _list_inputs(recipe: Recipe) -> list[Input]:
    """List what the run reads. A checkpoint of the run itself is no input: it lies in the output folder."""
    training = recipe.training
    inputs = list_inputs(recipe.model.name_or_path, recipe.model.codec)
    inputs += [Input("the training data", one.path) for one in recipe.data.train]
    inputs += [Input("the evaluation data", one.path) for one in recipe.data.eval]
    if recipe.samples.ref_audio is not None:
        inputs.append(Input("the recording samples.ref_audio", recipe.samples.ref_audio))
    start = training.resume_from_checkpoint
    if isinstance(start, Path) and start.resolve().parent != training.output_dir.resolve():
        inputs.append(Input("the checkpoint to resume", start))
    return inputs


def _check_foreign(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"training.output_dir: {output_dir} is not a folder. Choose another name.")
    if not output_dir.is_dir() or is_run(output_dir):
        return
    foreign = sorted({path.name for pattern in FOREIGN for path in output_dir.glob(pattern)})
    if foreign:
        raise RecipeError(
            f"training.output_dir: {output_dir} is not the folder of a run but contains {list_first(foreign)}, which "
            "training would overwrite or add to. Choose another folder."
        )


@contextmanager
def replace_earlier_run(output_dir: Path) -> Iterator[None]:
    """Rename the run in a folder while the block trains a new one there. The block must make the folder.

    If the block ends before the new run has a checkpoint or a result, the earlier run gets its name back.
    """
    if is_run(output_dir):
        with explain_failed_write(output_dir):
            os.replace(output_dir, name_earlier(output_dir))
    try:
        yield
    finally:
        settle_earlier_run(output_dir)
