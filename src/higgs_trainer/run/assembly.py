"""Build and connect the objects of a run from a recipe: model, codec, datasets, trainer. Nothing is trained here.

Each object is built from its own section of the recipe. `preflight.py` builds what needs no weights of the model, and
finds the mistakes that can be found without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from higgs_trainer.audio.codec import Codec
from higgs_trainer.evaluation.held_out_scores import HeldOutScores
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loading import Checkpoint, load_checkpoint
from higgs_trainer.recipe.schema import ModelRecipe, Recipe
from higgs_trainer.run.launch import uses_fsdp
from higgs_trainer.run.preflight import run_preflight, without_weights
from higgs_trainer.run.samples import Samples
from higgs_trainer.run.trainable import choose_trainable
from higgs_trainer.run_folder import SAMPLES_FOLDER
from higgs_trainer.sharing.model_card import write_model_card
from higgs_trainer.training.datasets import LoadedSets, plan_evaluation
from higgs_trainer.training.trainer import HiggsAudioTrainer
from higgs_trainer.training.trainer_inputs import build_collator

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
    ready = run_preflight(recipe, builds_optimizer=build_optimizer is not None)
    arguments, codec, train_set, held_out = ready.arguments, ready.codec, ready.train_set, ready.held_out
    set_seed(recipe.training.seed)
    base = load_model(recipe.model, keep_text_head=recipe.adapter is None)
    # Weights that the first process sends to this one, also those of the adapter.
    is_empty = base.model.device.type == "meta"
    adapter = without_weights(recipe.adapter) if is_empty else recipe.adapter
    checkpoint = choose_trainable(base, adapter, recipe.model.freeze)
    if recipe.model.indexed_layers:
        index_layers(checkpoint.model)

    samples = None
    if recipe.samples.texts or recipe.samples.held_out:
        folder, rows = recipe.training.output_dir / SAMPLES_FOLDER, held_out.rows if held_out else None
        seed, is_sharded = recipe.training.seed, uses_fsdp(arguments)
        samples = Samples(recipe.samples, checkpoint, codec, rows, seed, folder, is_sharded)

    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=arguments,
        train_dataset=ready.plan,
        eval_dataset=plan_evaluation(held_out.examples, arguments) if held_out else None,
        processing_class=checkpoint.tokenizer,
        data_collator=build_collator(checkpoint, packing=recipe.data.packing),
        family=base.family,
        weights=ready.weights,
        guard_policy=recipe.guard.policy,
        optimizers=(build_optimizer(checkpoint.model, arguments) if build_optimizer else None, None),
        measure_speech=build_measure(samples, ready.scores) if samples and recipe.samples.judged else None,
        write_card=partial(write_model_card, name=recipe.training.hub_model_id),
        tokens_per_pack=recipe.data.tokens_per_pack if recipe.data.packing else None,
        keeps_record=False,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return Run(checkpoint, codec, train_set, held_out, samples, trainer)


def load_model(model: ModelRecipe, *, keep_text_head: bool) -> Checkpoint:
    """Load the model and the tokenizer that training starts from.

    Args:
        keep_text_head: load the head over text, which no loss reads, so that it is in the trained model as well.
    """
    return load_checkpoint(
        model.name_or_path,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        quantization=model.quantization,
        keep_text_head=keep_text_head,
    )


def build_measure(samples: Samples, scores: HeldOutScores | None) -> Callable[[int], Mapping[str, float]]:
    """Build the function that judges the generated held-out sentences of a step and returns the metrics.

    Only the main process has judges; the trainer sends its metrics to the other processes.
    """

    def measure(step: int) -> Mapping[str, float]:
        folder = samples.callback.generate(step)
        return {} if scores is None else scores.measure(folder)

    return measure
