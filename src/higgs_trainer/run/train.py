"""Train a model from a recipe. Start reading this project here, at `train`.

recipe -> model, codec, datasets, trainer (``assembly.py``) -> ``trainer.train()`` -> output folder (``output.py``)

One training step is drawn in ``training/trainer.py``.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback

from higgs_trainer.distributed import find_processes
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.languages import DEFAULT_LANGUAGE
from higgs_trainer.files import explain_failed_write
from higgs_trainer.outputs import hold_folder
from higgs_trainer.progress import close_bars
from higgs_trainer.recipe.reading import write_recipe
from higgs_trainer.recipe.schema import EarlyStoppingRecipe, Recipe
from higgs_trainer.report.run_page import write_report
from higgs_trainer.run.arguments import join_run
from higgs_trainer.run.assembly import BuildOptimizer, Run, build_run
from higgs_trainer.run.data_overlap import count_overlap, describe_warnings, find_data_overlap
from higgs_trainer.run.output import write_plan, write_result
from higgs_trainer.run.output_folder import check_output_folder, replace_earlier_run
from higgs_trainer.run.resuming import (
    check_allowed,
    compare_recipe,
    compare_run,
    describe_changes,
    describe_run,
    write_history,
)
from higgs_trainer.run.trainable import choose_result_dtype, resolve_dtype
from higgs_trainer.run_folder import LOG_FILE, RECIPE_FILE, REPORT_FILE, Change, read_step
from higgs_trainer.speech.real_recordings import write_recordings
from higgs_trainer.speech.speech_model import SpeechModel
from higgs_trainer.terminal import echo, format_command
from higgs_trainer.training.callbacks import MetricsFile, ShowProgress
from higgs_trainer.training.checkpoints import share_start
from higgs_trainer.training.stopping import StopOnRequest
from higgs_trainer.training.trainer import HiggsAudioTrainer


@dataclass(frozen=True)
class TrainingSummary:
    """The result of a finished run.

    Attributes:
        output_dir: the run folder.
        metrics: the last value of every logged metric, and those of the whole run (``train_runtime``, ...).
        model: the trained model, which can speak. It is the one in memory: the best checkpoint, if that was loaded.
        guard: what the guard saw, in one line or, after a leak, as a table of layers, calls and keys.
        sentence: a sentence to try the voice with, in its language: one that the samples speak, or else of the data.
        language: the language of ``sentence``.
        num_steps: how many optimizer steps this call trained. 0: the checkpoint was that of the last step.
        is_main: whether this is the main process. Only that one should print the summary.
    """

    output_dir: Path
    metrics: dict[str, float]
    model: SpeechModel
    guard: str
    sentence: str
    language: str
    num_steps: int
    is_main: bool = True


def train(
    recipe: Recipe,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    build_optimizer: BuildOptimizer | None = None,
    overwrite: bool = False,
    allow_changed: Sequence[str] = (),
) -> TrainingSummary:
    """Train, and write the run folder: adapter or model, recipe, logs, samples, model card and page.

    Args:
        recipe: the recipe, read by `read_recipe` or built in Python.
        callbacks: additional callbacks for Trainer.
        build_optimizer: builds the optimizer from the model and the arguments, in place of ``training.optim``.
        overwrite: replace an earlier run in the output folder. It is kept as ``NAME.replaced-N``.
        allow_changed: the fields that a resumed run may have changed since its checkpoint, such as
            "training.learning_rate". Other differences are an error, unless they only extend the run.

    Raises:
        RecipeError: something in the recipe does not fit the model or the data, the output folder holds a finished run
            or foreign files, or a resumed run differs from that of the checkpoint.
        UserError: the output folder is, contains or lies in an input.
        LossError: the loss or a gradient is not finite, or nothing is supervised.
        SaveError: a file could not be written.
        Terminated: SIGTERM or, as `Interrupted`, Ctrl-C arrived; a checkpoint has been saved.

    Example:
        ```python
        from higgs_trainer import read_recipe, train

        summary = train(read_recipe("recipe.yaml"))
        print(summary.output_dir, summary.metrics["train_loss"])
        summary.model.generate("Eight three one five.").write("trained.wav")
        ```
    """
    processes = join_run(recipe.training)
    # Raises before a large model is loaded. The first process looks at the folder and holds it, for all.
    start = share_start(lambda: check_output_folder(recipe, overwrite=overwrite))
    recipe = resolve_dtype(recipe)
    allowed = check_allowed(allow_changed, recipe)
    if start is not None:
        compare_recipe(start, recipe, allowed)
    with hold_folder(recipe.training.output_dir) if processes.is_first else nullcontext():
        return _train_held(
            recipe, start, allowed, callbacks, build_optimizer=build_optimizer, overwrite=overwrite
        )


def _train_held(
    recipe: Recipe,
    start: Path | None,
    allowed: Collection[str],
    callbacks: Sequence[TrainerCallback],
    *,
    build_optimizer: BuildOptimizer | None,
    overwrite: bool,
) -> TrainingSummary:
    """Build the run, compare it with that of the checkpoint, and train."""
    run = build_run(recipe, build_optimizer=build_optimizer)
    # The files of the model are read for it.
    record = find_processes().share(lambda: describe_run(recipe, run))
    changes = [] if start is None else compare_run(start, record, allowed)
    run.trainer.resume_record = record
    run.trainer.verified_start = start
    run.trainer.changed_arguments = frozenset(change["field"].removeprefix("training.") for change in changes)
    is_main = run.trainer.is_world_process_zero()
    with replace_earlier_run(recipe.training.output_dir) if overwrite and is_main else nullcontext():
        return _train(recipe, run, start, changes, callbacks)


def _train(
    recipe: Recipe,
    run: Run,
    start: Path | None,
    changes: list[Change],
    callbacks: Sequence[TrainerCallback],
) -> TrainingSummary:
    output_dir = recipe.training.output_dir
    trainer = run.trainer
    # Until the main process has moved an earlier run away.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        overlap = find_data_overlap(recipe.data, run.train_set, run.held_out)
        with explain_failed_write(output_dir, "make room, or choose another folder"):
            output_dir.mkdir(parents=True, exist_ok=True)
            # First, because its files mark the folder as that of a run: the corrected command may use it.
            trainable = write_plan(output_dir, trainer, count_overlap(overlap))
            write_recipe(recipe, output_dir / RECIPE_FILE)
            write_history(output_dir, start, changes)
        for line in [] if start is None else describe_changes(start, changes):
            echo(line)
        for line in describe_warnings(overlap):
            echo(line, to_stderr=True)
        echo(trainable)
        if run.samples:
            with explain_failed_write(output_dir, "make room, or choose another folder"):
                write_recordings(output_dir, run.samples.list_recordings(run.train_set.rows))

    stopping = StopOnRequest(trainer.accelerator, _describe_resuming(trainer))
    own = _build_callbacks(output_dir, recipe.early_stopping, show_progress=not trainer.args.disable_tqdm)
    for callback in own:
        trainer.add_callback(callback)
    if run.samples:
        run.samples.add_to(trainer)
    for callback in (*callbacks, stopping):
        trainer.add_callback(callback)

    with stopping.listen(), ExitStack() as stack:
        stack.callback(close_bars)
        result = trainer.train(resume_from_checkpoint=start)

    metrics = {**_find_last_metrics(trainer), **result.metrics}
    datasets = {"train": run.train_set.rows} | ({"eval": run.held_out.rows} if run.held_out else {})
    is_main = trainer.is_world_process_zero()
    dtype = choose_result_dtype(recipe)
    if dtype is not None and is_main:
        echo(f"The weights are written in {dtype}, as those of the base. Checkpoints have them in float32.")
    base = recipe.model.name_or_path
    write_result(output_dir, trainer, metrics, base=base, datasets=datasets, dtype=dtype)
    if is_main:
        # After a push to the hub, so that the page is not in it: it contains recordings of a person.
        try:
            write_report([output_dir], output_dir / REPORT_FILE)
        except UserError as error:
            # The run is complete, whatever its page lacks.
            echo(f"warning: the report page was not written: {error}", to_stderr=True)
    language, sentence = _choose_sentence(recipe, run)
    return TrainingSummary(
        output_dir,
        metrics,
        SpeechModel(run.checkpoint, run.codec),
        guard=trainer.guard.ledger.summary(),
        sentence=sentence,
        language=language,
        num_steps=result.global_step - (0 if start is None else max(read_step(start), 0)),
        is_main=is_main,
    )


def _choose_sentence(recipe: Recipe, run: Run) -> tuple[str, str]:
    """Choose a sentence to try the voice with. Returns its language and the sentence."""
    row = (run.held_out or run.train_set).rows[0]
    if recipe.samples.texts:
        return recipe.samples.language or DEFAULT_LANGUAGE, recipe.samples.texts[0]
    return row["language"] or recipe.samples.language or DEFAULT_LANGUAGE, row["text"]


def _build_callbacks(
    output_dir: Path, early_stopping: EarlyStoppingRecipe | None, *, show_progress: bool
) -> Iterator[TrainerCallback]:
    yield MetricsFile(output_dir / LOG_FILE)
    if show_progress:
        yield ShowProgress()
    if early_stopping is not None:
        yield EarlyStoppingCallback(early_stopping.patience, early_stopping.threshold)


def _describe_resuming(trainer: HiggsAudioTrainer) -> str:
    recipe = Path(trainer.args.output_dir) / RECIPE_FILE
    words: list[str | Path] = ["train", recipe, "--resume_from_checkpoint", "true"]
    if trainer.args.world_size == 1:
        return f"Resume with:\n{format_command('higgs-trainer', *words)}"
    command = format_command("accelerate", "launch", "...", "-m", "higgs_trainer", *words)
    return f"Resume with the same launcher:\n{command}"


def _find_last_metrics(trainer: HiggsAudioTrainer) -> dict[str, float]:
    """Return the newest value of each logged metric."""
    newest: dict[str, float] = {}
    for entry in trainer.state.log_history:
        newest.update(entry)
    return newest
