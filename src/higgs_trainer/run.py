"""The composition root: a recipe becomes objects, the objects become a run. Read this first.

recipe -> checkpoint (model, tokenizer), codec -> examples -> HiggsAudioTrainer -> train() -> the output folder
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from higgs_trainer.data.audio import read_audio
from higgs_trainer.data.code_noise import NoisyExamples
from higgs_trainer.data.codec import Codec
from higgs_trainer.data.collator import PackingCollator, PaddingCollator
from higgs_trainer.data.examples import ExampleDataset, read_context
from higgs_trainer.data.packing import BatchPlan, PackPlan, Plan, PlannedExamples, measure_tokens
from higgs_trainer.data.prepared import check_codec, read_prepared
from higgs_trainer.data.prompt import Context, SpokenClip
from higgs_trainer.errors import RecipeError, name_the_near_one
from higgs_trainer.guard import LabelLeakError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import Family, family_of
from higgs_trainer.model.loading import Checkpoint, copy_companions, load_checkpoint, load_codec_of
from higgs_trainer.model.parameters import count_trainable, format_trainable, freeze, freeze_text_head
from higgs_trainer.recipe import Recipe, TrainingRecipe, training_arguments, write_recipe
from higgs_trainer.speech.generate import Sampling, speak, write_spoken
from higgs_trainer.training.callbacks import MetricsFile, ReadableProgress, SpeakSamples
from higgs_trainer.training.checkpoints import (
    ASIDE,
    find_start,
    flush_to_disk,
    move_into_place,
    naming_what_fails,
)
from higgs_trainer.training.checks import CheckResult, check_examples, check_leaks, check_model
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.metrics import list_held_out_metrics
from higgs_trainer.training.stopping import EndWhenAsked
from higgs_trainer.training.trainer import HiggsAudioTrainer

RECIPE_NAME = "recipe.yaml"
GUARD_REPORT_NAME = "guard_report.json"
PARAMETERS_NAME = "trainable_parameters.json"
METRICS_FILE_NAME = "metrics.jsonl"
METRICS_NAME = "metrics.json"


@dataclass(frozen=True)
class Run:
    """Everything of one run, made and connected, not yet started."""

    recipe: Recipe
    checkpoint: Checkpoint
    codec: Codec
    train_examples: ExampleDataset
    held_out: ExampleDataset | None
    trainer: HiggsAudioTrainer


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run reports. ``metrics`` are Trainer's, of the last log and of the run. Of several processes one
    ``is_main``, and speaks."""

    output_dir: Path
    metrics: dict[str, float]
    cascade: str
    is_main: bool = True


def build_run(recipe: Recipe) -> Run:
    """Load what the recipe names and connect it. Nothing is trained and nothing written yet."""
    set_seed(recipe.training.seed)
    checkpoint = load_checkpoint(
        recipe.model.name_or_path,
        dtype=recipe.model.dtype,
        attn_implementation=recipe.model.attn_implementation,
    )
    codec = load_codec_of(checkpoint, recipe.model.codec)
    family = family_of(checkpoint.model)
    train_examples = _load_examples(recipe.data.train, checkpoint, codec)
    held_out = _load_examples(recipe.data.eval, checkpoint, codec) if recipe.data.eval else None
    if recipe.adapter is not None:
        adapted = add_lora(checkpoint.model, family, **asdict(recipe.adapter))
        checkpoint = replace(checkpoint, model=adapted)
    freeze(checkpoint.model, recipe.model.freeze)
    if not recipe.loss.text_weight:
        freeze_text_head(checkpoint.model)
    arguments = _build_arguments(recipe)
    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=arguments,
        train_dataset=_plan_training(train_examples, recipe, arguments, checkpoint),
        eval_dataset=_plan_evaluation(held_out, arguments) if held_out else None,
        processing_class=checkpoint.tokenizer,
        data_collator=_build_collator(recipe, family, checkpoint),
        family=family,
        weights=_build_weights(recipe, family, checkpoint.stream_ids.num_codebooks),
        guard_policy=recipe.guard.policy,
        use_muon=recipe.training.optim == "muon",
        tokens_per_pack=recipe.data.tokens_per_pack if recipe.data.packing else None,
    )
    for their_log in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(their_log)
    run = Run(recipe, checkpoint, codec, train_examples, held_out, trainer)
    _check_what_is_watched(run)
    return run


