"""The composition root: a recipe becomes objects (`assembly.py`), the objects become a run. Read this first.

recipe -> checkpoint (model, tokenizer), codec -> examples -> HiggsAudioTrainer -> train() -> the output folder
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback

from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.context import Context, PromptClip, read_context
from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.dataset.summary import summarize
from higgs_trainer.evaluation.held_out_scores import HeldOutScores
from higgs_trainer.evaluation.judging import load_judges
from higgs_trainer.files import (
    TORCH_WRITE_ERRORS,
    explain_failed_write,
    flush_to_disk,
    move_into_place,
    write_json,
)
from higgs_trainer.model.loading import copy_companions
from higgs_trainer.model.parameters import count_trainable, format_trainable
from higgs_trainer.recipe.reading import write_recipe
from higgs_trainer.recipe.schema import Recipe, TrainingRecipe
from higgs_trainer.report.run_page import write_report
from higgs_trainer.run.assembly import BuildOptimizer, Run, build_run
from higgs_trainer.run_folder import (
    DATA_SUMMARY_FILE,
    ENVIRONMENT_FILE,
    GUARD_REPORT_FILE,
    LOG_FILE,
    METRICS_FILE,
    PARAMETERS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    SAMPLES_FOLDER,
    TRAINER_STATE_FILE,
    UNFINISHED_FOLDER,
    DataSummary,
    TrainableParameters,
)
from higgs_trainer.sharing.model_card import write_model_card
from higgs_trainer.speech.clip_folder import ClipFolder
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.real_recordings import (
    REFERENCE,
    ComparisonRecording,
    decode_row,
    find_rows,
    write_recordings,
)
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.training.callbacks import GenerateSamples, MetricsFile, ReadableProgress
from higgs_trainer.training.checkpoints import find_start
from higgs_trainer.training.checks import CheckResult, inspect_examples, inspect_leaks, inspect_model
from higgs_trainer.training.environment import describe_environment
from higgs_trainer.training.stopping import StopOnRequest
from higgs_trainer.training.trainer import HiggsAudioTrainer
from label_guard import LabelLeakError


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run reports. ``metrics`` are Trainer's, of the last log and of the run. Of several processes one
    ``is_main``, and speaks."""

    output_dir: Path
    metrics: dict[str, float]
    cascade: str
    is_main: bool = True


def train(recipe: Recipe, *, build_optimizer: BuildOptimizer | None = None) -> TrainingSummary:
    """Train, and write the output folder: adapter or model, tokenizer, ``recipe.yaml``, ``guard_report.json``,
    ``metrics.jsonl``, ``metrics.json``, the samples that the recipe asks for, and ``report.html``.

    Args:
        build_optimizer: builds the optimizer from the model and the arguments, in place of ``training.optim``.
    """
    output_dir = recipe.training.output_dir
    find_start(output_dir, recipe.training.resume_from_checkpoint)  # before a large model is loaded
    run = build_run(recipe, build_optimizer=build_optimizer)
    trainer = run.trainer
    if trainer.is_world_process_zero():
        with explain_failed_write(output_dir, "make room, or choose another folder"):
            _write_plan(run)
    command = "higgs-trainer" if trainer.args.world_size == 1 else "accelerate launch ... -m higgs_trainer"
    remedy = f"Resume it with: {command} train {output_dir / RECIPE_FILE} --resume_from_checkpoint true"
    stopping = StopOnRequest(trainer.accelerator, remedy)
    for callback in (*_build_watchers(run), stopping):
        trainer.add_callback(callback)

    with stopping.listen():
        result = trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)

    metrics = {**_last_logged(trainer), **result.metrics}
    _write_result(run, metrics)
    is_main = trainer.is_world_process_zero()
    if is_main:  # after a push, and so not in it: the page holds recordings of a person
        write_report([output_dir], output_dir / REPORT_FILE)
    return TrainingSummary(output_dir, metrics, trainer.guard.ledger.cascade(), is_main)


def _build_watchers(run: Run) -> Iterator[TrainerCallback]:
    recipe, output_dir = run.recipe, run.recipe.training.output_dir
    yield MetricsFile(output_dir / LOG_FILE)
    if not recipe.training.disable_tqdm:
        yield ReadableProgress()
    if recipe.early_stopping is not None:
        yield EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold)
    if recipe.samples.texts or recipe.samples.held_out:
        generating = GenerateSamples(
            lambda folder: _generate_samples(run, folder), output_dir / SAMPLES_FOLDER
        )
        if recipe.samples.judged:
            _judge_samples(run, generating)
        yield generating


def _write_plan(run: Run) -> None:
    """Before the first step: what will run, and what is trained."""
    output_dir = run.recipe.training.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / REPORT_FILE).unlink(missing_ok=True)  # of an earlier run
    write_recipe(run.recipe, output_dir / RECIPE_FILE)
    trainable = count_trainable(run.checkpoint.model)
    print(format_trainable(trainable), flush=True)
    counts: TrainableParameters = {
        kind: {"trained": trained, "all": total} for kind, (trained, total) in trainable.items()
    }
    write_json(output_dir / PARAMETERS_FILE, counts)
    write_json(output_dir / ENVIRONMENT_FILE, describe_environment(run.trainer.accelerator))
    if run.recipe.samples.texts or run.recipe.samples.held_out:
        write_recordings(output_dir, _list_recordings(run))


