"""Build and connect the objects of a run from a recipe: model, codec, datasets, trainer. Nothing is trained here.

Each object is built from its own section of the recipe. Conflicts that can be found only with the model or the data at
hand are refused here, before training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from higgs_trainer.audio.codec import Codec
from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.evaluation.held_out_scores import METRICS as SPOKEN_METRICS
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import Family, family_of
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loading import Checkpoint, load_checkpoint, load_codec_of
from higgs_trainer.model.parameters import freeze, freeze_text_head
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.schema import AdapterRecipe, LossRecipe, ModelRecipe, Recipe
from higgs_trainer.run.arguments import build_arguments
from higgs_trainer.run.datasets import LoadedSets, load_sets, plan_evaluation, plan_training
from higgs_trainer.run.samples import Samples
from higgs_trainer.run_folder import SAMPLES_FOLDER
from higgs_trainer.sharing.model_card import write_model_card
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.metrics import list_held_out_metrics
from higgs_trainer.training.trainer import HiggsAudioTrainer

BuildOptimizer = Callable[[nn.Module, TrainingArguments], Optimizer]


@dataclass(frozen=True)
class Run:
    """The objects of one run.

    Attributes:
        samples: generates the samples. None if the recipe asks for no samples.
    """

    checkpoint: Checkpoint
    codec: Codec
    train_set: LoadedSets
    held_out: LoadedSets | None
    samples: Samples | None
    trainer: HiggsAudioTrainer


def build_run(recipe: Recipe, *, build_optimizer: BuildOptimizer | None = None) -> Run:
    """Load the model, the codec and the data of a recipe, and connect them. Nothing is trained and nothing is written.

    Args:
        build_optimizer: builds the optimizer from the model and the arguments, in place of ``training.optim``.

    Raises:
        RecipeError: something in the recipe does not fit the model or the data.
        CheckpointError: the model, the codec or a prepared folder cannot be opened, or they do not belong together.
    """
    set_seed(recipe.training.seed)
    arguments = build_arguments(build_training_arguments(recipe))
    base = load_model(recipe.model)
    family = family_of(base.model)
    codec = load_codec_of(base, recipe.model.codec)
    weights = build_weights(recipe.loss, base.stream_ids.num_codebooks)
    check_best_metric(recipe.training.metric_for_best_model, base, judged=recipe.samples.judged)

    train_set = load_sets([train.path for train in recipe.data.train], base, codec)
    held_out = load_sets([held.path for held in recipe.data.eval], base, codec) if recipe.data.eval else None
    checkpoint = choose_trainable(base, family, recipe.adapter, recipe.model.freeze)
    if recipe.model.indexed_layers and arguments.device.type == "cpu":
        # Not measured on a GPU yet.
        index_layers(checkpoint.model)

    samples = None
    if recipe.samples.texts or recipe.samples.held_out:
        folder, rows = recipe.training.output_dir / SAMPLES_FOLDER, held_out.rows if held_out else None
        samples = Samples(recipe.samples, checkpoint, codec, rows, seed=recipe.training.seed, folder=folder)

    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=arguments,
        train_dataset=plan_training(recipe.data, train_set, arguments, num_codes=checkpoint.num_codes),
        eval_dataset=plan_evaluation(held_out.examples, arguments) if held_out else None,
        processing_class=checkpoint.tokenizer,
        data_collator=build_collator(family, checkpoint, packing=recipe.data.packing),
        family=family,
        weights=weights,
        guard_policy=recipe.guard.policy,
        optimizers=(build_optimizer(checkpoint.model, arguments) if build_optimizer else None, None),
        measure_speech=build_measure(samples, arguments) if samples and recipe.samples.judged else None,
        write_card=partial(write_model_card, name=recipe.training.hub_model_id),
        tokens_per_pack=recipe.data.tokens_per_pack if recipe.data.packing else None,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if samples and trainer.is_fsdp_enabled:
        raise RecipeError(
            "samples: under FSDP, the main process generates the samples but holds only a part of the model. "
            "Remove the section from the recipe."
        )
    return Run(checkpoint, codec, train_set, held_out, samples, trainer)


def load_model(model: ModelRecipe) -> Checkpoint:
    """Load the model and the tokenizer that training starts from."""
    return load_checkpoint(
        model.name_or_path, dtype=model.dtype, attn_implementation=model.attn_implementation
    )


def choose_trainable(
    base: Checkpoint,
    family: Family,
    adapter: AdapterRecipe | None,
    frozen_kinds: tuple[str, ...],
) -> Checkpoint:
    """Add the adapter to the model, or freeze kinds of its modules. The text head is frozen: no loss reads it."""
    checkpoint = base
    if adapter is not None:
        checkpoint = replace(base, model=add_lora(base.model, family, **adapter.model_dump()))
    freeze(checkpoint.model, family, frozen_kinds)
    freeze_text_head(checkpoint.model, family)
    return checkpoint


def build_weights(loss: LossRecipe, num_codebooks: int) -> LossWeights:
    """Build the weights of the loss.

    Raises:
        RecipeError: there are more or fewer weights than codebooks.
    """
    weights = LossWeights(audio=loss.audio_weight, codebooks=loss.codebook_weights)
    try:
        weights.list_codebook_weights(num_codebooks)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return weights


def build_collator(
    family: Family, checkpoint: Checkpoint, *, packing: bool
) -> PackingCollator | PaddingCollator:
    """Build the collator: for packs, or for padded batches.

    Raises:
        RecipeError: packs are asked for, but the model takes no position ids, which mark where an example starts.
    """
    ids = checkpoint.stream_ids
    if not packing:
        return PaddingCollator(checkpoint.model.config.pad_token_id, ids.end, ids.num_codebooks)
    if "position_ids" not in family.contract.inputs:
        raise RecipeError(f"data.packing: {family.name} takes no position_ids. Set data.packing to false.")
    return PackingCollator(ids.num_codebooks)


def build_measure(samples: Samples, arguments: TrainingArguments) -> Callable[[int], Mapping[str, float]]:
    """Build the function that judges the generated held-out sentences of a step and returns the metrics.

    Only the main process measures; the trainer sends its metrics to the other processes.
    """
    if arguments.process_index != 0:
        return lambda step: {}
    scores = samples.load_scores()
    return lambda step: scores.measure(samples.callback.generate(step))


def check_best_metric(best: str | None, base: Checkpoint, *, judged: bool) -> None:
    """Raise ``RecipeError`` if the metric that chooses the best checkpoint is never logged.

    Trainer itself would fail only at the first evaluation.
    """
    known = list_held_out_metrics(base.stream_ids.num_codebooks)
    known += [f"eval_{name}" for name in SPOKEN_METRICS] if judged else []
    if best is not None and f"eval_{best.removeprefix('eval_')}" not in known:
        raise RecipeError(
            f"training.metric_for_best_model: {best!r} is never logged. {suggest_name(best, known)}"
        )
