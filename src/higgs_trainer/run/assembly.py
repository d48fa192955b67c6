"""A recipe becomes objects that know each other: model, tokenizer, codec, examples, collator, trainer.

What the recipe's own checks cannot know, because it takes the model or the data, is refused here, before training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from higgs_trainer.audio.codec import Codec
from higgs_trainer.dataset.code_noise import NoisyExamples
from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.dataset.examples import ExampleDataset
from higgs_trainer.dataset.packing import BatchPlan, PackPlan, Plan, PlannedExamples, measure_tokens
from higgs_trainer.dataset.prepared import check_codec, read_prepared
from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.evaluation.held_out_scores import METRICS as SPOKEN_METRICS
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.example_encoding import build_examples
from higgs_trainer.model.families import Family, family_of
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loading import Checkpoint, load_checkpoint, load_codec_of
from higgs_trainer.model.parameters import freeze, freeze_text_head
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.schema import Recipe, WeightedFolder
from higgs_trainer.sharing.model_card import write_model_card
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.metrics import list_held_out_metrics
from higgs_trainer.training.trainer import HiggsAudioTrainer

BuildOptimizer = Callable[[nn.Module, TrainingArguments], Optimizer]


@dataclass(frozen=True)
class Run:
    """Everything of one run, made and connected, not yet started."""

    recipe: Recipe
    checkpoint: Checkpoint
    codec: Codec
    train_examples: ExampleDataset
    held_out: ExampleDataset | None
    trainer: HiggsAudioTrainer


def build_run(recipe: Recipe, *, build_optimizer: BuildOptimizer | None = None) -> Run:
    """Load what the recipe names and connect it. Nothing is trained and nothing written yet.

    Args:
        build_optimizer: builds the optimizer from the model and the arguments, in place of ``training.optim``.
    """
    set_seed(recipe.training.seed)
    checkpoint = load_checkpoint(
        recipe.model.name_or_path,
        dtype=recipe.model.dtype,
        attn_implementation=recipe.model.attn_implementation,
    )
    codec = load_codec_of(checkpoint, recipe.model.codec)
    family = family_of(checkpoint.model)
    train_examples = _load_examples(_take_only(recipe.data.train), checkpoint, codec)
    held_out = _load_examples(_take_only(recipe.data.eval), checkpoint, codec) if recipe.data.eval else None
    if recipe.adapter is not None:
        adapted = add_lora(checkpoint.model, family, **recipe.adapter.model_dump())
        checkpoint = replace(checkpoint, model=adapted)
    freeze(checkpoint.model, family, recipe.model.freeze)
    freeze_text_head(checkpoint.model, family)
    arguments = _build_arguments(recipe)
    if arguments.device.type == "cpu":  # run nowhere else so far
        index_layers(checkpoint.model)
    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=arguments,
        train_dataset=_plan_training(train_examples, recipe, arguments, checkpoint),
        eval_dataset=_plan_evaluation(held_out, arguments) if held_out else None,
        processing_class=checkpoint.tokenizer,
        data_collator=_build_collator(recipe, family, checkpoint),
        family=family,
        weights=_build_weights(recipe, checkpoint.stream_ids.num_codebooks),
        guard_policy=recipe.guard.policy,
        optimizers=(build_optimizer(checkpoint.model, arguments) if build_optimizer else None, None),
        write_card=partial(write_model_card, name=recipe.training.hub_model_id),
        tokens_per_pack=recipe.data.tokens_per_pack if recipe.data.packing else None,
    )
    for their_log in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(their_log)
    run = Run(recipe, checkpoint, codec, train_examples, held_out, trainer)
    _check_what_is_watched(run)
    return run


def _check_what_is_watched(run: Run) -> None:
    """``RecipeError`` for what would otherwise be found out at the first evaluation: after an epoch, perhaps."""
    recipe, best = run.recipe, run.recipe.training.metric_for_best_model
    known = list_held_out_metrics(run.checkpoint.stream_ids.num_codebooks)
    known += [f"eval_{name}" for name in SPOKEN_METRICS] if recipe.samples.judged else []
    if best is not None and f"eval_{best.removeprefix('eval_')}" not in known:
        raise RecipeError(
            f"training.metric_for_best_model: {best!r} is never logged. {suggest_name(best, known)}"
        )
    if recipe.samples.held_out > len(run.held_out or ()):
        raise RecipeError(
            f"samples.held_out is {recipe.samples.held_out}, but data.eval has {len(run.held_out or ())} utterances"
        )
    if run.trainer.is_fsdp_enabled and (recipe.samples.texts or recipe.samples.held_out):
        raise RecipeError(
            "samples are spoken by one process, which under FSDP holds only a part; leave them out"
        )


def _take_only(folders: Sequence[WeightedFolder]) -> Path:
    """Return the one folder of a dataset. Several are not mixed yet."""
    if len(folders) > 1:
        raise RecipeError("data: several prepared folders are not mixed yet; name one")
    return folders[0].path


def _load_examples(folder: str | Path, checkpoint: Checkpoint, codec: Codec) -> ExampleDataset:
    prepared = read_prepared(folder)
    check_codec(prepared.card, codec)
    return build_examples(prepared.rows, checkpoint.tokenizer, checkpoint.stream_ids, checkpoint.sequence)


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


def _build_weights(recipe: Recipe, num_codebooks: int) -> LossWeights:
    """``RecipeError`` where the model cannot give what the recipe weighs."""
    loss = recipe.loss
    weights = LossWeights(audio=loss.audio_weight, codebooks=loss.codebook_weights)
    try:
        weights.list_codebook_weights(num_codebooks)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return weights


def _build_arguments(recipe: Recipe) -> TrainingArguments:
    """``RecipeError`` where transformers refuses what the recipe's own checks cannot know: ``optim``, ``report_to``."""
    try:
        arguments = TrainingArguments(**build_training_arguments(recipe))
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