def train(recipe: Recipe) -> TrainingSummary:
    """Train, and write the output folder: adapter or model, tokenizer, ``recipe.yaml``, ``guard_report.json``,
    ``metrics.jsonl``, ``metrics.json``, and the samples that the recipe asks for."""
    output_dir = recipe.training.output_dir
    find_start(output_dir, recipe.training.resume_from_checkpoint)  # before a large model is loaded
    run = build_run(recipe)
    trainer = run.trainer
    if trainer.is_world_process_zero():
        _write_plan(run)
    how_to_go_on = f"Go on with: higgs-trainer train {output_dir / RECIPE_NAME} --resume_from_checkpoint true"
    ending = EndWhenAsked(trainer.accelerator, how_to_go_on)
    for callback in (*_build_watchers(run), ending):
        trainer.add_callback(callback)

    with ending.listening():
        result = trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)

    metrics = {**_last_logged(trainer), **result.metrics}
    _write_result(run, metrics)
    return TrainingSummary(
        output_dir, metrics, trainer.guard.ledger.cascade(), trainer.is_world_process_zero()
    )


def _check_what_is_watched(run: Run) -> None:
    """``RecipeError`` for what would otherwise be found out at the first evaluation: after an epoch, perhaps."""
    recipe, best = run.recipe, run.recipe.training.metric_for_best_model
    known = list_held_out_metrics(
        run.checkpoint.stream_ids.num_codebooks, with_text=bool(recipe.loss.text_weight)
    )
    if best is not None and f"eval_{best.removeprefix('eval_')}" not in known:
        raise RecipeError(
            f"training.metric_for_best_model: {best!r} is never logged; {name_the_near_one(best, known)}"
        )
    if recipe.samples.held_out > len(run.held_out or ()):
        raise RecipeError(
            f"samples.held_out is {recipe.samples.held_out}, but data.eval has {len(run.held_out or ())} utterances"
        )
    if run.trainer.is_fsdp_enabled and (recipe.samples.texts or recipe.samples.held_out):
        raise RecipeError(
            "samples are spoken by one process, which under FSDP holds only a part; leave them out"
        )


def _build_watchers(run: Run) -> Iterator[TrainerCallback]:
    recipe, output_dir = run.recipe, run.recipe.training.output_dir
    yield MetricsFile(output_dir / METRICS_FILE_NAME)
    if not recipe.training.disable_tqdm:
        yield ReadableProgress()
    if recipe.early_stopping is not None:
        yield EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold)
    if recipe.samples.texts or recipe.samples.held_out:
        yield SpeakSamples(lambda folder: _speak_samples(run, folder), output_dir / "samples")


def _write_plan(run: Run) -> None:
    """Before the first step: what will run, and what is trained."""
    output_dir = run.recipe.training.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    write_recipe(run.recipe, output_dir / RECIPE_NAME)
    trainable = count_trainable(run.checkpoint.model)
    print(format_trainable(trainable), flush=True)
    counts = {kind: {"trained": trained, "all": total} for kind, (trained, total) in trainable.items()}
    _write_json(output_dir / PARAMETERS_NAME, counts)


def _write_result(run: Run, metrics: dict[str, float]) -> None:
    """After the last step: the folder that is used from now on. It is written aside; ``metrics.json`` comes last."""
    trainer, output_dir = run.trainer, run.recipe.training.output_dir
    aside = output_dir / ASIDE / "result"
    with naming_what_fails(output_dir, "make room and go on with --resume_from_checkpoint true"):
        trainer.save_model(str(aside), _internal_call=True)  # every rank: with FSDP each holds a part
        if not trainer.is_world_process_zero():
            return
        copy_companions(run.recipe.model.name_or_path, aside)
        trainer.state.save_to_json(str(aside / "trainer_state.json"))
        _write_json(aside / GUARD_REPORT_NAME, trainer.guard.ledger.report())
        _write_json(aside / METRICS_NAME, metrics)
        flush_to_disk(aside)
        for path in sorted(aside.iterdir(), key=lambda path: path.name == METRICS_NAME):
            move_into_place(path, output_dir / path.name)
        shutil.rmtree(output_dir / ASIDE)
    if run.recipe.training.push_to_hub:
        trainer.push_to_hub()


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
        run = build_run(replace(recipe, training=_single_still_step(recipe.training, Path(folder))))
        trainer = run.trainer
        examples, batch_size = run.train_examples, trainer.args.per_device_eval_batch_size
        some = [examples[i] for i in range(min(len(examples), batch_size))]
        loss = None
        try:
            loss = float(trainer.train().training_loss)
            trainer.evaluate(some)
            trainer.predict(some)
        except LabelLeakError as error:
            results = [check_leaks(trainer.guard, error)]
        else:
            every_example = (examples[i] for i in range(len(examples)))
            results = [
                check_leaks(trainer.guard),
                *check_examples(every_example, run.checkpoint.stream_ids),
                *check_model(trainer, some),
            ]
    return CheckReport(
        cascade=trainer.guard.ledger.cascade(),
        results=tuple(results),
        trainable=format_trainable(count_trainable(run.checkpoint.model)),
        loss=loss,
    )


def _single_still_step(training: TrainingRecipe, folder: Path) -> TrainingRecipe:
    return replace(
        training,
        output_dir=folder,
        max_steps=1,
        gradient_accumulation_steps=1,
        learning_rate=0.0,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=True,
    )


