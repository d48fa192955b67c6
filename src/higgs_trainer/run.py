"""The composition root: a recipe becomes objects, the objects become a run. Read this first.

recipe -> checkpoint (model, tokenizer), codec -> examples -> HiggsAudioTrainer -> train() -> the output folder
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from higgs_trainer.data.audio import read_audio
from higgs_trainer.data.code_noise import NoisyExamples
from higgs_trainer.data.codec import Codec
from higgs_trainer.data.collator import PaddingCollator
from higgs_trainer.data.examples import ExampleDataset
from higgs_trainer.data.prepare import check_codec, read_prepared
from higgs_trainer.data.prompt import Context, SpokenClip
from higgs_trainer.errors import RecipeError
from higgs_trainer.guard import LabelLeakError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import Family, family_of
from higgs_trainer.model.loading import Checkpoint, copy_companions, load_checkpoint, load_codec_of
from higgs_trainer.model.parameters import count_trainable, format_trainable, freeze
from higgs_trainer.recipe import Recipe, TrainingRecipe, training_arguments, write_recipe
from higgs_trainer.speech.generate import Sampling, speak, write_spoken
from higgs_trainer.training.callbacks import ReadableProgress, SpeakSamples
from higgs_trainer.training.checks import CheckResult, check_examples, check_leaks, check_model
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.trainer import HiggsAudioTrainer

RECIPE_NAME = "recipe.yaml"
GUARD_REPORT_NAME = "guard_report.json"
PARAMETERS_NAME = "trainable_parameters.json"


@dataclass(frozen=True)
class Run:
    """Everything of one run, made and connected, not yet started."""

    recipe: Recipe
    checkpoint: Checkpoint
    codec: Codec
    trainer: HiggsAudioTrainer


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run reports. ``metrics`` are Trainer's, of the last log and of the run."""

    output_dir: Path
    metrics: dict[str, float]
    cascade: str


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
    train_set = _disturb(_load_examples(recipe.data.train, checkpoint, codec), recipe, checkpoint)
    eval_set = _load_examples(recipe.data.eval, checkpoint, codec) if recipe.data.eval else None
    if recipe.adapter is not None:
        adapted = add_lora(checkpoint.model, family, **asdict(recipe.adapter))
        checkpoint = replace(checkpoint, model=adapted)
    freeze(checkpoint.model, recipe.model.freeze)
    ids = checkpoint.stream_ids
    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=_build_arguments(recipe),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=checkpoint.tokenizer,
        data_collator=PaddingCollator(
            pad_token_id=checkpoint.model.config.pad_token_id,
            end_id=ids.end,
            num_codebooks=ids.num_codebooks,
        ),
        family=family,
        weights=_build_weights(recipe, family, ids.num_codebooks),
        guard_policy=recipe.guard.policy,
        use_muon=recipe.training.optim == "muon",
    )
    for their_log in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(their_log)
    return Run(recipe, checkpoint, codec, trainer)


def train(recipe: Recipe) -> TrainingSummary:
    """Train, and write the output folder: adapter or model, tokenizer, ``recipe.yaml``, ``guard_report.json``,
    ``metrics.json``, and the samples that the recipe asks for."""
    run = build_run(recipe)
    output_dir = Path(recipe.training.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, output_dir / RECIPE_NAME)
    trainable = count_trainable(run.checkpoint.model)
    print(format_trainable(trainable), flush=True)
    _write_json(
        output_dir / PARAMETERS_NAME, {kind: {"trained": t, "all": a} for kind, (t, a) in trainable.items()}
    )
    if not recipe.training.disable_tqdm:
        run.trainer.add_callback(ReadableProgress)
    if recipe.samples.texts:
        run.trainer.add_callback(
            SpeakSamples(lambda folder: _speak_samples(run, folder), output_dir / "samples")
        )

    result = run.trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)

    run.trainer.save_model(str(output_dir))
    copy_companions(recipe.model.name_or_path, output_dir)
    (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says the same
    run.trainer.save_state()
    ledger = run.trainer.guard.ledger
    _write_json(output_dir / GUARD_REPORT_NAME, ledger.report())
    metrics = {**_last_logged(run.trainer), **result.metrics}
    _write_json(output_dir / "metrics.json", metrics)
    return TrainingSummary(output_dir, metrics, ledger.cascade())


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
        train_set, batch_size = trainer.train_dataset, trainer.args.per_device_eval_batch_size
        some = [train_set[i] for i in range(min(len(train_set), batch_size))]
        loss = None
        try:
            loss = float(trainer.train().training_loss)
            trainer.evaluate(some)
            trainer.predict(some)
        except LabelLeakError as error:
            results = [check_leaks(trainer.guard, error)]
        else:
            every_example = (train_set[i] for i in range(len(train_set)))
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


def _disturb(
    examples: ExampleDataset, recipe: Recipe, checkpoint: Checkpoint
) -> ExampleDataset | NoisyExamples:
    if not recipe.data.code_noise:
        return examples
    training = recipe.training
    return NoisyExamples(
        examples,
        code_noise=recipe.data.code_noise,
        num_codes=checkpoint.num_codes,
        seed=training.seed if training.data_seed is None else training.data_seed,
    )


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
        return TrainingArguments(**training_arguments(recipe))
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training: {error}") from error


def _speak_samples(run: Run, folder: Path) -> None:
    samples = run.recipe.samples
    references: tuple[SpokenClip, ...] = ()
    if samples.ref_audio is not None:
        references = (SpokenClip(samples.ref_text, run.codec.encode(read_audio(samples.ref_audio))),)
    spoken = speak(
        run.checkpoint,
        samples.texts,
        context=Context(references=references),
        sampling=Sampling(max_seconds=samples.max_seconds, seed=run.recipe.training.seed),
    )
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