def _write_result(run: Run, metrics: dict[str, float]) -> None:
    """After the last step: the folder that is used from now on. It is written aside; ``metrics.json`` comes last."""
    trainer, output_dir = run.trainer, run.recipe.training.output_dir
    aside = output_dir / UNFINISHED_FOLDER / "result"
    advice = "make room and go on with --resume_from_checkpoint true"
    with explain_failed_write(output_dir, advice, errors=TORCH_WRITE_ERRORS):
        trainer.save_model(str(aside), _internal_call=True)  # every rank: with FSDP each holds a part
        if trainer.is_world_process_zero():
            copy_companions(run.recipe.model.name_or_path, aside)
            trainer.state.save_to_json(str(aside / TRAINER_STATE_FILE))
            write_json(aside / GUARD_REPORT_FILE, trainer.guard.ledger.report())
            write_json(aside / DATA_SUMMARY_FILE, _summarize_data(run))
            write_json(aside / METRICS_FILE, metrics)
            write_model_card(aside, record=output_dir, name=run.recipe.training.hub_model_id)
            flush_to_disk(aside)
            for path in sorted(aside.iterdir(), key=lambda path: path.name == METRICS_FILE):
                move_into_place(path, output_dir / path.name)
            shutil.rmtree(output_dir / UNFINISHED_FOLDER)
    if run.recipe.training.push_to_hub:
        trainer.push_to_hub()  # every rank, for it saves once more


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` saw: the guard's cascade, the checks of the data and the loss, and what would be trained.

    ``loss``: of the first batch; None where a leak ended the run before there was one.
    """

    cascade: str
    results: tuple[CheckResult, ...]
    trainable: str
    loss: float | None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.passed for result in self.results)


def check(recipe: Recipe) -> CheckReport:
    """Drive real batches through train, evaluate and predict, with a learning rate of 0, and look at what passed.

    The weights stay as they are and nothing is written.
    """
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its output folder whatever it is told
        run = build_run(
            recipe.model_copy(update={"training": _single_still_step(recipe.training, Path(folder))})
        )
        trainer = run.trainer
        examples, batch_size = run.train_examples, trainer.args.per_device_eval_batch_size
        some = [examples[i] for i in range(min(len(examples), batch_size))]
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
    return CheckReport(
        cascade=trainer.guard.ledger.cascade(),
        results=tuple(results),
        trainable=format_trainable(count_trainable(run.checkpoint.model)),
        loss=loss,
    )


def _single_still_step(training: TrainingRecipe, folder: Path) -> TrainingRecipe:
    return training.model_copy(
        update={
            "output_dir": folder,
            "max_steps": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.0,
            "save_strategy": "no",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "push_to_hub": False,
            "report_to": "none",
            "disable_tqdm": True,
            "extra_arguments": {k: v for k, v in training.extra_arguments.items() if k != "eval_on_start"},
        }
    )


def _generate_samples(run: Run, folder: Path) -> None:
    """The recipe's sentences, then the held-out ones, each as it stands in the data."""
    samples = run.recipe.samples
    references: tuple[PromptClip, ...] = ()
    if samples.ref_audio is not None:
        references = (PromptClip(samples.ref_text, run.codec.encode(read_audio(samples.ref_audio))),)
    sampling = Sampling(max_seconds=samples.max_seconds, seed=run.recipe.training.seed)
    requests = [Request(text, Context(references=references)) for text in samples.texts]
    for i in range(samples.held_out):
        assert run.held_out is not None  # `_check_what_is_watched`
        row = run.held_out.rows[i]
        requests.append(Request(row["text"], read_context(row)))
    with ClipFolder(folder, run.codec) as clips:
        for number, clip in generate_codes(run.checkpoint, requests, sampling=sampling):
            clips.write(number, clip)


def _judge_samples(run: Run, generating: GenerateSamples) -> None:
    """Have the held-out sentences of each evaluation judged, by the main process."""
    held_out, count = run.recipe.data.eval, run.recipe.samples.held_out
    if not held_out or not run.trainer.is_world_process_zero():
        run.trainer.measure_speech = lambda step: {}
        return
    scores = HeldOutScores(
        held_out[0].path, run.codec, count, load_judges("whisper-tiny.en", with_quality=False)
    )
    run.trainer.measure_speech = lambda step: scores.measure(generating.generate(step))


def _list_recordings(run: Run) -> Iterator[ComparisonRecording]:
    """What the samples are held against: their references, and the data's own recordings of the same sentences."""
    samples = run.recipe.samples
    if samples.ref_audio is not None:
        reference = read_audio(samples.ref_audio)
        yield from (
            ComparisonRecording(text, REFERENCE, samples.ref_text, reference) for text in samples.texts
        )
    sets = [examples.rows for examples in (run.held_out, run.train_examples) if examples is not None]
    for row in find_rows(samples.texts, sets):
        yield from decode_row(row, run.codec, with_references=False)
    for i in range(samples.held_out):
        yield from decode_row(sets[0][i], run.codec, with_references=True)


def _summarize_data(run: Run) -> DataSummary:
    summary: DataSummary = {}
    for name, examples in (("train", run.train_examples), ("eval", run.held_out)):
        if examples is not None:
            assert isinstance(examples.rows, PreparedRows)  # `_load_examples`
            summary[name] = summarize(examples.rows)
    return summary


def _last_logged(trainer: HiggsAudioTrainer) -> dict[str, float]:
    """The newest value of each logged metric."""
    newest: dict[str, float] = {}
    for entry in trainer.state.log_history:
        newest.update(entry)
    return newest