def _load_examples(folder: str | Path, checkpoint: Checkpoint, codec: Codec) -> ExampleDataset:
    prepared = read_prepared(folder)
    check_codec(prepared.card, codec)
    return ExampleDataset(prepared.rows, checkpoint.tokenizer, checkpoint.stream_ids)


def _plan_training(
    examples: ExampleDataset, recipe: Recipe, arguments: TrainingArguments, checkpoint: Checkpoint
) -> PlannedExamples:
    """The training set as a step is given it: packs or single examples in the order of a plan, noise upon them."""
    data, training = recipe.data, recipe.training
    seed = training.seed if training.data_seed is None else training.data_seed
    shares = {
        "seed": seed,
        "num_ranks": arguments.world_size,
        "accumulation": training.gradient_accumulation_steps,
    }
    plan: Plan
    if data.packing:
        lengths = measure_tokens(examples, tokens_per_pack=data.tokens_per_pack)
        plan = PackPlan(lengths, tokens_per_pack=data.tokens_per_pack, **shares)
    else:
        plan = BatchPlan(len(examples), batch_size=arguments.per_device_train_batch_size, **shares)
    if not data.code_noise:
        return PlannedExamples(examples, plan)
    noisy = NoisyExamples(examples, code_noise=data.code_noise, num_codes=checkpoint.num_codes, seed=seed)
    return PlannedExamples(noisy, plan)


def _plan_evaluation(
    examples: ExampleDataset, arguments: TrainingArguments
) -> ExampleDataset | PlannedExamples:
    """On several processes, batches shared out here: accelerate would repeat examples to make them equally many."""
    if arguments.world_size == 1:
        return examples
    batch_size, ranks = arguments.per_device_eval_batch_size, arguments.world_size
    return PlannedExamples(examples, BatchPlan(len(examples), batch_size=batch_size, seed=0, num_ranks=ranks))


def _build_collator(
    recipe: Recipe, family: Family, checkpoint: Checkpoint
) -> PackingCollator | PaddingCollator:
    """``RecipeError`` where the model cannot take packs."""
    ids = checkpoint.stream_ids
    if not recipe.data.packing:
        return PaddingCollator(checkpoint.model.config.pad_token_id, ids.end, ids.num_codebooks)
    if "position_ids" not in family.contract.inputs:
        raise RecipeError(f"data.packing: {family.name} takes no position_ids; set it to false")
    return PackingCollator(ids.num_codebooks)


def _build_weights(recipe: Recipe, family: Family, num_codebooks: int) -> LossWeights:
    """``RecipeError`` where the model cannot give what the recipe weighs."""
    loss = recipe.loss
    if loss.text_weight and not family.has_text_logits:
        raise RecipeError(f"loss.text_weight: {family.name} returns no logits over text; leave it at 0")
    weights = LossWeights(audio=loss.audio_weight, text=loss.text_weight, codebooks=loss.codebook_weights)
    try:
        weights.of_codebooks(num_codebooks)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return weights


def _build_arguments(recipe: Recipe) -> TrainingArguments:
    """``RecipeError`` where transformers refuses what the recipe's own checks cannot know: ``optim``, ``report_to``."""
    try:
        arguments = TrainingArguments(**training_arguments(recipe))
        get_reporting_integration_callbacks(arguments.report_to)  # raises for a name that there is not
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training: {error}") from error
    # "flyte" is the one that transformers does not look for.
    if missing := set(arguments.report_to) - {*get_available_reporting_integrations(), "flyte"}:
        raise RecipeError(
            f"training.report_to: {', '.join(sorted(missing))} is not installed; pip install it, for TensorBoard "
            "'higgs-trainer[tensorboard]'"
        )
    return arguments


def _speak_samples(run: Run, folder: Path) -> None:
    """The recipe's sentences, then the held-out ones, each as it stands in the data."""
    samples = run.recipe.samples
    references: tuple[SpokenClip, ...] = ()
    if samples.ref_audio is not None:
        references = (SpokenClip(samples.ref_text, run.codec.encode(read_audio(samples.ref_audio))),)
    sampling = Sampling(max_seconds=samples.max_seconds, seed=run.recipe.training.seed)
    spoken = speak(run.checkpoint, samples.texts, context=Context(references=references), sampling=sampling)
    for i in range(samples.held_out):
        assert run.held_out is not None  # `_check_what_is_watched`
        row = run.held_out.rows[i]
        context = read_context(row, run.checkpoint.stream_ids.num_codebooks)
        spoken += speak(run.checkpoint, [row["text"]], context=context, sampling=sampling)
    write_spoken(spoken, run.codec, folder)


def _last_logged(trainer: HiggsAudioTrainer) -> dict[str, float]:
    """The newest value of each logged metric."""
    newest: dict[str, float] = {}
    for entry in trainer.state.log_history:
        newest.update(entry)
    return newest


def _write_json(path: Path, value: Any) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
